//! Custom resources as rows of the table: what a definition says about one version, and how objects get from
//! the stored version to it and back.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use meta::Status;
use schema::structural::{Props, prune};
use serde_json::{Map, Value};

use crate::cache::Reader;
use crate::resource::ResourceDef;
use crate::write::into_map;

/// Converts objects between versions of one kind; in the server this is a webhook.
#[async_trait]
pub trait Convert: Send + Sync {
    /// Converts `objects`, none of which is in the version `to` (an `apiVersion`), and keeps their order.
    async fn convert(
        &self,
        objects: Vec<Map<String, Value>>,
        to: &str,
    ) -> Result<Vec<Map<String, Value>>, Status>;
}

/// Where the scale subresource finds its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    /// Simple path of the wanted number, e.g. `.spec.replicas`.
    pub spec: Box<str>,
    /// Simple path of the current number.
    pub status: Box<str>,
    /// Simple path of the selector as text.
    pub selector: Option<Box<str>>,
}

/// One version of a custom resource.
pub struct Custom {
    /// Name of the definition.
    pub definition: Box<str>,
    /// `apiVersion` of this version.
    pub api_version: String,
    /// `apiVersion` that new objects are stored in.
    pub storage_api_version: String,
    /// Schema of this version.
    pub props: Arc<Props>,
    /// Schema of the stored version.
    pub storage_props: Arc<Props>,
    /// Schema of this version as its author wrote it, for OpenAPI.
    pub open_api: Value,
    /// The scale subresource.
    pub scale: Option<Scale>,
    /// Warning for everybody who uses this version.
    pub warning: Option<Box<str>>,
    /// Whether the definition is being deleted: nothing new may be created.
    pub terminating: bool,
    /// How versions are converted; none where they differ by name only.
    pub converter: Option<Arc<dyn Convert>>,
}

fn version_of(object: &Map<String, Value>) -> &str {
    object.get("apiVersion").and_then(Value::as_str).unwrap_or_default()
}

/// Brings an object into the form that a schema gives it.
fn settle(props: &Props, object: &mut Map<String, Value>) {
    prune::prune(props, object);
    prune::default(props, object);
}

impl Custom {
    /// From this version to the stored one.
    pub async fn to_storage(&self, mut object: Map<String, Value>) -> Result<Map<String, Value>, Status> {
        if self.api_version == self.storage_api_version {
            return Ok(object);
        }
        match &self.converter {
            None => {
                object.insert("apiVersion".into(), self.storage_api_version.as_str().into());
                Ok(object)
            }
            Some(converter) => {
                let mut converted = converter.convert(vec![object], &self.storage_api_version).await?;
                let mut object =
                    converted.pop().ok_or_else(|| Status::internal("no object was converted"))?;
                settle(&self.storage_props, &mut object);
                Ok(object)
            }
        }
    }

    /// From whatever version they are stored in to this one.
    pub async fn from_storage(
        &self,
        objects: Vec<Map<String, Value>>,
    ) -> Result<Vec<Map<String, Value>>, Status> {
        let differs = |o: &Map<String, Value>| version_of(o) != self.api_version;
        let Some(converter) = &self.converter else {
            let settled = objects.into_iter().map(|mut object| {
                if differs(&object) {
                    object.insert("apiVersion".into(), self.api_version.as_str().into());
                    settle(&self.props, &mut object);
                }
                object
            });
            return Ok(settled.collect());
        };
        let foreign: Vec<_> = objects.iter().filter(|o| differs(o)).cloned().collect();
        if foreign.is_empty() {
            return Ok(objects);
        }
        let mut converted = converter.convert(foreign, &self.api_version).await?.into_iter();
        let mut out = Vec::with_capacity(objects.len());
        for object in objects {
            if !differs(&object) {
                out.push(object);
                continue;
            }
            let mut object =
                converted.next().ok_or_else(|| Status::internal("too few objects were converted"))?;
            settle(&self.props, &mut object);
            out.push(object);
        }
        Ok(out)
    }
}

/// How the objects that all `rows` share are read from the store: with the schema of today.
pub fn reader(rows: &[Arc<ResourceDef>]) -> Reader {
    let mut selectable: Vec<Arc<str>> = rows.iter().flat_map(|r| r.selectable.iter().cloned()).collect();
    selectable.sort();
    selectable.dedup();
    let Some(custom) = rows.first().and_then(|r| r.custom.clone()) else {
        return Reader { selectable: selectable.into(), shape: None };
    };
    let shape = move |stored: &Bytes| -> Bytes {
        let mut object = into_map(serde_json::from_slice(stored).unwrap_or_default());
        if version_of(&object) != custom.storage_api_version {
            if custom.converter.is_some() {
                // Only the webhook can convert it, when somebody asks.
                return stored.clone();
            }
            object.insert("apiVersion".into(), custom.storage_api_version.as_str().into());
        }
        settle(&custom.storage_props, &mut object);
        meta::object::encode(&object)
    };
    Reader { selectable: selectable.into(), shape: Some(Arc::new(shape)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Upper;

    #[async_trait]
    impl Convert for Upper {
        async fn convert(
            &self,
            objects: Vec<Map<String, Value>>,
            to: &str,
        ) -> Result<Vec<Map<String, Value>>, Status> {
            let one = |mut o: Map<String, Value>| {
                o.insert("apiVersion".into(), to.into());
                o.insert("converted".into(), true.into());
                o
            };
            Ok(objects.into_iter().map(one).collect())
        }
    }

    fn custom(converter: Option<Arc<dyn Convert>>) -> Custom {
        let props = Props::parse(&json!({"type": "object", "properties": {
            "converted": {"type": "boolean"}, "b": {"type": "string", "default": "d"}}}));
        Custom {
            definition: "foos.g".into(),
            api_version: "g/v2".into(),
            storage_api_version: "g/v1".into(),
            props: Arc::new(props.clone()),
            storage_props: Arc::new(props),
            open_api: Value::Null,
            scale: None,
            warning: None,
            terminating: false,
            converter,
        }
    }

    #[tokio::test]
    async fn versions_by_name_and_by_webhook() {
        let stored = || into_map(json!({"apiVersion": "g/v1", "kind": "Foo", "old": 1}));
        let renamed = custom(None).from_storage(vec![stored()]).await.unwrap();
        assert_eq!(Value::Object(renamed[0].clone()), json!({"apiVersion": "g/v2", "kind": "Foo", "b": "d"}));
        let already = into_map(json!({"apiVersion": "g/v2", "kind": "Foo"}));
        let both = custom(Some(Arc::new(Upper))).from_storage(vec![already.clone(), stored()]).await.unwrap();
        assert_eq!(both[0], already);
        assert_eq!(both[1]["converted"], true);
    }
}
