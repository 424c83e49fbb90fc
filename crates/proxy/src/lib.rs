//! Services and EndpointSlices to packet rules: a pure compiler and one atomic transaction.
//!
//! [`compile`] turns one Service into its part of a [`ruleset::Ruleset`], a value of flat maps; [`run`]
//! follows the API and hands what differs to a [`run::Programmer`], which puts it into the kernel: [`program::Nftables`].
//!
//! **Invariant:** only `program` knows how rules look in the kernel.

pub mod compile;
pub mod program;
pub mod ruleset;
pub mod run;

pub use compile::Place;
pub use program::Nftables;
pub use ruleset::{Change, Ruleset};
pub use run::{Programmer, run};
