//! Capacity of devices that several claims share: what a request consumes, and whether there is enough.

use std::collections::BTreeMap;

use api::k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CapacityRequirements, Device, DeviceCapacity,
};
use api::k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use meta::Quantity;

/// Amounts by name.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

fn parse(text: &Text) -> Quantity {
    // Validated when it was stored.
    Quantity::parse(&text.0).unwrap_or_else(|_| Quantity::from_units(0))
}

/// What a request consumes of one capacity.
fn consumes(asked: Option<Quantity>, capacity: &DeviceCapacity) -> Quantity {
    let policy = capacity.request_policy.as_ref();
    let Some(asked) = asked else {
        let usual = policy.and_then(|policy| policy.default.as_ref());
        return parse(usual.unwrap_or(&capacity.value));
    };
    let Some(policy) = policy else { return asked };
    if let Some(range) = &policy.valid_range {
        let least = parse(&range.min);
        if asked < least {
            return least;
        }
        return range.step.as_ref().map_or(asked, |step| asked.stepped_up(least, parse(step)));
    }
    let mut allowed = policy.valid_values.iter().flatten().map(parse);
    allowed.find(|value| asked <= *value).unwrap_or(asked)
}

/// Whether a policy does not allow an amount.
fn violates(amount: Quantity, policy: Option<&CapacityRequestPolicy>) -> bool {
    let Some(policy) = policy else { return false };
    if policy.default.as_ref().is_some_and(|usual| parse(usual) == amount) {
        return false;
    }
    if let Some(range) = &policy.valid_range {
        let above = range.max.as_ref().is_some_and(|most| amount > parse(most));
        let between = range
            .step
            .as_ref()
            .is_some_and(|step| amount.stepped_up(parse(&range.min), parse(step)) != amount);
        return above || between;
    }
    let mut values = policy.valid_values.iter().flatten().peekable();
    values.peek().is_some() && !values.any(|value| parse(value) == amount)
}

/// What a request consumes of a device.
pub(crate) fn consumed(asked: Option<&CapacityRequirements>, device: &Device) -> Amounts {
    let wanted = |name: &str| asked.and_then(|asked| asked.requests.as_ref()?.get(name)).map(parse);
    let all = device.capacity.iter().flatten();
    all.map(|(name, capacity)| (name.clone(), consumes(wanted(name), capacity))).collect()
}

/// Whether a device has what a request asks for, beside what others consume of it.
pub(crate) fn suffices(asked: Option<&CapacityRequirements>, device: &Device, others: &[&Amounts]) -> bool {
    let capacities = device.capacity.clone().unwrap_or_default();
    let unknown = |name: &String| !capacities.contains_key(name);
    if asked.is_some_and(|asked| asked.requests.iter().flatten().any(|(name, _)| unknown(name))) {
        return false;
    }
    consumed(asked, device).into_iter().all(|(name, amount)| {
        let Some(capacity) = capacities.get(&name) else { return false };
        let before = others.iter().filter_map(|amounts| amounts.get(&name).copied());
        let total = before.fold(amount, |sum, more| sum.plus(more));
        !violates(amount, capacity.request_policy.as_ref()) && total <= parse(&capacity.value)
    })
}
