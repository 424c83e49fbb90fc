//! The container runtime interface over a socket, both ends: [`client`] lets the kubelet use somebody else's
//! runtime (containerd, CRI-O) as it uses the embedded one, [`server`] offers the embedded one to `crictl` and
//! whoever else speaks CRI v1.
//!
//! **Invariant:** neither end knows pods of the Kubernetes API; they carry what the other side says.

pub mod client;
pub mod convert;
pub mod server;

/// Label under which a kubelet notes the pod of a sandbox or container.
pub(crate) const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";
