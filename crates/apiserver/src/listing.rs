//! Answers that are lists, made item by item while they are sent: an answer needs the memory of one piece,
//! however many objects there are and whatever form the client wants them in.
//!
//! Flow: `verbs` has the objects in the version asked for; [`answer`] chooses head, item and tail of the form;
//! `body::pieced` sends them. Protobuf puts the length of the whole in front, so messages are measured once
//! per version of an object and made again when they are sent.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use meta::{Object, Status};
use registry::ResourceDef;
use registry::table::{self, IncludeObject};
use schema::encode::{self, ListEnvelope};
use schema::{Schema, TypeId};
use serde_json::Value;

use crate::body::{self, Answer, Each};
use crate::negotiate::{self, Media, Offer, Shape};

/// What a list is made of.
pub struct Listing {
    /// Its row of the resource table.
    pub def: Arc<ResourceDef>,
    /// The list's own metadata.
    pub metadata: Value,
    /// The objects as the cache has them.
    pub objects: Vec<Arc<Object>>,
    /// Their bytes in the version of `def`, in the same order.
    pub shown: Vec<Bytes>,
}

/// The list in the shape and form that the client wants.
pub fn answer(
    headers: &HeaderMap,
    listing: Listing,
    include: IncludeObject,
    now: Timestamp,
) -> Result<Answer, Status> {
    let wanted = negotiate::wanted(headers, Offer::ALL)?;
    let protobuf = wanted.media == Media::Protobuf;
    match negotiate::accept(headers)? {
        Shape::Table => Ok(rows(listing, include, now)),
        Shape::Partial if protobuf => match message_type("meta.k8s.io", "v1", "PartialObjectMetadata") {
            Some(ty) => Ok(partial_messages(listing, ty)),
            None => Ok(partials(listing)),
        },
        Shape::Partial => Ok(partials(listing)),
        _ if protobuf => {
            let def = &listing.def;
            let builtin = def.custom.is_none();
            match message_type(&def.group, &def.version, &def.kind).filter(|_| builtin) {
                Some(ty) => Ok(messages(listing, ty)),
                None => Ok(objects(listing)),
            }
        }
        _ => Ok(objects(listing)),
    }
}

fn message_type(group: &str, version: &str, kind: &str) -> Option<TypeId> {
    let schema = Schema::builtin();
    schema.kind(group, version, kind).filter(|ty| schema.has_numbers(*ty))
}

/// The list of the objects themselves: bytes of the cache with commas between them.
fn objects(listing: Listing) -> Answer {
    let (kind, version) = (&listing.def.list_kind, listing.def.api_version());
    let head = json_head(kind, &version, &listing.metadata);
    let exact = exact_json(&head, &listing.shown);
    json(head, listing.shown, Box::new(|item, out| out.extend_from_slice(item)), Some(exact))
}

fn json_head(kind: &str, version: &str, metadata: &Value) -> String {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[")
}

/// Bytes of a list whose items go out as they are.
fn exact_json(head: &str, items: &[Bytes]) -> u64 {
    let commas = items.len().saturating_sub(1);
    (head.len() + items.iter().map(Bytes::len).sum::<usize>() + commas + JSON_TAIL.len()) as u64
}

/// What ends a list in JSON.
const JSON_TAIL: &[u8] = b"]}";

/// A JSON answer whose items `each` writes, with commas between them.
fn json(head: String, items: Vec<Bytes>, each: Each, exact: Option<u64>) -> Answer {
    let mut first = true;
    let mut each = each;
    let separated: Each = Box::new(move |item, out| {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        each(item, out);
    });
    let body = body::pieced(head.into(), items, separated, Bytes::from_static(JSON_TAIL), exact);
    typed(body::finite(body), "application/json")
}

fn typed(mut answer: Answer, media: &'static str) -> Answer {
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    answer
}

fn partials(listing: Listing) -> Answer {
    let head = json_head("PartialObjectMetadataList", "meta.k8s.io/v1", &listing.metadata);
    json(head, listing.shown, Box::new(|item, out| out.extend_from_slice(&table::partial_bytes(item))), None)
}

fn rows(listing: Listing, include: IncludeObject, now: Timestamp) -> Answer {
    let Listing { def, metadata, shown, .. } = listing;
    let head = format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\
         \"columnDefinitions\":{},\"rows\":[",
        table::column_definitions(&def)
    );
    let row = move |item: &Bytes, out: &mut Vec<u8>| table::write_row(out, &def, item, include, now);
    json(head, shown, Box::new(row), None)
}

/// The list in protobuf. An object that goes out as the cache has it is measured once in its life.
fn messages(listing: Listing, ty: TypeId) -> Answer {
    let Listing { def, metadata, objects, shown } = listing;
    let measure = |json: &Bytes| message(ty, json).len();
    let lengths = objects.iter().zip(&shown).map(|(object, bytes)| {
        if bytes.as_ptr() != object.bytes.as_ptr() {
            return measure(bytes);
        }
        *object.message_bytes.get_or_init(|| measure(bytes) as u32) as usize
    });
    let envelope = ListEnvelope::new(&def.api_version(), &def.list_kind, &list_metadata(&metadata), lengths);
    enveloped(envelope, shown, Box::new(move |json| message(ty, json)))
}

fn partial_messages(listing: Listing, ty: TypeId) -> Answer {
    let each = move |json: &Bytes| message(ty, &table::partial_bytes(json));
    let lengths = listing.shown.iter().map(|json| each(json).len());
    let metadata = list_metadata(&listing.metadata);
    let envelope = ListEnvelope::new("meta.k8s.io/v1", "PartialObjectMetadataList", &metadata, lengths);
    enveloped(envelope, listing.shown, Box::new(each))
}

fn enveloped(
    envelope: ListEnvelope,
    items: Vec<Bytes>,
    each: Box<dyn Fn(&Bytes) -> Vec<u8> + Send>,
) -> Answer {
    let item: Each = Box::new(move |json, out| encode::list_item(out, &each(json)));
    let exact = Some(envelope.total_bytes);
    let body = body::pieced(envelope.head.into(), items, item, envelope.tail.into(), exact);
    typed(body::finite(body), negotiate::PROTOBUF)
}

/// The object's message. What is in the cache was decoded strictly, so it encodes.
fn message(ty: TypeId, json: &[u8]) -> Vec<u8> {
    encode::message(Schema::builtin(), ty, json).unwrap_or_default()
}

/// The list's metadata as a message.
fn list_metadata(metadata: &Value) -> Vec<u8> {
    let schema = Schema::builtin();
    // Every list has the same metadata; that of Pods stands for all.
    let Some(ty) = schema.kind("", "v1", "PodList") else { return Vec::new() };
    let list = serde_json::json!({"metadata": metadata}).to_string();
    encode::message(schema, ty, list.as_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::BodyExt;
    use registry::ResourceTable;
    use serde_json::json;

    use super::*;

    fn listing(n: usize) -> Listing {
        let table = ResourceTable::builtin().unwrap();
        let def = table.find("", "v1", "configmaps").unwrap();
        let object = |i: usize| {
            let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "y".repeat(100)},
                "metadata": {"name": format!("n{i}"), "labels": {"a": "b"}}});
            let stored = meta::object::encode(value.as_object().unwrap());
            Arc::new(Object::at_revision(&stored, 7, &Arc::from([])).unwrap())
        };
        let objects: Vec<_> = (0..n).map(object).collect();
        let shown = objects.iter().map(|o| o.bytes.clone()).collect();
        Listing { def: def.clone(), metadata: json!({"resourceVersion": "9"}), objects, shown }
    }

    async fn ask(accept: &str, n: usize) -> (String, Vec<u8>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        let now = Timestamp::UNIX_EPOCH;
        let answer = answer(&headers, listing(n), IncludeObject::Metadata, now).unwrap();
        let exact = answer.body().size_hint().exact();
        let media = answer.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let (mut body, mut all) = (answer.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(data.len() < 66 << 10, "a piece of {}", data.len());
            all.extend_from_slice(&data);
        }
        assert!(exact.is_none_or(|size| size == all.len() as u64));
        (media, all)
    }

    #[tokio::test]
    async fn every_form_comes_in_pieces_and_holds_every_object() {
        for n in [0, 1, 3, 5000] {
            let (media, all) = ask("application/json", n).await;
            let list: Value = serde_json::from_slice(&all).unwrap();
            assert_eq!(media, "application/json");
            assert_eq!(list["items"].as_array().unwrap().len(), n);
            let (_, all) = ask("application/json;as=Table;v=v1;g=meta.k8s.io", n).await;
            let table: Value = serde_json::from_slice(&all).unwrap();
            assert_eq!(table["rows"].as_array().unwrap().len(), n);
            assert_eq!(table["metadata"]["resourceVersion"], "9");
            if n == 1 {
                assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
                assert_eq!(table["rows"][0]["cells"][0], "n0");
            }
            let partial = "as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
            let (_, all) = ask(&format!("application/json;{partial}"), n).await;
            let json: Value = serde_json::from_slice(&all).unwrap();
            assert_eq!(json["items"].as_array().unwrap().len(), n);
            for (accept, kind, group) in [
                (negotiate::PROTOBUF.to_owned(), "ConfigMapList", ""),
                (format!("{};{partial}", negotiate::PROTOBUF), "PartialObjectMetadataList", "meta.k8s.io"),
            ] {
                let (media, all) = ask(&accept, n).await;
                assert_eq!(media, negotiate::PROTOBUF);
                let envelope = schema::protobuf::open(&all).unwrap();
                let schema = Schema::builtin();
                let ty = schema.kind(group, "v1", kind).unwrap();
                let list = Value::Object(schema::protobuf::to_json(schema, ty, envelope.raw).unwrap());
                assert_eq!(list["items"].as_array().map_or(0, Vec::len), n, "{kind}");
                assert_eq!(list["metadata"]["resourceVersion"], "9");
                if n > 0 {
                    assert_eq!(list["items"][0]["metadata"]["labels"]["a"], "b");
                }
            }
        }
    }
}
