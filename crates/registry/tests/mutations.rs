//! Hostile input, made from good input by random damage: decoders, patches, apply and selectors must refuse
//! it or take it, and never panic. Seeded, so that a failure can be repeated; `MUTATIONS_SECONDS` makes it a
//! longer hunt.

use std::time::{Duration, Instant};

use schema::apply::Writer;
use schema::{Schema, encode, protobuf};
use serde_json::{Map, Value};
use stdx::{Random, SeededRandom};

/// How long each target is fed by default.
const SECONDS_DEFAULT: u64 = 1;
/// Most bytes of one input.
const BYTES_MAX: usize = 4096;

const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"b"},"creationTimestamp":"2026-01-02T03:04:05Z","managedFields":[{"manager":"m","operation":"Apply","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}}}}}]},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80,"protocol":"TCP"}],"env":[{"name":"A","value":"b"}],"resources":{"limits":{"cpu":"500m","memory":"1Gi"}}}],"tolerations":[{"key":"k","operator":"Exists"}],"terminationGracePeriodSeconds":30},"status":{"podIPs":[{"ip":"10.1.1.1"}]}}"#;
const JSON_PATCH: &str = r#"[{"op":"add","path":"/metadata/labels/x","value":"y"},{"op":"copy","from":"/spec","path":"/spec/containers/0/x"},{"op":"move","from":"/metadata/name","path":"/metadata/y"},{"op":"test","path":"/kind","value":"Pod"},{"op":"remove","path":"/spec/containers/-"}]"#;
const STRATEGIC: &str = r#"{"metadata":{"labels":{"a":null}},"spec":{"$setElementOrder/containers":[{"name":"d"},{"name":"c"}],"containers":[{"name":"c","$patch":"delete"},{"name":"d","env":[{"$patch":"replace"}]}],"$retainKeys":["containers"],"$deleteFromPrimitiveList/x":[1]}}"#;
const SELECTORS: &[&str] =
    &["a=b,c!=d,e in (f,g),h notin (i),!j,k", "metadata.name=x,status.phase!=Running", "a==b", "x in ()"];

fn damaged(seed: &[u8], random: &SeededRandom) -> Vec<u8> {
    const TOKENS: &[&[u8]] = &[
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b"null",
        b"-1",
        b"1e999",
        b"99999999999999999999",
        b"\\u0000",
        b"\xff",
        b"/",
        b"~1",
        b"-",
        b"$patch",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b"",
        b",",
        b"=",
        b"(",
        b"\xf0\x9f\x98\x80",
    ];
    let mut out = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len() as u64 + 1) as usize;
        let end = (at + random.below(9) as usize).min(out.len());
        match random.below(4) {
            0 => drop(out.drain(at..end)),
            1 => {
                let piece = out[at..end].to_vec();
                let to = random.below(out.len() as u64 + 1) as usize;
                out.splice(to..to, piece);
            }
            2 => {
                let token = TOKENS[random.below(TOKENS.len() as u64) as usize];
                out.splice(at..end, token.iter().copied());
            }
            _ => {
                if let Some(byte) = out.get_mut(at) {
                    *byte = random.below(256) as u8;
                }
            }
        }
    }
    out.truncate(BYTES_MAX);
    out
}

/// Feeds a target with damaged copies of the seeds until its time is over.
fn feed(seeds: &[Vec<u8>], target: impl Fn(&[u8])) {
    let asked = std::env::var("MUTATIONS_SECONDS").ok().and_then(|s| s.parse().ok());
    let end = Instant::now() + Duration::from_secs(asked.unwrap_or(SECONDS_DEFAULT));
    let random = SeededRandom::new(7);
    let mut round = 0;
    while round % 64 != 0 || Instant::now() < end {
        target(&damaged(&seeds[round % seeds.len()], &random));
        round += 1;
    }
    assert!(round > 100, "only {round} rounds");
}

fn pod() -> Map<String, Value> {
    serde_json::from_str(POD).unwrap()
}

#[test]
fn bodies() {
    let schema = Schema::builtin();
    let ty = schema.kind("", "v1", "Pod").unwrap();
    feed(&[POD.into()], |input| {
        let Ok(decoded) = schema::decode::decode(schema, ty, input) else { return };
        let text = Value::Object(decoded.value.clone()).to_string();
        // What was accepted can be decoded again, and has a protobuf form that can be read.
        schema::decode::decode(schema, ty, text.as_bytes()).unwrap();
        let message = encode::message(schema, ty, text.as_bytes()).unwrap();
        protobuf::to_json(schema, ty, &message).unwrap();
    });
}

#[test]
fn messages() {
    let schema = Schema::builtin();
    let ty = schema.kind("", "v1", "Pod").unwrap();
    let message = encode::message(schema, ty, POD.as_bytes()).unwrap();
    feed(&[encode::envelope("v1", "Pod", &message)], |input| {
        let Ok(envelope) = protobuf::open(input) else { return };
        let Ok(object) = protobuf::to_json(schema, ty, envelope.raw) else { return };
        let _ = schema::decode::decode(schema, ty, Value::Object(object).to_string().as_bytes());
    });
}

#[test]
fn patches() {
    let schema = Schema::builtin();
    let ty = schema.kind("", "v1", "Pod").unwrap();
    feed(&[JSON_PATCH.into()], |input| {
        let mut value = Value::Object(pod());
        let _ = meta::patch::json_patch(&mut value, input);
    });
    feed(&[STRATEGIC.into()], |input| {
        let Ok(patch) = serde_json::from_slice::<Map<String, Value>>(input) else { return };
        let mut object = pod();
        let _ = schema::strategic::apply(schema, ty, &mut object, &patch);
        let mut value = Value::Object(pod());
        let _ = meta::patch::merge_patch(&mut value, input);
    });
}

#[test]
fn applied_configurations() {
    let schema = Schema::builtin();
    let ty = schema.kind("", "v1", "Pod").unwrap();
    let writer = Writer { manager: "m", api_version: "v1", subresource: "", now: "2026-01-02T03:04:05Z" };
    feed(&[POD.into()], |input| {
        let Ok(decoded) = schema::decode::decode(schema, ty, input) else { return };
        let _ = schema::apply::apply(schema, ty, Some(&pod()), &decoded.value, &writer, false);
        let _ = schema::apply::apply(schema, ty, Some(&decoded.value), &pod(), &writer, true);
    });
}

#[test]
fn selectors() {
    let seeds: Vec<Vec<u8>> = SELECTORS.iter().map(|s| s.as_bytes().to_vec()).collect();
    feed(&seeds, |input| {
        let text = String::from_utf8_lossy(input);
        let _ = meta::LabelSelector::parse(&text);
        let _ = meta::FieldSelector::parse(&text);
    });
}
