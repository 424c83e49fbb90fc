//! Certificates and certificate requests as values: PEM blocks, what a request asks for, and the rules by which
//! Kubernetes' own signers judge it.
//!
//! Validation, admission, controllers and the authority all read requests through this crate, so that they agree
//! on what a request says.
//!
//! **Invariant:** no IO, no keys, nothing of the API beyond the names of signers and usages.

pub mod der;
pub mod pem;
mod request;
pub mod signer;

pub use request::{Request, chain_problem, trust_bundle_problem};

/// A certificate or request cannot be read. The text is what clients see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The PEM block is missing or of another kind.
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    NoRequest,
    /// The DER inside does not parse.
    #[error("{0}")]
    Malformed(String),
    /// The signature was not made with the key inside.
    #[error("the signature of the request does not verify")]
    Signature,
}
