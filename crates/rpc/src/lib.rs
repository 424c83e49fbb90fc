//! The gRPC protocols spoken over sockets of the node: the container runtime interface, storage drivers,
//! device plugins, dynamic resources, pod resources and the registration of plugins.
//!
//! Messages, clients and service traits are generated (`cargo xtask codegen`) from `proto/` into
//! `src/generated` and compiled once, here. What tonic calls a transport is ours: [`Channel`] is one HTTP/2
//! connection to a Unix socket that is made anew when it breaks, [`serve`] answers on one. That leaves out a
//! router, a balancer and TLS that a socket file has no use for.
//!
//! **Invariant:** nothing here knows what the messages mean.

mod channel;
mod server;

pub use channel::{Channel, MESSAGE_BYTES_MAX};
pub use prost;
pub use server::{Routes, serve};
pub use tonic;

/// Declares the generated modules.
macro_rules! protocols {
    ($($(#[$doc:meta])* $name:ident = $file:literal,)*) => {$(
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all)]
        #[rustfmt::skip]
        #[path = $file]
        pub mod $name;
    )*};
}

protocols! {
    /// The container runtime interface, `runtime.v1`.
    cri = "generated/cri.rs",
    /// The container storage interface, `csi.v1`.
    csi = "generated/csi.rs",
    /// Device plugins, `v1beta1`.
    deviceplugin = "generated/deviceplugin.rs",
    /// Drivers of dynamic resources, `v1`.
    dra = "generated/dra.rs",
    /// Drivers of dynamic resources, `v1beta1`.
    dra_v1beta1 = "generated/dra_v1beta1.rs",
    /// Health of dynamic resources, `v1`.
    dra_health = "generated/dra_health.rs",
    /// How plugins make themselves known, `pluginregistration`.
    pluginregistration = "generated/pluginregistration.rs",
    /// Which resources pods have, `v1`.
    podresources = "generated/podresources.rs",
}
