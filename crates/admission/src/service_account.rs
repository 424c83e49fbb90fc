//! ServiceAccount: every pod runs as an account that exists, with its token mounted unless told otherwise.

use meta::Status;
use serde_json::{Value, json};

use crate::{Cluster, Object, Plugin, Request, child, list};

/// Where the token appears in containers.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds a projected token lives: an hour and a margin for renewal (KEP-1205).
const TOKEN_SECONDS: i64 = 3607;
/// Annotation of mirror pods, which cannot use the API.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The plugin.
pub struct Accounts;

impl Plugin for Accounts {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Mutate]
    }

    fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Object,
        _: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        if !request.creates_pod() {
            return Ok(());
        }
        let annotations = object.get("metadata").and_then(|m| m.get("annotations"));
        if annotations.and_then(|a| a.get(MIRROR)).is_some() {
            return Ok(());
        }
        let pod_name = object.get("metadata").and_then(|m| m["name"].as_str()).unwrap_or("pod").to_owned();
        let spec = child(object, "spec");
        let name = match spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default() {
            "" => "default".to_owned(),
            name => name.to_owned(),
        };
        for key in ["serviceAccountName", "serviceAccount"] {
            spec.insert(key.into(), name.as_str().into());
        }
        let Some(account) = cluster.get("", "serviceaccounts", request.namespace, &name) else {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
                request.namespace
            );
            return Err(request.forbid(&why));
        };
        let wanted = spec.get("automountServiceAccountToken").or(account.get("automountServiceAccountToken"));
        if wanted != Some(&Value::Bool(false)) {
            mount_token(spec, &pod_name);
        }
        let secrets = list(spec, "imagePullSecrets");
        if secrets.is_empty() {
            secrets.extend(account["imagePullSecrets"].as_array().cloned().unwrap_or_default());
        }
        if secrets.is_empty() {
            spec.remove("imagePullSecrets");
        }
        Ok(())
    }
}

fn mount_token(spec: &mut Object, pod_name: &str) {
    let mounted = |c: &Value| {
        (c["volumeMounts"].as_array().into_iter().flatten()).any(|m| m["mountPath"] == TOKEN_PATH)
    };
    let volume = volume_name(spec, pod_name);
    let mut used = false;
    for key in ["initContainers", "containers"] {
        for container in spec.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            if mounted(container) {
                continue;
            }
            if let Value::Object(container) = container {
                used = true;
                list(container, "volumeMounts")
                    .push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
            }
        }
    }
    if !used {
        return;
    }
    list(spec, "volumes").push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}}));
}

/// `kube-api-access-xxxxx`, with a suffix that follows from the pod's name so that the same request makes
/// the same pod.
fn volume_name(spec: &Object, pod_name: &str) -> String {
    let volumes = spec.get("volumes").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    loop {
        for byte in pod_name.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let suffix: String =
            (0..5).map(|i| ALPHABET[(hash >> (i * 8)) as usize % ALPHABET.len()] as char).collect();
        let name = format!("kube-api-access-{suffix}");
        if !volumes.iter().any(|v| v["name"] == *name) {
            return name;
        }
        hash = hash.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixed, create};
    use meta::UserInfo;

    fn admit(spec: Value, account: Option<Value>) -> Result<Value, Status> {
        let user = UserInfo::anonymous();
        let cluster =
            Fixed(account.map(|a| vec![("serviceaccounts", "a", "default", a)]).unwrap_or_default());
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec}).as_object().unwrap().clone();
        Accounts.mutate(&create("pods", "a", &user), &mut pod, None, &cluster)?;
        Ok(Value::Object(pod))
    }

    #[test]
    fn the_token_is_mounted_once() {
        let pod =
            admit(json!({"containers": [{"name": "c"}]}), Some(json!({"imagePullSecrets": [{"name": "s"}]})))
                .unwrap();
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], TOKEN_PATH);
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["imagePullSecrets"][0]["name"], "s");
    }

    #[test]
    fn opting_out_and_missing_accounts() {
        let pod = admit(
            json!({"containers": [{"name": "c"}], "automountServiceAccountToken": false}),
            Some(json!({})),
        )
        .unwrap();
        assert!(pod["spec"].get("volumes").is_none());
        let refused = admit(json!({"containers": []}), None).unwrap_err();
        assert!(refused.message.contains("serviceaccount \"default\" not found"), "{}", refused.message);
    }
}
