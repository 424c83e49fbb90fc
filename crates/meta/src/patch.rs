//! JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7386) with Kubernetes' limits and error texts.

use serde_json::Value;

use crate::Status;

/// Most operations one JSON patch may hold (upstream's limit).
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// Applies a JSON patch document to `target`.
pub fn json_patch(target: &mut Value, patch: &[u8]) -> Result<(), Status> {
    let patch: json_patch::Patch = serde_json::from_slice(patch)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if patch.0.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(Status::new(
            413,
            crate::Reason::RequestEntityTooLarge,
            format!(
                "The allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}, got {}",
                patch.0.len()
            ),
        ));
    }
    json_patch::patch(target, &patch).map_err(|e| {
        Status::new(
            422,
            crate::Reason::Invalid,
            format!("the server rejected our request due to an error in our request: {e}"),
        )
    })
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
        assert_eq!(json_patch(&mut v, b"{}").unwrap_err().code, 400);
    }
}
