//! Where an emptyDir's files are kept: on the node's disk, in memory, in huge pages. Pure.

use api::prelude::*;

use crate::resources::{self, Amounts};
use crate::spec::{self, Role};

/// Where an emptyDir is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// On the disk.
    Disk,
    /// In memory, so many bytes at most (0: as many as the kernel gives).
    Memory(i64),
    /// In huge pages of so many bytes.
    HugePages(i64),
}

/// Most bytes of an emptyDir in memory: what the volume says, within what the pod may use, within what the node has.
fn memory_limit(pod: &Pod, limit: Option<&Quantity>, allocatable: &Amounts) -> i64 {
    let mut most = allocatable.get("memory").copied().unwrap_or(0);
    let mut lower = |value: i64| {
        if value > 0 && (most == 0 || value < most) {
            most = value;
        }
    };
    let of_containers: Option<i64> = spec::containers(pod)
        .iter()
        .filter(|(role, _)| *role != Role::Ephemeral)
        .map(|(_, container)| resources::limits(container).get("memory").copied())
        .sum();
    lower(of_containers.unwrap_or(0));
    lower(limit.map_or(0, |limit| resources::amount("memory", limit)));
    most
}

/// Sizes of huge pages that a pod's containers ask for.
fn page_sizes(pod: &Pod) -> Vec<i64> {
    let mut sizes: Vec<i64> = spec::containers(pod)
        .iter()
        .flat_map(|(_, container)| resources::requests(container).into_keys().collect::<Vec<_>>())
        .filter_map(|name| {
            let size = name.strip_prefix("hugepages-")?;
            meta::Quantity::parse(size).ok().map(|size| size.value())
        })
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// What a medium of the API means for a pod; an error is upstream's.
pub fn medium(
    pod: &Pod,
    named: &str,
    limit: Option<&Quantity>,
    allocatable: &Amounts,
) -> Result<Medium, String> {
    let sizes = page_sizes(pod);
    let none = || {
        format!(
            "medium {named}: hugePages storage requested, but there is no resource request for huge pages"
        )
    };
    match (named, named.strip_prefix("HugePages-")) {
        ("", _) => Ok(Medium::Disk),
        ("Memory", _) => Ok(Medium::Memory(memory_limit(pod, limit, allocatable))),
        ("HugePages", _) => match sizes[..] {
            [] => Err(none()),
            [one] => Ok(Medium::HugePages(one)),
            _ => Err(format!("medium: {named} can't be used if container requests multiple huge page sizes")),
        },
        (_, Some(size)) => {
            let size =
                meta::Quantity::parse(size).map_err(|_| format!("unknown storage medium {named:?}"))?;
            sizes.into_iter().find(|own| *own == size.value()).map(Medium::HugePages).ok_or_else(none)
        }
        _ => Err(format!("unknown storage medium {named:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_it_means() {
        let pod = |limits: Value| {
            let containers = json!([{"name": "c", "resources": {"limits": limits}}]);
            Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})).unwrap()
        };
        let node = Amounts::from([("memory".to_owned(), 8 << 30)]);
        let small = Quantity("1Mi".into());
        let large = Quantity("1Gi".into());
        let none =
            "medium HugePages: hugePages storage requested, but there is no resource request for huge pages";
        let no_large = "medium HugePages-1Gi: hugePages storage requested, but there is no resource request for huge pages";
        let table = [
            (json!({}), "", None, Ok(Medium::Disk)),
            (json!({}), "Memory", None, Ok(Medium::Memory(8 << 30))),
            (json!({}), "Memory", Some(&small), Ok(Medium::Memory(1 << 20))),
            (json!({"memory": "64Mi"}), "Memory", Some(&large), Ok(Medium::Memory(64 << 20))),
            (json!({"memory": "64Mi"}), "Memory", Some(&small), Ok(Medium::Memory(1 << 20))),
            (json!({}), "HugePages", None, Err(none)),
            (json!({"hugepages-2Mi": "4Mi"}), "HugePages", None, Ok(Medium::HugePages(2 << 20))),
            (json!({"hugepages-2Mi": "4Mi"}), "HugePages-2Mi", None, Ok(Medium::HugePages(2 << 20))),
            (json!({"hugepages-2Mi": "4Mi"}), "HugePages-1Gi", None, Err(no_large)),
            (
                json!({"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}),
                "HugePages",
                None,
                Err("medium: HugePages can't be used if container requests multiple huge page sizes"),
            ),
            (json!({}), "Tape", None, Err("unknown storage medium \"Tape\"")),
        ];
        for (limits, named, limit, expected) in table {
            let found = medium(&pod(limits.clone()), named, limit, &node);
            assert_eq!(found, expected.map_err(str::to_owned), "{limits} {named}");
        }
    }
}
