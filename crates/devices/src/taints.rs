//! Taints of devices, their own and those of rules, and who tolerates them.

use api::k8s_openapi::api::resource::v1::{Device, DeviceTaint, DeviceToleration};
use api::prelude::*;

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => text(&toleration.value) == text(&taint.value),
        "Exists" => true,
        _ => false,
    }
}

/// Whether a rule is about a device. Without a selector it is about none; an empty one selects all.
pub(crate) fn concerns(rule: &DeviceTaintRule, driver: &str, pool: &str, device: &str) -> bool {
    let Some(selector) = &rule.spec.device_selector else { return false };
    let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    fits(&selector.driver, driver) && fits(&selector.pool, pool) && fits(&selector.device, device)
}

/// Whether a taint keeps a request from a device.
pub(crate) fn keep_off<'a>(
    device: &'a Device,
    rules: impl Iterator<Item = &'a DeviceTaint>,
    tolerations: &[DeviceToleration],
) -> bool {
    let own = device.taints.iter().flatten();
    own.chain(rules)
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .any(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}
