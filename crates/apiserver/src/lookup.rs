//! Looks up, in the watch cache, the objects that ServiceAccount tokens are bound to.

use std::sync::Arc;

use auth::token::{Found, ServiceAccountLookup};
use registry::Registry;

/// A lookup over the registry.
pub struct RegistryLookup(Arc<Registry>);

impl RegistryLookup {
    /// Looks things up in `registry`.
    pub fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(RegistryLookup(registry))
    }

    fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<Found> {
        let table = self.0.table();
        let def = table.find("", "v1", resource)?;
        let object = self.0.current(def, namespace, name)?.to_value();
        let metadata = &object["metadata"];
        Some(Found {
            uid: metadata["uid"].as_str().unwrap_or_default().to_owned(),
            deletion_timestamp: metadata["deletionTimestamp"].as_str().and_then(|t| t.parse().ok()),
        })
    }
}

impl ServiceAccountLookup for RegistryLookup {
    fn service_account(&self, namespace: &str, name: &str) -> Option<Found> {
        self.find("serviceaccounts", namespace, name)
    }
    fn pod(&self, namespace: &str, name: &str) -> Option<Found> {
        self.find("pods", namespace, name)
    }
    fn secret(&self, namespace: &str, name: &str) -> Option<Found> {
        self.find("secrets", namespace, name)
    }
    fn node(&self, name: &str) -> Option<Found> {
        self.find("nodes", "", name)
    }
}
