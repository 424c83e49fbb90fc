//! Users of pods' own (`hostUsers: false`): what goes with them and what does not.

use meta::FieldError;
use serde_json::Value;

use super::pod::list;

/// Users of the pod's own go with no namespace of the node, and only they may see all of `/proc`.
pub(super) fn own_users(spec: &Value, at: &str, errors: &mut Vec<FieldError>) {
    let own = spec["hostUsers"] == false;
    // The names are upstream's, of fields that are one level higher in the API.
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if own && spec[field] == true {
            let path = format!("{at}.{shown}");
            errors.push(FieldError::forbidden(path, "when `pod.Spec.HostUsers` is false"));
        }
    }
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in list(spec, kind).iter().enumerate() {
            if own && !list(container, "volumeDevices").is_empty() {
                let path = format!("{at}.{kind}[{i}].volumeDevices");
                errors.push(FieldError::forbidden(path, "when `pod.Spec.HostUsers` is false"));
            }
            let mount = &container["securityContext"]["procMount"];
            if !own && mount == "Unmasked" {
                errors.push(FieldError::invalid(
                    format!("{at}.{kind}[{i}].securityContext.procMount"),
                    mount,
                    "`hostUsers` must be false to use `Unmasked`",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_goes_with_own_users() {
        let table = [
            (json!({"hostUsers": false}), ""),
            (json!({"hostNetwork": true, "hostPID": true, "hostIPC": true}), ""),
            (json!({"hostUsers": false, "hostPID": true}), "spec.HostPID"),
            (
                json!({"hostUsers": false, "hostNetwork": true, "hostIPC": true}),
                "spec.hostNetwork spec.HostIPC",
            ),
            (
                json!({"hostUsers": false, "containers": [{"volumeDevices": [{"name": "d"}]}]}),
                "spec.containers[0].volumeDevices",
            ),
            (
                json!({"containers": [{"securityContext": {"procMount": "Unmasked"}}]}),
                "spec.containers[0].securityContext.procMount",
            ),
            (json!({"hostUsers": false, "containers": [{"securityContext": {"procMount": "Unmasked"}}]}), ""),
        ];
        for (spec, expected) in table {
            let mut errors = Vec::new();
            own_users(&spec, "spec", &mut errors);
            let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
            assert_eq!(fields.join(" "), expected, "{spec}");
        }
    }
}
