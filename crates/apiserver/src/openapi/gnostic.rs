//! OpenAPI documents in protobuf, as command-line clients ask for them: the messages of gnostic's
//! `openapi.v2` and `openapi.v3` packages, described as tables of field numbers.

use schema::wire;
use serde_json::Value;

/// How a JSON value is written.
#[derive(Clone, Copy)]
enum Kind {
    /// A string.
    Text,
    /// A boolean.
    Flag,
    /// A number as a double.
    Number,
    /// A whole number.
    Integer,
    /// Repeated strings.
    Texts,
    /// Any value, as YAML text.
    Any,
    /// Repeated values of any type.
    Anys,
    /// A message.
    One(&'static Message),
    /// Repeated values.
    Many(&'static Kind),
    /// A message whose field 1 is repeated pairs of name and value.
    Map(&'static Kind),
    /// A message whose field with this number is the value.
    Inside(u32, &'static Kind),
    /// A message whose field with this number is repeated pairs.
    Pairs(u32, &'static Kind),
    /// A message with one of several fields, chosen by the value.
    Choice(fn(&Value) -> (u32, Kind)),
}

/// A message: fields by JSON name, and the number of the repeated extensions.
struct Message {
    fields: &'static [(&'static str, u32, Kind)],
    extensions: u32,
}

fn write(out: &mut Vec<u8>, number: u32, kind: Kind, value: &Value) {
    match kind {
        Kind::Text => {
            if let Some(text) = value.as_str() {
                wire::bytes(out, number, text.as_bytes());
            }
        }
        Kind::Flag => {
            if value == true {
                wire::number(out, number, 1);
            }
        }
        Kind::Number => {
            if let Some(n) = value.as_f64() {
                wire::double(out, number, n);
            }
        }
        Kind::Integer => {
            if let Some(n) = value.as_u64() {
                wire::number(out, number, n);
            }
        }
        Kind::Texts => {
            for text in value.as_array().into_iter().flatten().chain(value.is_string().then_some(value)) {
                write(out, number, Kind::Text, text);
            }
        }
        Kind::Any => wire::message(out, number, |out| any(out, value)),
        Kind::Anys => {
            for one in value.as_array().into_iter().flatten() {
                wire::message(out, number, |out| any(out, one));
            }
        }
        Kind::One(message) => wire::message(out, number, |out| fields(out, message, value)),
        Kind::Many(item) => {
            value.as_array().into_iter().flatten().for_each(|v| write(out, number, *item, v));
        }
        Kind::Map(item) => wire::message(out, number, |out| pairs(out, 1, *item, value)),
        Kind::Pairs(inner, item) => wire::message(out, number, |out| pairs(out, inner, *item, value)),
        Kind::Inside(inner, item) => wire::message(out, number, |out| write(out, inner, *item, value)),
        Kind::Choice(choose) => {
            let (inner, kind) = choose(value);
            wire::message(out, number, |out| write(out, inner, kind, value));
        }
    }
}

fn any(out: &mut Vec<u8>, value: &Value) {
    // JSON is YAML.
    let text = match value {
        Value::String(s) if s.chars().all(|c| c.is_ascii_alphanumeric()) => format!("{s}\n"),
        other => format!("{other}\n"),
    };
    wire::bytes(out, 2, text.as_bytes());
}

fn pairs(out: &mut Vec<u8>, number: u32, item: Kind, value: &Value) {
    for (name, value) in value.as_object().into_iter().flatten() {
        wire::message(out, number, |out| {
            wire::bytes(out, 1, name.as_bytes());
            write(out, 2, item, value);
        });
    }
}

fn fields(out: &mut Vec<u8>, message: &Message, value: &Value) {
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Some((_, number, kind)) = message.fields.iter().find(|(n, ..)| n == name) {
            write(out, *number, *kind, value);
        } else if name.starts_with("x-") && message.extensions > 0 {
            wire::message(out, message.extensions, |out| {
                wire::bytes(out, 1, name.as_bytes());
                wire::message(out, 2, |out| any(out, value));
            });
        }
    }
}

/// A v2 document.
pub fn v2(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    fields(&mut out, &two::DOCUMENT, document);
    out
}

/// A v3 document.
pub fn v3(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    fields(&mut out, &three::DOCUMENT, document);
    out
}

/// The messages of `openapi.v2`.
mod two {
    use super::{Kind, Message, Value};

    pub static DOCUMENT: Message = Message {
        fields: &[
            ("swagger", 1, Kind::Text),
            ("info", 2, Kind::One(&INFO)),
            ("paths", 8, Kind::Pairs(2, &Kind::One(&PATH_ITEM))),
            ("definitions", 9, Kind::Map(&Kind::One(&SCHEMA))),
            ("parameters", 10, Kind::Map(&Kind::Choice(parameter))),
            ("security", 12, Kind::Many(&Kind::Map(&Kind::Inside(1, &Kind::Texts)))),
            ("securityDefinitions", 13, Kind::Map(&Kind::Inside(2, &Kind::One(&API_KEY)))),
        ],
        extensions: 16,
    };
    static INFO: Message =
        Message { fields: &[("title", 1, Kind::Text), ("version", 2, Kind::Text)], extensions: 7 };
    static API_KEY: Message = Message {
        fields: &[
            ("type", 1, Kind::Text),
            ("name", 2, Kind::Text),
            ("in", 3, Kind::Text),
            ("description", 4, Kind::Text),
        ],
        extensions: 5,
    };
    static PATH_ITEM: Message = Message {
        fields: &[
            ("get", 2, Kind::One(&OPERATION)),
            ("put", 3, Kind::One(&OPERATION)),
            ("post", 4, Kind::One(&OPERATION)),
            ("delete", 5, Kind::One(&OPERATION)),
            ("options", 6, Kind::One(&OPERATION)),
            ("head", 7, Kind::One(&OPERATION)),
            ("patch", 8, Kind::One(&OPERATION)),
            ("parameters", 9, Kind::Many(&Kind::Choice(parameter_or_reference))),
        ],
        extensions: 10,
    };
    static OPERATION: Message = Message {
        fields: &[
            ("tags", 1, Kind::Texts),
            ("description", 3, Kind::Text),
            ("operationId", 5, Kind::Text),
            ("produces", 6, Kind::Texts),
            ("consumes", 7, Kind::Texts),
            ("parameters", 8, Kind::Many(&Kind::Choice(parameter_or_reference))),
            ("responses", 9, Kind::Pairs(1, &Kind::Inside(1, &Kind::One(&RESPONSE)))),
            ("schemes", 10, Kind::Texts),
            ("deprecated", 11, Kind::Flag),
        ],
        extensions: 13,
    };

    const IN_PATH: Kind = Kind::Inside(4, &Kind::One(&PATH));
    const IN_QUERY: Kind = Kind::Inside(3, &Kind::One(&QUERY));

    static REFERENCE: Message =
        Message { fields: &[("$ref", 1, Kind::Text), ("description", 2, Kind::Text)], extensions: 0 };

    fn parameter_or_reference(value: &Value) -> (u32, Kind) {
        match value.get("$ref") {
            Some(_) => (2, Kind::One(&REFERENCE)),
            None => (1, Kind::Choice(parameter)),
        }
    }

    fn parameter(value: &Value) -> (u32, Kind) {
        match value["in"].as_str() {
            Some("body") => (1, Kind::One(&BODY)),
            Some("path") => (2, IN_PATH),
            _ => (2, IN_QUERY),
        }
    }

    static BODY: Message = Message {
        fields: &[
            ("description", 1, Kind::Text),
            ("name", 2, Kind::Text),
            ("in", 3, Kind::Text),
            ("required", 4, Kind::Flag),
            ("schema", 5, Kind::One(&SCHEMA)),
        ],
        extensions: 6,
    };
    static PATH: Message = Message {
        fields: &[
            ("required", 1, Kind::Flag),
            ("in", 2, Kind::Text),
            ("description", 3, Kind::Text),
            ("name", 4, Kind::Text),
            ("type", 5, Kind::Text),
            ("format", 6, Kind::Text),
            ("uniqueItems", 19, Kind::Flag),
        ],
        extensions: 22,
    };
    static QUERY: Message = Message {
        fields: &[
            ("required", 1, Kind::Flag),
            ("in", 2, Kind::Text),
            ("description", 3, Kind::Text),
            ("name", 4, Kind::Text),
            ("type", 6, Kind::Text),
            ("format", 7, Kind::Text),
            ("uniqueItems", 20, Kind::Flag),
        ],
        extensions: 23,
    };
    static RESPONSE: Message = Message {
        fields: &[("description", 1, Kind::Text), ("schema", 2, Kind::Inside(1, &Kind::One(&SCHEMA)))],
        extensions: 5,
    };

    fn additional(value: &Value) -> (u32, Kind) {
        if value.is_boolean() { (2, Kind::Flag) } else { (1, Kind::One(&SCHEMA)) }
    }

    static SCHEMA: Message = Message {
        fields: &[
            ("$ref", 1, Kind::Text),
            ("format", 2, Kind::Text),
            ("title", 3, Kind::Text),
            ("description", 4, Kind::Text),
            ("default", 5, Kind::Any),
            ("multipleOf", 6, Kind::Number),
            ("maximum", 7, Kind::Number),
            ("exclusiveMaximum", 8, Kind::Flag),
            ("minimum", 9, Kind::Number),
            ("exclusiveMinimum", 10, Kind::Flag),
            ("maxLength", 11, Kind::Integer),
            ("minLength", 12, Kind::Integer),
            ("pattern", 13, Kind::Text),
            ("maxItems", 14, Kind::Integer),
            ("minItems", 15, Kind::Integer),
            ("uniqueItems", 16, Kind::Flag),
            ("maxProperties", 17, Kind::Integer),
            ("minProperties", 18, Kind::Integer),
            ("required", 19, Kind::Texts),
            ("enum", 20, Kind::Anys),
            ("additionalProperties", 21, Kind::Choice(additional)),
            ("type", 22, Kind::Inside(1, &Kind::Texts)),
            ("items", 23, Kind::Inside(1, &Kind::One(&SCHEMA))),
            ("allOf", 24, Kind::Many(&Kind::One(&SCHEMA))),
            ("properties", 25, Kind::Map(&Kind::One(&SCHEMA))),
        ],
        extensions: 31,
    };
}

/// The messages of `openapi.v3`.
mod three {
    use super::{Kind, Message, Value};

    pub static DOCUMENT: Message = Message {
        fields: &[
            ("openapi", 1, Kind::Text),
            ("info", 2, Kind::One(&INFO)),
            ("paths", 4, Kind::Pairs(1, &Kind::One(&PATH_ITEM))),
            ("components", 5, Kind::One(&COMPONENTS)),
        ],
        extensions: 9,
    };
    static INFO: Message =
        Message { fields: &[("title", 1, Kind::Text), ("version", 6, Kind::Text)], extensions: 7 };
    static COMPONENTS: Message = Message {
        fields: &[
            ("schemas", 1, Kind::Map(&Kind::Choice(schema))),
            ("securitySchemes", 7, Kind::Map(&Kind::Inside(1, &Kind::One(&SECURITY)))),
        ],
        extensions: 10,
    };
    static SECURITY: Message = Message {
        fields: &[
            ("type", 1, Kind::Text),
            ("description", 2, Kind::Text),
            ("name", 3, Kind::Text),
            ("in", 4, Kind::Text),
        ],
        extensions: 9,
    };
    static PATH_ITEM: Message = Message {
        fields: &[
            ("get", 4, Kind::One(&OPERATION)),
            ("put", 5, Kind::One(&OPERATION)),
            ("post", 6, Kind::One(&OPERATION)),
            ("delete", 7, Kind::One(&OPERATION)),
            ("options", 8, Kind::One(&OPERATION)),
            ("head", 9, Kind::One(&OPERATION)),
            ("patch", 10, Kind::One(&OPERATION)),
            ("parameters", 13, Kind::Many(&Kind::Inside(1, &Kind::One(&PARAMETER)))),
        ],
        extensions: 14,
    };
    static OPERATION: Message = Message {
        fields: &[
            ("tags", 1, Kind::Texts),
            ("description", 3, Kind::Text),
            ("operationId", 5, Kind::Text),
            ("parameters", 6, Kind::Many(&Kind::Inside(1, &Kind::One(&PARAMETER)))),
            ("requestBody", 7, Kind::Inside(1, &Kind::One(&REQUEST))),
            ("responses", 8, Kind::Pairs(2, &Kind::Inside(1, &Kind::One(&RESPONSE)))),
            ("deprecated", 10, Kind::Flag),
        ],
        extensions: 13,
    };
    static PARAMETER: Message = Message {
        fields: &[
            ("name", 1, Kind::Text),
            ("in", 2, Kind::Text),
            ("description", 3, Kind::Text),
            ("required", 4, Kind::Flag),
            ("schema", 10, Kind::Choice(schema)),
        ],
        extensions: 14,
    };
    static REQUEST: Message = Message {
        fields: &[("content", 2, Kind::Map(&Kind::One(&MEDIA))), ("required", 3, Kind::Flag)],
        extensions: 4,
    };
    static RESPONSE: Message = Message {
        fields: &[("description", 1, Kind::Text), ("content", 3, Kind::Map(&Kind::One(&MEDIA)))],
        extensions: 5,
    };
    static MEDIA: Message = Message { fields: &[("schema", 1, Kind::Choice(schema))], extensions: 5 };
    static REFERENCE: Message = Message { fields: &[("$ref", 1, Kind::Text)], extensions: 0 };

    fn schema(value: &Value) -> (u32, Kind) {
        if value.get("$ref").is_some() { (2, Kind::One(&REFERENCE)) } else { (1, Kind::One(&SCHEMA)) }
    }

    fn additional(value: &Value) -> (u32, Kind) {
        if value.is_boolean() { (2, Kind::Flag) } else { (1, Kind::Choice(schema)) }
    }

    /// Defaults are scalars in this message; others are left out.
    fn default(value: &Value) -> (u32, Kind) {
        match value {
            Value::Bool(_) => (2, Kind::Flag),
            Value::Number(_) => (1, Kind::Number),
            _ => (3, Kind::Text),
        }
    }

    static SCHEMA: Message = Message {
        fields: &[
            ("nullable", 1, Kind::Flag),
            ("title", 9, Kind::Text),
            ("maximum", 11, Kind::Number),
            ("minimum", 13, Kind::Number),
            ("pattern", 17, Kind::Text),
            ("uniqueItems", 20, Kind::Flag),
            ("required", 23, Kind::Texts),
            ("enum", 24, Kind::Anys),
            ("type", 25, Kind::Text),
            ("allOf", 26, Kind::Many(&Kind::Choice(schema))),
            ("oneOf", 27, Kind::Many(&Kind::Choice(schema))),
            ("anyOf", 28, Kind::Many(&Kind::Choice(schema))),
            ("not", 29, Kind::One(&SCHEMA)),
            ("items", 30, Kind::Inside(1, &Kind::Choice(schema))),
            ("properties", 31, Kind::Map(&Kind::Choice(schema))),
            ("additionalProperties", 32, Kind::Choice(additional)),
            ("default", 33, Kind::Choice(default)),
            ("description", 34, Kind::Text),
            ("format", 35, Kind::Text),
        ],
        extensions: 36,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_small_document_byte_by_byte() {
        let document = json!({"swagger": "2.0", "definitions": {"a": {"type": "string", "x-e": "v"}}});
        // definitions (9) { pair (1) { name (1) "a", value (2) { type (22) { "string" }, extension (31) {...} } } }
        let extension = [&[0x0a, 3][..], b"x-e", &[0x12, 4, 0x12, 2], b"v\n"].concat();
        let ty = [&[0xb2, 0x01, 8, 0x0a, 6][..], b"string"].concat();
        let schema = [ty, vec![0xfa, 0x01, extension.len() as u8], extension].concat();
        let pair = [vec![0x0a, 1, b'a', 0x12, schema.len() as u8], schema].concat();
        let map = [vec![0x0a, pair.len() as u8], pair].concat();
        let mut want = [vec![0x4a, map.len() as u8], map, vec![0x0a, 3], b"2.0".to_vec()].concat();
        let mut got = v2(&document);
        // The order of fields carries no meaning.
        want.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, want);
    }
}
