//! The `Typed` trait and its table: one row per kind that some component decides about.

use k8s_openapi::api::{
    apps, autoscaling, batch, certificates, coordination, core, discovery, networking, policy, rbac,
    resource, storage,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use meta::{Gvk, Gvr};
use serde_json::Value;

/// The JSON is not an object of the expected kind.
#[derive(Debug, thiserror::Error)]
#[error("cannot decode {kind}: {source}")]
pub struct DecodeError {
    /// Kind that was expected.
    pub kind: &'static str,
    /// What serde found.
    #[source]
    pub source: serde_json::Error,
}

/// A kind as a struct, with everything needed to find it on the server.
pub trait Typed: Sized + Clone + Send + Sync + std::fmt::Debug + 'static {
    /// Group, version and kind.
    const GVK: Gvk;
    /// Group, version and resource.
    const GVR: Gvr;
    /// Whether objects live in a namespace.
    const NAMESPACED: bool;

    /// Reads one object from JSON bytes. `apiVersion` and `kind` may be absent, as in list items.
    fn decode(json: &[u8]) -> Result<Self, DecodeError>;
    /// Reads one object from a JSON value.
    fn from_value(value: Value) -> Result<Self, DecodeError>;
    /// The object as JSON, with `apiVersion` and `kind`.
    fn encode(&self) -> Value;
    /// The object's metadata.
    fn meta(&self) -> &ObjectMeta;
    /// The object's metadata, to change.
    fn meta_mut(&mut self) -> &mut ObjectMeta;

    /// Name; empty when not set.
    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }
    /// Namespace; empty for cluster scope.
    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }
    /// Uid; empty when not set.
    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }
    /// Resource version; empty when not set.
    fn resource_version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }
    /// `namespace/name`, or `name` for cluster scope: the key of caches and queues.
    fn key(&self) -> String {
        match self.namespace() {
            "" => self.name().to_owned(),
            ns => format!("{ns}/{}", self.name()),
        }
    }
    /// Whether deletion has begun.
    fn is_terminating(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }
}

macro_rules! typed {
    ($($ty:path => $group:literal $version:literal $kind:literal $resource:literal $namespaced:literal;)*) => {$(
        impl Typed for $ty {
            const GVK: Gvk = Gvk::new($group, $version, $kind);
            const GVR: Gvr = Gvr::new($group, $version, $resource);
            const NAMESPACED: bool = $namespaced;

            fn decode(json: &[u8]) -> Result<Self, DecodeError> {
                // Through a value: list items come without apiVersion and kind, which the structs insist on.
                let value = serde_json::from_slice(json).map_err(|source| DecodeError { kind: $kind, source })?;
                Self::from_value(value)
            }
            fn from_value(mut value: Value) -> Result<Self, DecodeError> {
                if let Some(object) = value.as_object_mut() {
                    object.insert("apiVersion".into(), Self::GVK.api_version().into());
                    object.insert("kind".into(), $kind.into());
                }
                serde_json::from_value(value).map_err(|source| DecodeError { kind: $kind, source })
            }
            fn encode(&self) -> Value {
                serde_json::to_value(self).unwrap_or_default()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    )*};
}

typed! {
    core::v1::ConfigMap => "" "v1" "ConfigMap" "configmaps" true;
    core::v1::Endpoints => "" "v1" "Endpoints" "endpoints" true;
    core::v1::Event => "" "v1" "Event" "events" true;
    core::v1::LimitRange => "" "v1" "LimitRange" "limitranges" true;
    core::v1::Namespace => "" "v1" "Namespace" "namespaces" false;
    core::v1::Node => "" "v1" "Node" "nodes" false;
    core::v1::PersistentVolume => "" "v1" "PersistentVolume" "persistentvolumes" false;
    core::v1::PersistentVolumeClaim => "" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" true;
    core::v1::Pod => "" "v1" "Pod" "pods" true;
    core::v1::PodTemplate => "" "v1" "PodTemplate" "podtemplates" true;
    core::v1::ReplicationController => "" "v1" "ReplicationController" "replicationcontrollers" true;
    core::v1::ResourceQuota => "" "v1" "ResourceQuota" "resourcequotas" true;
    core::v1::Secret => "" "v1" "Secret" "secrets" true;
    core::v1::Service => "" "v1" "Service" "services" true;
    core::v1::ServiceAccount => "" "v1" "ServiceAccount" "serviceaccounts" true;
    apps::v1::ControllerRevision => "apps" "v1" "ControllerRevision" "controllerrevisions" true;
    apps::v1::DaemonSet => "apps" "v1" "DaemonSet" "daemonsets" true;
    apps::v1::Deployment => "apps" "v1" "Deployment" "deployments" true;
    apps::v1::ReplicaSet => "apps" "v1" "ReplicaSet" "replicasets" true;
    apps::v1::StatefulSet => "apps" "v1" "StatefulSet" "statefulsets" true;
    autoscaling::v2::HorizontalPodAutoscaler => "autoscaling" "v2" "HorizontalPodAutoscaler" "horizontalpodautoscalers" true;
    batch::v1::CronJob => "batch" "v1" "CronJob" "cronjobs" true;
    batch::v1::Job => "batch" "v1" "Job" "jobs" true;
    certificates::v1::CertificateSigningRequest => "certificates.k8s.io" "v1" "CertificateSigningRequest" "certificatesigningrequests" false;
    certificates::v1::ClusterTrustBundle => "certificates.k8s.io" "v1" "ClusterTrustBundle" "clustertrustbundles" false;
    certificates::v1::PodCertificateRequest => "certificates.k8s.io" "v1" "PodCertificateRequest" "podcertificaterequests" true;
    coordination::v1::Lease => "coordination.k8s.io" "v1" "Lease" "leases" true;
    discovery::v1::EndpointSlice => "discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" true;
    networking::v1::Ingress => "networking.k8s.io" "v1" "Ingress" "ingresses" true;
    networking::v1::NetworkPolicy => "networking.k8s.io" "v1" "NetworkPolicy" "networkpolicies" true;
    policy::v1::PodDisruptionBudget => "policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets" true;
    rbac::v1::ClusterRole => "rbac.authorization.k8s.io" "v1" "ClusterRole" "clusterroles" false;
    rbac::v1::ClusterRoleBinding => "rbac.authorization.k8s.io" "v1" "ClusterRoleBinding" "clusterrolebindings" false;
    rbac::v1::Role => "rbac.authorization.k8s.io" "v1" "Role" "roles" true;
    rbac::v1::RoleBinding => "rbac.authorization.k8s.io" "v1" "RoleBinding" "rolebindings" true;
    resource::v1::DeviceClass => "resource.k8s.io" "v1" "DeviceClass" "deviceclasses" false;
    resource::v1::DeviceTaintRule => "resource.k8s.io" "v1" "DeviceTaintRule" "devicetaintrules" false;
    resource::v1::ResourceClaim => "resource.k8s.io" "v1" "ResourceClaim" "resourceclaims" true;
    resource::v1::ResourceClaimTemplate => "resource.k8s.io" "v1" "ResourceClaimTemplate" "resourceclaimtemplates" true;
    resource::v1::ResourceSlice => "resource.k8s.io" "v1" "ResourceSlice" "resourceslices" false;
    storage::v1::CSIDriver => "storage.k8s.io" "v1" "CSIDriver" "csidrivers" false;
    storage::v1::CSINode => "storage.k8s.io" "v1" "CSINode" "csinodes" false;
    storage::v1::CSIStorageCapacity => "storage.k8s.io" "v1" "CSIStorageCapacity" "csistoragecapacities" true;
    storage::v1::StorageClass => "storage.k8s.io" "v1" "StorageClass" "storageclasses" false;
    storage::v1::VolumeAttachment => "storage.k8s.io" "v1" "VolumeAttachment" "volumeattachments" false;
    storage::v1::VolumeAttributesClass => "storage.k8s.io" "v1" "VolumeAttributesClass" "volumeattributesclasses" false;
}
