//! JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386) with Kubernetes' limits and error texts.

use serde_json::Value;

use crate::Status;

/// Most operations one JSON patch may hold (upstream's limit).
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// Most bytes that the copies of one JSON patch may add (upstream's limit: that of a request).
pub const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Applies a JSON patch document to `target`.
pub fn json_patch(target: &mut Value, patch: &[u8]) -> Result<(), Status> {
    let patch: json_patch::Patch = serde_json::from_slice(patch)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if patch.0.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(too_large(&format!(
            "The allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}, got {}",
            patch.0.len()
        )));
    }
    let mut copied = 0;
    for operation in &patch.0 {
        // Copies of copies double: without a limit a small patch makes an object of any size.
        if let json_patch::PatchOperation::Copy(copy) = operation
            && let Ok(value) = copy.from.resolve(target)
        {
            copied += size(value);
            if copied > COPIED_BYTES_MAX {
                return Err(too_large(&format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {COPIED_BYTES_MAX}"
                )));
            }
        }
        if !tests_absence(operation, target) {
            json_patch::patch(target, std::slice::from_ref(operation)).map_err(|_| rejected())?;
        }
    }
    Ok(())
}

/// Whether an operation tests that a field is null which is not there at all. RFC 6902 lets that test fail; the
/// API server's has always let it pass, and clients use it for "nobody added the first one before me".
fn tests_absence(operation: &json_patch::PatchOperation, target: &Value) -> bool {
    let json_patch::PatchOperation::Test(test) = operation else { return false };
    let parent = test.path.parent().and_then(|parent| parent.resolve(target).ok());
    test.value.is_null() && test.path.resolve(target).is_err() && parent.is_some_and(Value::is_object)
}

fn too_large(why: &str) -> Status {
    Status::new(413, crate::Reason::RequestEntityTooLarge, format!("Request entity too large: {why}"))
}

/// A patch that is well-formed but does not apply. Clients are not told why: an API server never did.
fn rejected() -> Status {
    let mut status = Status::new(
        422,
        crate::Reason::Invalid,
        "the server rejected our request due to an error in our request",
    );
    status.details = Some(Box::new(crate::status::Details::default()));
    status
}

/// Bytes of a value as JSON.
fn size(value: &Value) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Counting cannot fail.
    let _ = serde_json::to_writer(&mut counter, value);
    counter.0
}

/// Applies a merge patch document to `target`.
pub fn merge_patch(target: &mut Value, patch: &[u8]) -> Result<(), Status> {
    let patch: Value = serde_json::from_slice(patch)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    json_patch::merge(target, &patch);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patches() {
        let mut v = json!({"a": 1, "b": {"c": [1, 2]}});
        json_patch(
            &mut v,
            br#"[{"op":"replace","path":"/a","value":2},{"op":"add","path":"/b/c/-","value":3}]"#,
        )
        .unwrap();
        merge_patch(&mut v, br#"{"a": null, "d": {"e": 1}}"#).unwrap();
        assert_eq!(v, json!({"b": {"c": [1, 2, 3]}, "d": {"e": 1}}));
        assert_eq!(json_patch(&mut v, br#"[{"op":"test","path":"/x","value":1}]"#).unwrap_err().code, 422);
        assert!(json_patch(&mut v, br#"[{"op":"test","path":"/x","value":null}]"#).is_ok());
        assert_eq!(json_patch(&mut v, br#"[{"op":"test","path":"/b","value":null}]"#).unwrap_err().code, 422);
        assert_eq!(
            json_patch(&mut v, br#"[{"op":"test","path":"/x/y","value":null}]"#).unwrap_err().code,
            422
        );
        assert_eq!(json_patch(&mut v, b"{}").unwrap_err().code, 400);
        let many = format!(
            "[{}]",
            vec![r#"{"op":"test","path":"/d/e","value":1}"#; JSON_PATCH_OPERATIONS_MAX + 1].join(",")
        );
        let status = json_patch(&mut v, many.as_bytes()).unwrap_err();
        assert_eq!(
            (status.code, &*status.message),
            (
                413,
                "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
            )
        );
        let mut v = json!({"a": ["x".repeat(1000)]});
        let doubling = format!("[{}]", vec![r#"{"op":"copy","from":"/a","path":"/a/-"}"#; 60].join(","));
        let status = json_patch(&mut v, doubling.as_bytes()).unwrap_err();
        assert!(status.code == 413 && status.message.contains("accumulated size increase"), "{status}");
    }
}
