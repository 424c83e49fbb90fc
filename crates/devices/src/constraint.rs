//! Constraints between the devices of a claim: attributes that are the same for all, or different for each.

use api::k8s_openapi::api::resource::v1::{Device, DeviceAttribute, DeviceConstraint};

/// A constraint with the devices chosen so far.
#[derive(Debug)]
pub(crate) struct Constraint<'a> {
    requests: &'a [String],
    attribute: &'a str,
    distinct: bool,
    /// Values of the chosen devices, in the order in which they were chosen.
    values: Vec<&'a DeviceAttribute>,
}

impl<'a> Constraint<'a> {
    /// A constraint without any devices yet; `None` for a kind that is not known.
    pub fn new(of: &'a DeviceConstraint) -> Option<Constraint<'a>> {
        let (attribute, distinct) = match (&of.match_attribute, &of.distinct_attribute) {
            (Some(name), _) => (name, false),
            (None, Some(name)) => (name, true),
            (None, None) => return None,
        };
        let requests = of.requests.as_deref().unwrap_or_default();
        Some(Constraint { requests, attribute, distinct, values: Vec::new() })
    }

    fn concerns(&self, request: &str, alternative: Option<&str>) -> bool {
        let named = |name: &str| self.requests.iter().any(|r| r == name);
        self.requests.is_empty()
            || named(request)
            || alternative.is_some_and(|alternative| named(&format!("{request}/{alternative}")))
    }

    /// Adds a device; false, and nothing is added, if it breaks the constraint.
    pub fn add(
        &mut self,
        request: &str,
        alternative: Option<&str>,
        driver: &str,
        device: &'a Device,
    ) -> bool {
        if !self.concerns(request, alternative) {
            return true;
        }
        let Some(value) = lookup(device, driver, self.attribute) else { return false };
        let fits = match self.distinct {
            false => self.values.first().is_none_or(|first| same(first, value)),
            true => self.values.iter().all(|other| !same(other, value)),
        };
        if fits {
            self.values.push(value);
        }
        fits
    }

    /// Takes the device back that was added last.
    pub fn remove(&mut self, request: &str, alternative: Option<&str>) {
        if self.concerns(request, alternative) {
            self.values.pop();
        }
    }
}

/// An attribute by its full name; the driver's own may be published without its domain.
fn lookup<'a>(device: &'a Device, driver: &str, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = device.attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let (domain, id) = name.split_once('/')?;
        attributes.get(id).filter(|_| domain == driver)
    })
}

fn same(a: &DeviceAttribute, b: &DeviceAttribute) -> bool {
    let known = b.string.is_some() || b.int.is_some() || b.bool.is_some() || b.version.is_some();
    known && a.string == b.string && a.int == b.int && a.bool == b.bool && a.version == b.version
}
