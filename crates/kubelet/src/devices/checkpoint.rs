//! The record of who was given which devices, in the form that upstream's kubelet writes and others read.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rpc::deviceplugin::ContainerAllocateResponse;
use rpc::prost::Message;
use serde_json::{Value, json};

use super::state::{Given, State};

/// Writes the state.
pub(super) fn write(state: &State) -> String {
    let mut entries = Vec::new();
    for (uid, of_pod) in &state.given {
        for (container, of_container) in of_pod {
            for (resource, given) in of_container {
                let devices = state.resources.get(resource).map(|resource| &resource.devices);
                let mut by_node: BTreeMap<String, Vec<&String>> = BTreeMap::new();
                for id in &given.ids {
                    let node = devices.and_then(|all| all.get(id)?.nodes.first().copied()).unwrap_or(-1);
                    by_node.entry(node.to_string()).or_default().push(id);
                }
                entries.push(json!({"PodUID": uid, "ContainerName": container, "ResourceName": resource,
                    "DeviceIDs": by_node, "AllocResp": STANDARD.encode(given.response.encode_to_vec())}));
            }
        }
    }
    let mut registered: BTreeMap<&String, Vec<&String>> =
        state.former.iter().map(|name| (name, Vec::new())).collect();
    for (name, resource) in &state.resources {
        let healthy = resource.devices.iter().filter(|(_, device)| device.healthy);
        registered.insert(name, healthy.map(|(id, _)| id).collect());
    }
    let data = json!({"PodDeviceEntries": entries, "RegisteredDevices": registered});
    let checksum = sum(&data.to_string());
    json!({"Data": data, "Checksum": checksum}).to_string()
}

/// FNV-1a: whether the record is whole, no more.
fn sum(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Reads what was written; `None` for what is damaged.
pub(super) fn read(text: &str) -> Option<State> {
    let saved: Value = serde_json::from_str(text).ok()?;
    let data = saved.get("Data")?;
    if saved.get("Checksum")?.as_u64()? != u64::from(sum(&data.to_string())) {
        return None;
    }
    let mut state = State::default();
    for entry in data.get("PodDeviceEntries")?.as_array()? {
        let word = |name: &str| entry.get(name)?.as_str().map(str::to_owned);
        let by_node = entry.get("DeviceIDs")?.as_object()?;
        let ids: BTreeSet<String> = by_node
            .values()
            .flat_map(|list| list.as_array().into_iter().flatten())
            .filter_map(|id| id.as_str().map(str::to_owned))
            .collect();
        let bytes = STANDARD.decode(word("AllocResp")?).ok()?;
        let response = ContainerAllocateResponse::decode(bytes.as_slice()).ok()?;
        let of_pod = state.given.entry(word("PodUID")?).or_default();
        let of_container = of_pod.entry(word("ContainerName")?).or_default();
        of_container.insert(word("ResourceName")?, Given { ids, response });
    }
    // Their plugins have to come again before anything of theirs counts.
    state.former = data.get("RegisteredDevices")?.as_object()?.keys().cloned().collect();
    Some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let mut state = State::default();
        state.register("x/y");
        let given = Given {
            ids: ["a".to_owned(), "b".to_owned()].into(),
            response: ContainerAllocateResponse {
                envs: [("A".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            },
        };
        state.given.insert("u".into(), [("c".to_owned(), [("x/y".to_owned(), given)].into())].into());
        let text = write(&state);
        let back = read(&text).unwrap();
        assert_eq!(back.given, state.given);
        assert_eq!(back.amounts(), [("x/y".to_owned(), (0, 0))].into());
        assert!(read(&text.replace("\"c\"", "\"d\"")).is_none());
        assert!(read("").is_none());
    }
}
