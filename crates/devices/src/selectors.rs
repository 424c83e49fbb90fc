//! Compiled selectors, kept between pods: classes repeat theirs for every request.

use std::collections::HashMap;

use api::k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use cel::device::{Attribute, Selector};
use meta::Quantity;
use parking_lot::Mutex;

/// Most selectors kept; in practice there are a handful.
const KEPT_MAX: usize = 1000;

/// Selectors by source.
#[derive(Debug, Default)]
pub struct Selectors(Mutex<HashMap<String, Result<Selector, String>>>);

impl Selectors {
    /// A selector, compiled now or before.
    pub(crate) fn get(&self, source: &str) -> Result<Selector, String> {
        let mut kept = self.0.lock();
        if let Some(found) = kept.get(source) {
            return found.clone();
        }
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        let compiled = Selector::compile(source);
        kept.insert(source.to_owned(), compiled.clone());
        compiled
    }
}

fn attribute(value: &DeviceAttribute) -> Option<Attribute<'_>> {
    if let Some(n) = value.int {
        return Some(Attribute::Int(n));
    }
    if let Some(b) = value.bool {
        return Some(Attribute::Bool(b));
    }
    if let Some(s) = &value.string {
        return Some(Attribute::String(s));
    }
    value.version.as_deref().map(Attribute::Version)
}

/// A device as selectors see it.
pub(crate) fn view<'a>(driver: &'a str, device: &'a Device) -> Result<cel::device::Device<'a>, String> {
    let attributes = device.attributes.iter().flatten().map(|(name, value)| {
        let value =
            attribute(value).ok_or_else(|| format!("attribute {name}: unsupported attribute value"))?;
        Ok((name.as_str(), value))
    });
    let zero = Quantity::from_units(0);
    let capacity = device.capacity.iter().flatten();
    let capacity = capacity.map(|(name, c)| (name.as_str(), Quantity::parse(&c.value.0).unwrap_or(zero)));
    Ok(cel::device::Device {
        driver,
        shared: device.allow_multiple_allocations == Some(true),
        attributes: attributes.collect::<Result<_, String>>()?,
        capacity: capacity.collect(),
    })
}
