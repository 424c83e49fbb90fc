//! The table of resource kinds, their strategies, the generic verbs and the watch cache.
//!
//! Everything that reads or changes an object comes through [`Registry`]; nobody else touches the store.
//! A verb takes a row of the table and does the same for every kind; what is particular to a kind is its
//! [`strategy::Strategy`].
//!
//! **Invariant:** knows nothing of HTTP, and no verb names a kind.

pub mod admit;
pub mod allocate;
pub mod cache;
pub mod cells;
pub mod columns;
pub mod convert;
pub mod custom;
pub mod decode;
pub mod delete;
pub mod error;
pub mod jsonpath;
pub mod read;
pub mod resource;
pub mod runtime;
pub mod strategy;
pub mod table;
pub mod validate;
mod version;
pub mod write;

use std::sync::Arc;

use arc_swap::ArcSwap;
use meta::Status;
use stdx::{Clock, Random};
use store::Store;

pub use admit::Admit;
pub use cache::{Cacher, Change, Filter, Reader, Seen};
pub use delete::DeleteOptions;
pub use read::{List, ListOptions};
pub use resource::{ResourceDef, ResourceTable, Subresource};
pub use runtime::{RuntimeConfig, RuntimeConfigError};
pub use strategy::child;
pub use write::{FieldValidation, Patch, Target, WriteOptions, Written};

/// The server's state and the verbs over it.
pub struct Registry {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cacher: Arc<Cacher>,
    table: ArcSwap<ResourceTable>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) allocators: Arc<allocate::Allocators>,
}

/// The registry could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error("cannot load the state from the store")]
    Store(#[from] store::Error),
    /// The built-in table is damaged.
    #[error(transparent)]
    Table(#[from] resource::TableError),
    /// What is to be served cannot be understood.
    #[error(transparent)]
    Runtime(#[from] RuntimeConfigError),
    /// The service address range cannot be used.
    #[error(transparent)]
    Range(#[from] allocate::RangeError),
}

/// What a registry needs to know of its cluster.
#[derive(Debug, Clone)]
pub struct Config {
    /// Range of Service addresses, e.g. `10.43.0.0/16`.
    pub service_cidr: String,
    /// Range of node ports, inclusive.
    pub node_ports: std::ops::RangeInclusive<u16>,
    /// Which versions of the API are served.
    pub runtime: RuntimeConfig,
}

impl Registry {
    /// Loads the state and begins to follow the store.
    pub async fn start(
        store: Arc<dyn Store>,
        config: &Config,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Result<Arc<Registry>, StartError> {
        let table = ResourceTable::builtin()?;
        let selectable = (table.rows().iter())
            .filter(|r| r.is_stored() && r.stored_as.is_none())
            .map(|r| (r.storage_prefix(), r.selectable.clone()))
            .collect();
        let cacher = Cacher::start(store.clone(), selectable).await?;
        // Kept objects are cached in every case: a version that is off today may be on tomorrow.
        let table = table.served(&config.runtime)?;
        let allocators =
            Arc::new(allocate::Allocators::new(&config.service_cidr, config.node_ports.clone())?);
        if let Some(services) = table.find("", "v1", "services") {
            allocate::follow(&allocators, &cacher.kind(&services.storage_prefix()));
        }
        Ok(Arc::new(Registry {
            store,
            cacher,
            table: ArcSwap::from_pointee(table),
            clock,
            random,
            allocators,
        }))
    }

    /// The table as it is now.
    pub fn table(&self) -> Arc<ResourceTable> {
        self.table.load_full()
    }

    /// Serves these custom resources and no others. Their objects are read in the new way, and watches end,
    /// where a row is not the one that was there.
    pub async fn set_custom(&self, rows: Vec<Arc<ResourceDef>>) -> Result<(), Status> {
        let old = self.table();
        let table = Arc::new(old.with_custom(rows));
        self.table.store(table.clone());
        let of = |table: &ResourceTable| {
            let mut prefixes: std::collections::BTreeMap<String, Vec<Arc<ResourceDef>>> = Default::default();
            for row in table.rows().iter().filter(|r| r.custom.is_some()) {
                prefixes.entry(row.storage_prefix()).or_default().push(row.clone());
            }
            prefixes
        };
        let (before, now) = (of(&old), of(&table));
        for (prefix, rows) in &now {
            let same = before
                .get(prefix)
                .is_some_and(|b| b.len() == rows.len() && b.iter().zip(rows).all(|(a, b)| Arc::ptr_eq(a, b)));
            if !same {
                self.cacher.reshape(prefix, custom::reader(rows)).await?;
            }
        }
        for prefix in before.keys().filter(|p| !now.contains_key(*p)) {
            self.cacher.reshape(prefix, Reader::default()).await?;
        }
        Ok(())
    }

    /// The watch caches.
    pub fn cacher(&self) -> &Arc<Cacher> {
        &self.cacher
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}
