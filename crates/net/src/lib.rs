//! Links, addresses, routes and nftables by netlink; address management; the pod network.
//!
//! Everything speaks netlink through one small synchronous socket (`netlink`): a request is encoded, sent
//! and acknowledged. Links are made inside the pod's namespace on a thread of its own, because a namespace
//! belongs to a thread; rules go to the kernel as one transaction (`nft`).
//!
//! **Invariant:** knows nothing of the API: pods and Services reach it as addresses and ports.

pub mod features;
pub mod ipam;
pub mod link;
pub mod netlink;
pub mod nft;
pub mod pods;

pub use pods::{PodNetwork, PodNetworkConfig};
