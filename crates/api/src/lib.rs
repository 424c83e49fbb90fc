//! Typed structs of the Kubernetes API with plain decode and encode functions.
//!
//! **Invariant:** the only crate that instantiates serde per kind. Everyone else calls [`Typed::decode`]
//! and [`Typed::encode`], so the code for a kind is compiled once, here. The server's hot path never comes
//! here (it is typeless, see `schema`); those who decide do: controllers, scheduler, kubelet.

pub mod descriptions;
mod typed;

pub use k8s_openapi;
pub use typed::{DecodeError, Typed};

/// Short names of the types that controllers, scheduler and kubelet use all the time.
pub mod prelude {
    pub use crate::typed::{DecodeError, Typed};
    pub use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
    pub use k8s_openapi::api::batch::v1::Job;
    pub use k8s_openapi::api::coordination::v1::Lease;
    pub use k8s_openapi::api::core::v1::{
        ConfigMap, Container, Endpoints, Event, Namespace, Node, ObjectReference, PersistentVolume,
        PersistentVolumeClaim, Pod, PodSpec, PodStatus, PodTemplateSpec, Secret, Service, ServiceAccount,
    };
    pub use k8s_openapi::api::discovery::v1::EndpointSlice;
    pub use k8s_openapi::api::resource::v1::{
        DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice,
    };
    pub use k8s_openapi::api::storage::v1::{
        CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass,
    };
    pub use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
        Condition, LabelSelector, MicroTime, ObjectMeta, OwnerReference, Time,
    };
    pub use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
}
