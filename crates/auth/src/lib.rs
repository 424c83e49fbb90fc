//! Who is calling and what may they do: certificates, tokens, RBAC and the node authorizer as pure decisions.
//!
//! A request passes `authenticate` (certificate or token -> `UserInfo`), then the authorizers: `node` for
//! nodes, `rbac` for everyone. `pki` and `token` make the credentials that `authenticate` accepts.
//!
//! **Invariant:** knows nothing of HTTP requests or storage: callers hand in attributes and objects as JSON.

pub mod authenticate;
pub mod authorization;
pub mod bootstrap;
mod issue;
pub mod node;
pub mod oidc;
pub mod pki;
pub mod rbac;
pub mod request_header;
pub mod restriction;
pub mod revocation;
pub mod rules;
pub mod tls;
pub mod token;

pub use authenticate::{Authenticator, ServiceAccountLookup};
pub use rbac::{Attributes, Decision, RbacIndex};
