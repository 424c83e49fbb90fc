//! Typed verbs: one-line wrappers that decode after and encode before the untyped ones do the work.

use api::Typed;

use crate::client::Client;
use crate::error::Result;
use crate::params::{DeleteParams, ListParams, Patch};

impl Client {
    /// Reads one object.
    pub async fn get_typed<T: Typed>(&self, namespace: &str, name: &str) -> Result<T> {
        Ok(T::decode(&self.get_bytes(&T::GVR, namespace, name).await?)?)
    }

    /// Lists objects, all pages' worth at once, with the list's resource version.
    pub async fn list_typed<T: Typed>(
        &self,
        namespace: &str,
        params: &ListParams,
    ) -> Result<(Vec<T>, String)> {
        let list = self.list(&T::GVR, namespace, params).await?;
        let items = list.items.iter().map(|item| T::decode(item)).collect::<Result<Vec<T>, _>>()?;
        Ok((items, list.resource_version))
    }

    /// Creates an object in the namespace it names.
    pub async fn create_typed<T: Typed>(&self, object: &T) -> Result<T> {
        Ok(T::from_value(self.create(&T::GVR, object.namespace(), &object.encode()).await?)?)
    }

    /// Replaces an object.
    pub async fn update_typed<T: Typed>(&self, object: &T) -> Result<T> {
        Ok(T::from_value(self.update(&T::GVR, object.namespace(), object.name(), &object.encode()).await?)?)
    }

    /// Replaces the status of an object.
    pub async fn update_status_typed<T: Typed>(&self, object: &T) -> Result<T> {
        let answer = self.update_status(&T::GVR, object.namespace(), object.name(), &object.encode()).await?;
        Ok(T::from_value(answer)?)
    }

    /// Patches an object or, with a non-empty `subresource`, its subresource.
    pub async fn patch_typed<T: Typed>(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Patch,
    ) -> Result<T> {
        Ok(T::from_value(self.patch(&T::GVR, namespace, name, subresource, patch).await?)?)
    }

    /// Deletes an object.
    pub async fn delete_typed<T: Typed>(
        &self,
        namespace: &str,
        name: &str,
        params: &DeleteParams,
    ) -> Result<()> {
        self.delete(&T::GVR, namespace, name, params).await.map(drop)
    }
}
