//! The seam between the verbs and admission: what a plugin chain is asked, and when.

use async_trait::async_trait;
use meta::{Status, UserInfo};
use serde_json::{Map, Value};

use crate::resource::ResourceDef;

/// The request as admission sees it.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Resource.
    pub def: &'a ResourceDef,
    /// Subresource, empty for the object itself.
    pub subresource: &'a str,
    /// Namespace, empty for cluster scope.
    pub namespace: &'a str,
    /// Name; empty for a create with `generateName`.
    pub name: &'a str,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'static str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Whether nothing will be stored.
    pub dry_run: bool,
}

/// An admission chain. Called after decoding and defaulting and before validation (mutate), then after
/// validation (validate); inside the compare-and-set loop for updates, so it may run more than once.
#[async_trait]
pub trait Admit: Send + Sync {
    /// May change the object.
    async fn mutate(
        &self,
        request: &Attributes<'_>,
        object: &mut Map<String, Value>,
        old: Option<&Map<String, Value>>,
    ) -> Result<(), Status>;

    /// May refuse the request. `object` is absent for deletions.
    async fn validate(
        &self,
        request: &Attributes<'_>,
        object: Option<&Map<String, Value>>,
        old: Option<&Map<String, Value>>,
    ) -> Result<(), Status>;
}

/// Admits everything: for tests, and for what the server itself writes while it starts.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdmitAll;

#[async_trait]
impl Admit for AdmitAll {
    async fn mutate(
        &self,
        _: &Attributes<'_>,
        _: &mut Map<String, Value>,
        _: Option<&Map<String, Value>>,
    ) -> Result<(), Status> {
        Ok(())
    }
    async fn validate(
        &self,
        _: &Attributes<'_>,
        _: Option<&Map<String, Value>>,
        _: Option<&Map<String, Value>>,
    ) -> Result<(), Status> {
        Ok(())
    }
}
