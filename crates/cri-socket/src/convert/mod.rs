//! Between the messages of `runtime.v1` and the types of `cri`, one small function for each pair: pure tables.
//!
//! What only one side can say is dropped here and nowhere else: SELinux and AppArmor have no place in `cri`,
//! process limits and log rotation none in the protocol.

pub mod container;
pub mod error;
pub mod image;
pub mod sandbox;
pub mod signal;
pub mod stats;

use jiff::Timestamp;
use rpc::cri as pb;

/// Nanoseconds since 1970.
pub fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

/// A time from nanoseconds since 1970.
pub fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A time that may be absent, as 0.
pub fn some_timestamp(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds != 0).then(|| timestamp(nanoseconds))
}

fn id_to(id: Option<u32>) -> Option<pb::Int64Value> {
    id.map(|id| pb::Int64Value { value: i64::from(id) })
}

fn id_from(id: Option<pb::Int64Value>) -> Option<u32> {
    id.and_then(|id| u32::try_from(id.value).ok())
}

fn ids_to(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|id| i64::from(*id)).collect()
}

fn ids_from(ids: &[i64]) -> Vec<u32> {
    ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect()
}

/// An unsigned value of the protocol.
pub fn value(value: u64) -> Option<pb::UInt64Value> {
    Some(pb::UInt64Value { value })
}

fn value_of(value: Option<pb::UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

/// `None` for the empty string.
pub fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
