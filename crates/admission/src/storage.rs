//! Defaults and guards of storage: the default StorageClass, the default IngressClass (the same rule), finalizers
//! that keep what is in use, and which claims may grow.

use meta::Status;
use meta::quantity::Quantity;
use serde_json::Value;

use crate::{Cluster, Object, Plugin, Request, child, list};

/// Among objects marked as the default the newest, and of several equally new ones the first by name.
fn default_of(all: Vec<Value>, annotation: &str) -> Option<String> {
    let text = |v: &Value, key: &str| v["metadata"][key].as_str().unwrap_or_default().to_owned();
    let mut marked: Vec<Value> =
        all.into_iter().filter(|c| c["metadata"]["annotations"][annotation] == "true").collect();
    marked.sort_by_key(|c| (std::cmp::Reverse(text(c, "creationTimestamp")), text(c, "name")));
    marked.first().map(|c| text(c, "name"))
}

fn annotation<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.get("metadata")?["annotations"][key].as_str()
}

/// DefaultStorageClass.
pub struct DefaultStorageClass;

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
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
        if !request.creates("", "persistentvolumeclaims")
            || annotation(object, "volume.beta.kubernetes.io/storage-class").is_some()
        {
            return Ok(());
        }
        let spec = child(object, "spec");
        if !spec.contains_key("storageClassName")
            && let Some(name) = default_of(
                cluster.all("storage.k8s.io", "storageclasses"),
                "storageclass.kubernetes.io/is-default-class",
            )
        {
            spec.insert("storageClassName".into(), name.into());
        }
        Ok(())
    }
}

/// DefaultIngressClass.
pub struct DefaultIngressClass;

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
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
        if !request.creates("networking.k8s.io", "ingresses")
            || annotation(object, "kubernetes.io/ingress.class").is_some()
        {
            return Ok(());
        }
        let spec = child(object, "spec");
        if !spec.contains_key("ingressClassName")
            && let Some(name) = default_of(
                cluster.all("networking.k8s.io", "ingressclasses"),
                "ingressclass.kubernetes.io/is-default-class",
            )
        {
            spec.insert("ingressClassName".into(), name.into());
        }
        Ok(())
    }
}

/// StorageObjectInUseProtection: the finalizers that the protection controllers take away.
pub struct InUseProtection;

impl Plugin for InUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Mutate]
    }

    fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Object,
        _: Option<&Object>,
        _: &dyn Cluster,
    ) -> Result<(), Status> {
        let finalizer = if request.creates("", "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if request.creates("", "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else {
            return Ok(());
        };
        let finalizers = list(child(object, "metadata"), "finalizers");
        if !finalizers.iter().any(|f| f == finalizer) {
            finalizers.push(finalizer.into());
        }
        Ok(())
    }
}

/// PersistentVolumeClaimResize: only claims of classes that allow it may ask for more.
pub struct ClaimResize;

impl Plugin for ClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn steps(&self) -> &'static [crate::Step] {
        &[crate::Step::Validate]
    }

    fn validate(
        &self,
        request: &Request<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        cluster: &dyn Cluster,
    ) -> Result<(), Status> {
        let asked = |o: &Object| {
            let text = o.get("spec")?["resources"]["requests"]["storage"].as_str()?;
            Quantity::parse(text).ok()
        };
        let (Some(new), Some(old), "persistentvolumeclaims", "") =
            (object, old, request.resource, request.subresource)
        else {
            return Ok(());
        };
        if asked(new) <= asked(old) {
            return Ok(());
        }
        if old.get("status").is_none_or(|s| s["phase"] != "Bound") {
            return Err(request.forbid("Only bound persistent volume claims can be expanded"));
        }
        let class = new.get("spec").and_then(|s| s["storageClassName"].as_str()).unwrap_or_default();
        let class = cluster.get("storage.k8s.io", "storageclasses", "", class);
        if class.is_some_and(|c| c["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        Err(request.forbid("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
    }
}

#[cfg(test)]
mod tests {
    use meta::UserInfo;
    use serde_json::json;

    use super::*;
    use crate::testing::{Fixed, create};

    fn class(
        name: &'static str,
        created: &str,
        default: &str,
    ) -> (&'static str, &'static str, &'static str, Value) {
        let object = json!({"metadata": {"name": name, "creationTimestamp": created,
            "annotations": {"storageclass.kubernetes.io/is-default-class": default}}});
        ("storageclasses", "", name, object)
    }

    #[test]
    fn the_newest_default_class_is_taken() {
        let world = Fixed(vec![
            class("old", "2026-01-01T00:00:00Z", "true"),
            class("new", "2026-02-01T00:00:00Z", "true"),
            class("no", "2026-03-01T00:00:00Z", "false"),
        ]);
        let user = UserInfo::anonymous();
        let admit = |spec: Value| {
            let mut claim = json!({"metadata": {}, "spec": spec}).as_object().unwrap().clone();
            let request = create("persistentvolumeclaims", "n", &user);
            DefaultStorageClass.mutate(&request, &mut claim, None, &world).unwrap();
            InUseProtection.mutate(&request, &mut claim, None, &world).unwrap();
            assert_eq!(claim["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
            claim["spec"]["storageClassName"].clone()
        };
        assert_eq!(admit(json!({})), "new");
        assert_eq!(admit(json!({"storageClassName": ""})), "", "asking for none is asking");
        assert_eq!(admit(json!({"storageClassName": "old"})), "old");
    }

    #[test]
    fn claims_grow_only_where_their_class_lets_them() {
        let claim = |size: &str| {
            json!({"spec": {"storageClassName": "c", "resources": {"requests": {"storage": size}}}, "status": {"phase": "Bound"}})
                .as_object().unwrap().clone()
        };
        let user = UserInfo::anonymous();
        let request = Request { operation: "UPDATE", ..create("persistentvolumeclaims", "n", &user) };
        for (allowed, size, ok) in [(true, "2Gi", true), (false, "2Gi", false), (false, "1Gi", true)] {
            let world = Fixed(vec![("storageclasses", "", "c", json!({"allowVolumeExpansion": allowed}))]);
            let outcome = ClaimResize.validate(&request, Some(&claim(size)), Some(&claim("1Gi")), &world);
            assert_eq!(outcome.is_ok(), ok, "{allowed} {size}");
        }
    }
}
