//! Data tables of every built-in type and the interpreters over them: decode, default, prune, validate,
//! merge, apply.
//!
//! **Invariant:** no typed structs. A kind is rows of data; a custom resource makes the same rows at run
//! time and goes through the same code.

pub mod apply;
pub mod decode;
pub mod default;
pub mod encode;
pub mod fieldset;
pub mod omit;
pub mod protobuf;
pub mod required;
pub mod strategic;
pub mod structural;
pub mod time;
pub mod typed;
pub mod types;
pub mod wire;

pub use types::{Schema, Shape, TypeId};
