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

/// How an answer is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Media {
    /// JSON.
    #[default]
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' protobuf.
    Protobuf,
}

/// What the client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Shape of the objects.
    pub shape: Shape,
    /// How they are written down.
    pub media: Media,
    /// Whether the clause asks for an indented answer.
    pub pretty: bool,
}

/// What an endpoint can answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Protobuf: the field numbers of the kind are known.
    pub protobuf: bool,
    /// Tables and bare metadata.
    pub shapes: bool,
    /// A stream of events instead of one document.
    pub stream: bool,
}

impl Offer {
    /// Everything that any endpoint offers.
    pub const ALL: Offer = Offer { protobuf: true, shapes: true, stream: false };

    fn media(self) -> Vec<(&'static str, Media)> {
        let mut all = vec![("application/json", Media::Json)];
        if !self.stream {
            all.push(("application/yaml", Media::Yaml));
        }
        if self.protobuf {
            all.push((PROTOBUF, Media::Protobuf));
        }
        all
    }
}

/// Most clauses of an `Accept` header that are looked at.
const CLAUSES_MAX: usize = 64;

/// One clause of an `Accept` header.
struct Clause<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Clause<'a> {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let quality = parameters.iter().find(|(k, _)| *k == "q").and_then(|(_, q)| q.parse().ok());
        Clause { media, parameters, quality: quality.unwrap_or(1.0) }
    }

    fn get(&self, name: &str) -> &'a str {
        self.parameters.iter().find(|(k, _)| *k == name).map_or("", |(_, v)| *v)
    }

    /// Wildcards are less wanted than what is named.
    fn precision(&self) -> u8 {
        match self.media {
            "*/*" | "*" => 0,
            m if m.ends_with("/*") => 1,
            _ => 2,
        }
    }

    fn takes(&self, media: &str) -> bool {
        match self.media.split_once('/') {
            _ if self.media == media => true,
            Some(("*", "*")) => true,
            Some((family, "*")) => media.split('/').next() == Some(family),
            _ => self.media == "*",
        }
    }

    /// The shape it asks for, if the endpoint has it.
    fn shape(&self, media: Media, offer: Offer) -> Option<Shape> {
        let meta = self.get("g") == "meta.k8s.io" && matches!(self.get("v"), "v1" | "v1beta1");
        match self.get("as") {
            "" => Some(Shape::Object),
            // People read tables; there is no protobuf of them.
            "Table" if meta && offer.shapes && media != Media::Protobuf => Some(Shape::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if meta && offer.shapes => {
                Some(Shape::Partial)
            }
            "APIGroupDiscoveryList"
                if self.get("g") == "apidiscovery.k8s.io" && matches!(self.get("v"), "v2" | "v2beta1") =>
            {
                Some(Shape::Discovery)
            }
            _ => None,
        }
    }
}

/// The first clause of the `Accept` header that the endpoint can serve.
pub fn wanted(headers: &HeaderMap, offer: Offer) -> Result<Wanted, Status> {
    let values: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let plain = Wanted { shape: Shape::Object, media: Media::Json, pretty: false };
    if values.iter().all(|v| v.trim().is_empty()) {
        return Ok(plain);
    }
    let mut clauses: Vec<Clause<'_>> =
        values.iter().flat_map(|v| v.split(',')).take(CLAUSES_MAX).map(Clause::parse).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality).then(b.precision().cmp(&a.precision())));
    for clause in clauses.iter().filter(|c| c.quality > 0.0) {
        for (name, media) in offer.media() {
            if !clause.takes(name) {
                continue;
            }
            if let Some(shape) = clause.shape(media, offer) {
                let pretty = matches!(clause.get("pretty"), "1" | "true");
                return Ok(Wanted { shape, media, pretty });
            }
        }
    }
    let names = offer.media();
    let suffix = if offer.stream { ";stream=watch" } else { "" };
    let names: Vec<String> = names.iter().map(|(name, _)| format!("{name}{suffix}")).collect();
    let message = format!("only the following media types are accepted: {}", names.join(", "));
    Err(Status::new(406, Reason::NotAcceptable, message))
}

/// The shape of the answer, whatever it is written in.
pub fn accept(headers: &HeaderMap) -> Result<Shape, Status> {
    wanted(headers, Offer::ALL).map(|w| w.shape)
}

/// The body of a write as JSON: JSON stays as it is, YAML is converted.
pub fn body_as_json(headers: &HeaderMap, body: bytes::Bytes) -> Result<bytes::Bytes, Status> {
    match content_type(headers).as_str() {
        "" | "application/json" => Ok(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml_to_json(&body),
        PROTOBUF => protobuf_to_json(&body),
        _ => Err(unsupported(&["application/json", "application/yaml", PROTOBUF])),
    }
}

/// Media type of Kubernetes' protobuf.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

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
pub fn unsupported(accepted: &[&str]) -> Status {
    let message = format!(
        "the body of the request was in an unknown format - accepted media types include: {}",
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
        assert_eq!(shape("application/vnd.kubernetes.protobuf"), Ok(Shape::Object));
        assert_eq!(shape("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io"), Err(406));
        assert_eq!(shape("application/xml"), Err(406));
        assert_eq!(shape("application/json;as=Table;v=v1;g=other"), Err(406));
    }

    fn want(accept_header: &str, offer: Offer) -> Result<(Shape, Media, bool), String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept_header.parse().unwrap());
        wanted(&headers, offer).map(|w| (w.shape, w.media, w.pretty)).map_err(|s| s.message)
    }

    #[test]
    fn media() {
        let none = Offer { protobuf: false, shapes: false, stream: false };
        let stream = Offer { stream: true, ..Offer::ALL };
        let object = |media| Ok((Shape::Object, media, false));
        for (header, offer, expected) in [
            ("", Offer::ALL, object(Media::Json)),
            ("*/*", Offer::ALL, object(Media::Json)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Offer::ALL, object(Media::Json)),
            ("application/yaml", Offer::ALL, object(Media::Yaml)),
            ("application/json;q=0.5,application/yaml", Offer::ALL, object(Media::Yaml)),
            ("*/*,application/yaml", Offer::ALL, object(Media::Yaml)),
            ("application/vnd.kubernetes.protobuf,application/json", Offer::ALL, object(Media::Protobuf)),
            ("application/vnd.kubernetes.protobuf,application/json", none, object(Media::Json)),
            ("application/json;pretty=1", Offer::ALL, Ok((Shape::Object, Media::Json, true))),
            ("application/vnd.kubernetes.protobuf;stream=watch", stream, object(Media::Protobuf)),
            ("application/yaml", stream, Err("only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch".into())),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", none, Err("only the following media types are accepted: application/json, application/yaml".into())),
            ("application/json;q=0", Offer::ALL, Err("only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf".into())),
        ] {
            assert_eq!(want(header, offer), expected, "{header}");
        }
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
