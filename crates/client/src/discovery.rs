//! What the server serves, asked of the server: the dynamic map between kinds, resources and short names.

use bytes::Bytes;
use http::Method;
use meta::{Gvk, Gvr};
use serde::Deserialize;

use crate::client::Client;
use crate::error::Result;

const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// One resource the server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiResource {
    /// Group, version and plural name.
    pub gvr: Gvr,
    /// Kind of its objects.
    pub kind: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs served.
    pub verbs: Vec<String>,
    /// Name of one object, in lower case.
    pub singular: String,
    /// Abbreviations.
    pub short_names: Vec<String>,
    /// Groups of resources such as `all`.
    pub categories: Vec<String>,
    /// Names of subresources, without the resource's own name.
    pub subresources: Vec<String>,
}

impl ApiResource {
    /// Whether the server serves `verb`.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Group, version and kind of its objects.
    pub fn gvk(&self) -> Gvk {
        Gvk {
            group: self.gvr.group.clone(),
            version: self.gvr.version.clone(),
            kind: self.kind.clone().into(),
        }
    }
}

/// All resources, preferred versions first within a group.
#[derive(Debug, Clone, Default)]
pub struct RestMapper {
    resources: Vec<ApiResource>,
    /// Groups whose discovery failed, as `group/version`: decisions about what is absent must wait.
    pub failed_groups: Vec<String>,
}

impl RestMapper {
    /// A map of these resources.
    pub fn new(resources: Vec<ApiResource>) -> Self {
        RestMapper { resources, failed_groups: Vec::new() }
    }

    /// Asks the server: two requests where it serves aggregated discovery, one per version otherwise.
    pub async fn discover(client: &Client) -> Result<Self> {
        let mut mapper = RestMapper::default();
        for root in ["/api", "/apis"] {
            let bytes = client.send(client.request(Method::GET, root, AGGREGATED, Bytes::new())?).await?;
            match serde_json::from_slice::<GroupDiscoveryList>(&bytes) {
                Ok(list) if list.kind == "APIGroupDiscoveryList" => mapper.add_aggregated(list),
                _ => mapper.add_legacy(client, root, &bytes).await?,
            }
        }
        Ok(mapper)
    }

    fn add_aggregated(&mut self, list: GroupDiscoveryList) {
        for group in list.items {
            let name = group.metadata.name;
            for version in group.versions {
                if version.freshness == "Stale" {
                    self.failed_groups.push(meta::gvk::join_api_version(&name, &version.version));
                }
                for r in version.resources {
                    // A resource that has only subresources has no kind of its own.
                    let Some(kind) = r.response_kind.filter(|k| !k.kind.is_empty()) else { continue };
                    self.resources.push(ApiResource {
                        gvr: gvr(&name, &version.version, &r.resource),
                        kind: kind.kind,
                        namespaced: r.scope == "Namespaced",
                        verbs: r.verbs,
                        singular: r.singular_resource,
                        short_names: r.short_names,
                        categories: r.categories,
                        subresources: r.subresources.into_iter().map(|s| s.subresource).collect(),
                    });
                }
            }
        }
    }

    async fn add_legacy(&mut self, client: &Client, root: &str, bytes: &[u8]) -> Result<()> {
        let versions: Vec<String> = if root == "/api" {
            serde_json::from_slice::<CoreVersions>(bytes)?.versions
        } else {
            let groups = serde_json::from_slice::<GroupList>(bytes)?.groups;
            groups.into_iter().flat_map(|g| g.versions).map(|v| v.group_version).collect()
        };
        for group_version in versions {
            let list = match client.get_path(&format!("{root}/{group_version}")).await {
                Ok(bytes) => serde_json::from_slice::<ResourceList>(&bytes)?,
                Err(error) => {
                    tracing::debug!(%group_version, %error, "discovery of a group version failed");
                    self.failed_groups.push(group_version);
                    continue;
                }
            };
            let (group, version) = meta::gvk::split_api_version(&group_version);
            let (subresources, resources): (Vec<_>, Vec<_>) =
                list.resources.into_iter().partition(|r| r.name.contains('/'));
            for r in resources {
                let prefix = format!("{}/", r.name);
                let own = subresources.iter().filter_map(|s| s.name.strip_prefix(&prefix));
                self.resources.push(ApiResource {
                    gvr: gvr(group, version, &r.name),
                    subresources: own.map(String::from).collect(),
                    kind: r.kind,
                    namespaced: r.namespaced,
                    verbs: r.verbs,
                    singular: r.singular_name,
                    short_names: r.short_names,
                    categories: r.categories,
                });
            }
        }
        Ok(())
    }

    /// Every resource, in the server's order.
    pub fn resources(&self) -> &[ApiResource] {
        &self.resources
    }

    /// The resource of a kind.
    pub fn by_kind(&self, gvk: &Gvk) -> Option<&ApiResource> {
        self.resources
            .iter()
            .find(|r| r.kind == gvk.kind && r.gvr.group == gvk.group && r.gvr.version == gvk.version)
    }

    /// The resource people mean by `word`: plural, singular, short name or kind, with `.group` or
    /// `.version.group` behind it to be precise. The first match in the server's order wins.
    pub fn by_word(&self, word: &str) -> Option<&ApiResource> {
        let word = word.to_ascii_lowercase();
        let (name, rest) = word.split_once('.').unwrap_or((&word, ""));
        let fits = |r: &&ApiResource| {
            rest.is_empty()
                || r.gvr.group == rest
                || rest.split_once('.').is_some_and(|(v, g)| r.gvr.version == v && r.gvr.group == g)
                || (r.gvr.group.is_empty() && r.gvr.version == rest)
        };
        let candidates = || self.resources.iter().filter(fits);
        candidates()
            .find(|r| r.gvr.resource == name)
            .or_else(|| candidates().find(|r| r.singular == name || r.kind.eq_ignore_ascii_case(name)))
            .or_else(|| candidates().find(|r| r.short_names.iter().any(|s| s == name)))
    }

    /// Resources of a category, e.g. `all`, each once in its preferred version.
    pub fn by_category<'a>(&'a self, category: &'a str) -> impl Iterator<Item = &'a ApiResource> {
        self.preferred().filter(move |r| r.categories.iter().any(|c| c == category))
    }

    /// Every resource once: in the first version in which its group serves it.
    pub fn preferred(&self) -> impl Iterator<Item = &ApiResource> {
        let mut seen = std::collections::HashSet::new();
        self.resources.iter().filter(move |r| seen.insert((&r.gvr.group, &r.gvr.resource)))
    }
}

fn gvr(group: &str, version: &str, resource: &str) -> Gvr {
    Gvr {
        group: group.to_owned().into(),
        version: version.to_owned().into(),
        resource: resource.to_owned().into(),
    }
}

#[derive(Deserialize)]
struct GroupDiscoveryList {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    items: Vec<GroupDiscovery>,
}

#[derive(Deserialize)]
struct GroupDiscovery {
    #[serde(default)]
    metadata: GroupName,
    #[serde(default)]
    versions: Vec<VersionDiscovery>,
}

#[derive(Deserialize, Default)]
struct GroupName {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct VersionDiscovery {
    version: String,
    #[serde(default)]
    resources: Vec<ResourceDiscovery>,
    #[serde(default)]
    freshness: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceDiscovery {
    resource: String,
    response_kind: Option<ResponseKind>,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    singular_resource: String,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
    #[serde(default)]
    subresources: Vec<SubresourceDiscovery>,
}

#[derive(Deserialize)]
struct ResponseKind {
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct SubresourceDiscovery {
    subresource: String,
}

#[derive(Deserialize)]
struct CoreVersions {
    versions: Vec<String>,
}

#[derive(Deserialize)]
struct GroupList {
    groups: Vec<LegacyGroup>,
}

#[derive(Deserialize)]
struct LegacyGroup {
    versions: Vec<LegacyVersion>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LegacyVersion {
    group_version: String,
}

#[derive(Deserialize)]
struct ResourceList {
    resources: Vec<LegacyResource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LegacyResource {
    name: String,
    #[serde(default)]
    singular_name: String,
    namespaced: bool,
    kind: String,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_find_resources() {
        let make = |group: &str, version: &str, plural: &str, kind: &str, short: &str| ApiResource {
            gvr: gvr(group, version, plural),
            kind: kind.into(),
            namespaced: true,
            verbs: vec!["list".into()],
            singular: kind.to_ascii_lowercase(),
            short_names: vec![short.into()],
            categories: vec!["all".into()],
            subresources: vec![],
        };
        let mapper = RestMapper::new(vec![
            make("", "v1", "events", "Event", "ev"),
            make("apps", "v1", "deployments", "Deployment", "deploy"),
            make("events.k8s.io", "v1", "events", "Event", "ev"),
        ]);
        let found = |word| mapper.by_word(word).map(|r| r.gvr.to_string());
        for word in ["deploy", "deployments", "Deployment", "deployment.apps", "deployments.v1.apps"] {
            assert_eq!(found(word).as_deref(), Some("deployments.apps"), "{word}");
        }
        assert_eq!(found("events").as_deref(), Some("events"));
        assert_eq!(found("events.events.k8s.io").as_deref(), Some("events.events.k8s.io"));
        assert_eq!(found("events.v1.").as_deref(), Some("events"));
        assert_eq!(found("nothing"), None);
        assert_eq!(mapper.by_category("all").count(), 3);
    }
}
