//! Images: registry client, archives, content store, unpacking to layers.
//!
//! A pull (or an import) brings blobs into the content store, unpacks each layer once into a directory that
//! overlayfs can use as a lower layer, and last of all writes the reference. Removing an image removes its
//! references; what nothing refers to any more goes with it.
//!
//! **Invariant:** a blob or layer directory that is visible under its final name is complete and was checked
//! against its digest. Everything unfinished lives under `tmp/` and is dropped when the store opens.
//!
//! **Invariant:** nothing here knows of pods or containers; who uses an image holds an [`ImageHold`].

mod archive;
mod assemble;
mod cache;
mod config;
mod content;
mod credentials;
mod digest;
mod download;
mod error;
mod pack;
mod pins;
mod pull;
mod push;
mod reference;
mod refs;
mod registries;
mod registry;
mod save;
mod store;
mod unpack;
mod user;

pub use archive::{ImportOptions, ImportedImage};
pub use assemble::{BaseImage, LayerRef, MadeImage, NewImage, StagedTree};
pub use cache::CacheRecord;
pub use credentials::credentials;
pub use digest::{Digest, Hasher};
pub use download::Download;
pub use error::{Error, Result};
pub use pins::ImageHold;
pub use push::{PushRequest, PushResult};
pub use reference::Reference;
pub use registries::{Registries, RegistriesError};
pub use save::{ArchiveFormat, Export};
pub use store::{ImageStore, ResolvedImage, StoreConfig};
pub use unpack::{extract_archive, is_archive};
pub use user::{Identity, UserError, resolve_user};
