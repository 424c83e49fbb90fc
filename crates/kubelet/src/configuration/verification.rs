//! Which images need a look at a pod's credentials: the fields about that, checked in upstream's words. Pure.

use super::Configuration;
use crate::pulled::Verification;
use crate::pulled::policy::Pattern;

const GATE: &str = "KubeletEnsureSecretPulledImages";
const POLICY: &str = "imagePullCredentialsVerificationPolicy";
const LIST: &str = "preloadedImagesVerificationAllowlist";
const LISTED: &str = "NeverVerifyAllowlistedImages";

fn is_on(configuration: &Configuration) -> bool {
    let gates = configuration.value("featureGates");
    gates.and_then(|gates| gates.get(GATE)?.as_bool()).unwrap_or(true)
}

pub(super) fn check(configuration: &Configuration, problems: &mut Vec<String>) {
    let list = configuration.texts(LIST);
    if !is_on(configuration) {
        let given = [(POLICY, configuration.is_given(POLICY)), (LIST, !list.is_empty())];
        problems.extend(
            given
                .into_iter()
                .filter(|(_, given)| *given)
                .map(|(path, _)| format!("`{path}` must not be set if {GATE} feature gate is not enabled")),
        );
        return;
    }
    let policy = configuration.text(POLICY);
    let known = ["NeverVerify", "NeverVerifyPreloadedImages", LISTED, "AlwaysVerify"];
    if !known.contains(&policy) {
        problems.push(format!(
            "option {policy:?} specified for {POLICY}. Valid options are \"NeverVerify\", \
             \"NeverVerifyPreloadedImages\", {LISTED:?} or \"AlwaysVerify\""
        ));
    }
    if !list.is_empty() && policy != LISTED {
        // The third word is upstream's.
        problems.push(format!(
            "can't set `{LIST}` if `imagePullCredentialsVertificationPolicy` is not {LISTED:?}"
        ));
    } else if let Some(error) = list.iter().find_map(|text| Pattern::parse(text).err()) {
        problems.push(format!("invalid image pattern in `{LIST}`: {error}"));
    }
}

pub(super) fn read(configuration: &Configuration) -> Verification {
    if !is_on(configuration) {
        return Verification::Never;
    }
    match configuration.text(POLICY) {
        "NeverVerify" => Verification::Never,
        "AlwaysVerify" => Verification::Always,
        LISTED => {
            let list = configuration.texts(LIST);
            Verification::NotListed(list.iter().filter_map(|text| Pattern::parse(text).ok()).collect())
        }
        _ => Verification::NotPreloaded,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{API_VERSION, Error, KIND};
    use super::*;
    use crate::config::Config;

    fn decode(more: Value) -> Result<Configuration, Error> {
        let mut document = json!({"apiVersion": API_VERSION, "kind": KIND});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Configuration::decode(document)
    }

    #[test]
    fn policies() {
        let listed = Verification::NotListed(vec![Pattern::Below("r.io/".into())]);
        let table = [
            (json!({}), Ok(Verification::NotPreloaded)),
            (json!({POLICY: "AlwaysVerify"}), Ok(Verification::Always)),
            (json!({POLICY: "NeverVerify"}), Ok(Verification::Never)),
            (json!({POLICY: LISTED, LIST: ["r.io/*"]}), Ok(listed)),
            (json!({"featureGates": {GATE: false}}), Ok(Verification::Never)),
            (
                json!({POLICY: "Sometimes"}),
                Err(
                    "option \"Sometimes\" specified for imagePullCredentialsVerificationPolicy. Valid options are \
                     \"NeverVerify\", \"NeverVerifyPreloadedImages\", \"NeverVerifyAllowlistedImages\" or \
                     \"AlwaysVerify\"",
                ),
            ),
            (
                json!({LIST: ["r.io/*"]}),
                Err(
                    "can't set `preloadedImagesVerificationAllowlist` if `imagePullCredentialsVertificationPolicy` \
                     is not \"NeverVerifyAllowlistedImages\"",
                ),
            ),
            (
                json!({POLICY: LISTED, LIST: ["r.io/a", "r.io/a:1"]}),
                Err(
                    "invalid image pattern in `preloadedImagesVerificationAllowlist`: neither tag nor digest is \
                     accepted in an image reference: r.io/a:1",
                ),
            ),
            (
                json!({POLICY: "AlwaysVerify", "featureGates": {GATE: false}}),
                Err(
                    "`imagePullCredentialsVerificationPolicy` must not be set if KubeletEnsureSecretPulledImages \
                     feature gate is not enabled",
                ),
            ),
        ];
        for (more, expected) in table {
            let found = decode(more.clone()).map(|configuration| {
                let mut config = Config::new("n", "/d".into());
                configuration.apply(&mut config);
                config.image_verification
            });
            let expected =
                expected.map_err(|text| Error::Invalid(vec![format!("invalid configuration: {text}")]));
            assert_eq!(found, expected, "{more}");
        }
    }
}
