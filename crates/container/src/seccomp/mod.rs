//! System call filters: OCI profiles compiled to classic BPF.
//!
//! The runtime compiles a profile once, in the node's process, and writes the program beside the container's
//! specification; the container's first process only loads it. The default profile is containerd's
//! (`contrib/seccomp/seccomp_default.go`), as data.

mod bpf;
mod default;
mod profile;
mod table;

pub(crate) use bpf::{encode, load};
pub(crate) use default::default_profile;
pub(crate) use profile::{Profile, compile};
