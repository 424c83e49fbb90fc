//! Content negotiation: what shape the client wants, and what it sends.

use http::{HeaderMap, header};
use meta::{Reason, Status};

/// The shape of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The objects themselves.
    Object,
    /// A table for people.
    Table,
    /// Metadata only.
    Partial,
    /// Aggregated discovery.
    Discovery,
}

/// The first shape in the `Accept` header that is served.
pub fn accept(headers: &HeaderMap) -> Result<Shape, Status> {
    let values: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    if values.is_empty() {
        return Ok(Shape::Object);
    }
    for clause in values.iter().flat_map(|v| v.split(',')) {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let parameter = |name: &str| parameters.iter().find(|(k, _)| *k == name).map_or("", |(_, v)| *v);
        if !matches!(
            media,
            "application/json" | "*/*" | "application/*" | "application/yaml" | "text/html" | ""
        ) {
            continue;
        }
        match (parameter("as"), parameter("g")) {
            ("", _) => return Ok(Shape::Object),
            ("Table", _) => return Ok(Shape::Table),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", _) => return Ok(Shape::Partial),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io")
                if matches!(parameter("v"), "v2" | "v2beta1") =>
            {
                return Ok(Shape::Discovery);
            }
            _ => {}
        }
    }
    Err(Status::new(
        406,
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json, application/yaml",
    ))
}

/// The body of a write as JSON: JSON stays as it is, YAML is converted.
pub fn body_as_json(headers: &HeaderMap, body: bytes::Bytes) -> Result<bytes::Bytes, Status> {
    match content_type(headers).as_str() {
        "" | "application/json" => Ok(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml_to_json(&body),
        PROTOBUF => protobuf_to_json(&body),
        other => Err(unsupported(other, &["application/json", "application/yaml", PROTOBUF])),
    }
}

/// Media type of Kubernetes' protobuf.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Protobuf to JSON: the envelope names the type, the type table does the rest.
fn protobuf_to_json(body: &[u8]) -> Result<bytes::Bytes, Status> {
    let refuse = |e: schema::protobuf::ProtobufError| Status::bad_request(e.to_string());
    let envelope = schema::protobuf::open(body).map_err(refuse)?;
    let schema = schema::Schema::builtin();
    let (group, version) = meta::gvk::split_api_version(envelope.api_version);
    // Options have no group of their own: every group serves them.
    let ty = (schema.kind(group, version, envelope.kind))
        .or_else(|| schema.named(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{}", envelope.kind)))
        .ok_or_else(|| {
            Status::bad_request(format!(
                "no kind \"{}\" is registered for version \"{}\"",
                envelope.kind, envelope.api_version
            ))
        })?;
    let mut object = schema::protobuf::to_json(schema, ty, envelope.raw).map_err(refuse)?;
    object.insert("apiVersion".into(), envelope.api_version.into());
    object.insert("kind".into(), envelope.kind.into());
    Ok(serde_json::Value::Object(object).to_string().into())
}

/// The media type of the request body without parameters.
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// 415.
pub fn unsupported(found: &str, accepted: &[&str]) -> Status {
    let message = format!(
        "the body of the request was in an unknown format - accepted media types include: {} (found {found})",
        accepted.join(", ")
    );
    Status::new(415, Reason::UnsupportedMediaType, message)
}

/// YAML (or JSON, which is YAML) to JSON, with the dialect that Go's YAML reader has.
pub fn yaml_to_json(body: &[u8]) -> Result<bytes::Bytes, Status> {
    if body.first() == Some(&b'{') {
        return Ok(bytes::Bytes::copy_from_slice(body));
    }
    let text = std::str::from_utf8(body)
        .map_err(|_| Status::bad_request("error decoding YAML: the body is not UTF-8"))?;
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
    };
    let value: serde_json::Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))?;
    Ok(value.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(accept_header: &str) -> Result<Shape, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept_header.parse().unwrap());
        accept(&headers).map_err(|s| s.code)
    }

    #[test]
    fn shapes() {
        assert_eq!(shape("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), Ok(Shape::Table));
        assert_eq!(shape("application/vnd.kubernetes.protobuf,application/json"), Ok(Shape::Object));
        assert_eq!(
            shape("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"),
            Ok(Shape::Discovery)
        );
        assert_eq!(
            shape("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
            Ok(Shape::Partial)
        );
        assert_eq!(shape("application/vnd.kubernetes.protobuf"), Err(406));
    }

    #[test]
    fn yaml_is_read_as_go_reads_it() {
        let json = yaml_to_json(b"a: 0644\nb: yes\nc: {d: [1]}\n").unwrap();
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["a"], 420);
        assert_eq!(value["c"]["d"][0], 1);
        assert!(yaml_to_json(b"a: [").is_err());
    }
}
