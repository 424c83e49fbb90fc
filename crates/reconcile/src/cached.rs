//! What a cache needs to know of the objects in it.

use api::{DecodeError, Typed};
use serde_json::Value;

/// An object that an informer can keep. Every [`Typed`] kind is one; who needs only a few fields of many
/// kinds (the garbage collector) implements it for a smaller struct.
pub trait Cached: Send + Sync + Sized + 'static {
    /// Reads one object from JSON, leaving out what no reader of the cache needs.
    fn decode_cached(json: &[u8]) -> Result<Self, DecodeError>;
    /// `namespace/name`, or `name` for cluster scope.
    fn cache_key(&self) -> String;
    /// The object's resource version.
    fn cache_version(&self) -> &str;
    /// A smaller form for an object that is seldom looked at, which [`Cached::decode_cached`] reads again.
    /// `None` for objects that are small as they are.
    fn pack(&self) -> Option<Box<[u8]>> {
        None
    }
}

impl<T: Typed> Cached for T {
    fn decode_cached(json: &[u8]) -> Result<Self, DecodeError> {
        let mut value: Value =
            serde_json::from_slice(json).map_err(|source| DecodeError { kind: "object", source })?;
        strip(&mut value);
        T::from_value(value)
    }
    fn cache_key(&self) -> String {
        self.key()
    }
    fn cache_version(&self) -> &str {
        self.resource_version()
    }
    fn pack(&self) -> Option<Box<[u8]>> {
        // A struct has a place for every field that could be set: its JSON takes a tenth of that.
        serde_json::to_vec(&self.encode()).ok().map(Vec::into_boxed_slice)
    }
}

/// Drops `metadata.managedFields`, often half of an object and of no use to a reader of the cache.
fn strip(value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}
