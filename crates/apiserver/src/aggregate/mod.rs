//! The aggregation layer: groups of the API that other servers serve, behind Services of the cluster.
//!
//! APIServices name them; [`keep`] makes the local ones, and finds out whether the remote ones answer;
//! [`proxy`] hands requests on with the caller's identity in headers. What is known of the remote ones is one
//! value that changes as a whole, so that the request path only reads.

mod keep;
mod proxy;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use registry::ResourceTable;
use rustls::ClientConfig;
use serde_json::{Value, json};

pub use keep::run;
pub use proxy::forward;

/// Priority of groups that say nothing of it, as those of custom resources.
const CUSTOM_PRIORITY: u64 = 1000;

/// How the server shows itself to the servers behind it.
pub struct FrontProxy {
    /// PEM of the authority that signed the server's certificate as a proxy, and of others whose proxies are
    /// believed.
    pub ca_pem: String,
    /// Which proxies are believed, and where they say what.
    pub rules: auth::request_header::Rules,
    /// PEM of the authority of client certificates.
    pub client_ca_pem: String,
    /// TLS towards a server that these authorities (PEM) have signed, or towards any.
    pub tls: Box<MakeTls>,
}

/// Makes the TLS towards a server; the sentence says why that is impossible.
pub type MakeTls = dyn Fn(&[u8], bool) -> Result<Arc<ClientConfig>, String> + Send + Sync;

/// One group version that another server serves.
pub struct Remote {
    /// Name of the APIService.
    pub name: String,
    /// API group.
    pub group: String,
    /// Version.
    pub version: String,
    namespace: String,
    service: String,
    port: u16,
    group_priority: u64,
    version_priority: u64,
    /// What it is made from; the same text means the same remote.
    print: String,
    tls: Result<Arc<ClientConfig>, String>,
    /// Whether it answered when last asked.
    available: bool,
    /// Its part of the aggregated discovery document, as it last said.
    discovery: Option<Value>,
    /// Its part of OpenAPI v3's index.
    open_api: Option<Value>,
    /// Its OpenAPI v2.
    swagger: Option<Arc<Swagger>>,
}

impl Remote {
    /// Whether the same server is behind another APIService.
    fn is_same_server(&self, other: &Remote) -> bool {
        (&self.namespace, &self.service, self.port) == (&other.namespace, &other.service, other.port)
    }
}

/// The OpenAPI v2 of a server, as it last said.
pub struct Swagger {
    /// Its entity tag, to ask only for newer ones.
    etag: String,
    /// The document.
    document: Value,
}

/// All remote group versions.
#[derive(Default)]
pub struct Remotes {
    /// Changes with every change of them.
    pub generation: u64,
    all: BTreeMap<(String, String), Arc<Remote>>,
}

/// What the server knows of the servers behind it.
#[derive(Default)]
pub struct Aggregate {
    remotes: ArcSwap<Remotes>,
}

impl Aggregate {
    /// The remote ones as they are now.
    pub fn remotes(&self) -> Arc<Remotes> {
        self.remotes.load_full()
    }

    /// The server of a path, if it is another one's.
    pub fn of_path(&self, path: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes.load();
        if remotes.all.is_empty() {
            return None;
        }
        let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
        let mut parts = path.strip_prefix("/apis/")?.splitn(3, '/');
        let (group, version) = (parts.next()?, parts.next()?);
        remotes.all.get(&(group.to_owned(), version.to_owned())).cloned()
    }

    fn set(&self, all: BTreeMap<(String, String), Arc<Remote>>) {
        let generation = self.remotes.load().generation + 1;
        self.remotes.store(Arc::new(Remotes { generation, all }));
    }
}

impl Remotes {
    /// The groups and versions of the table and of other servers, in order of preference.
    pub fn groups<'a>(&'a self, table: &'a ResourceTable) -> Vec<(&'a str, Vec<&'a str>)> {
        let mut groups = table.groups();
        for remote in self.all.values() {
            let priority = |version: &str| match self.all.get(&(remote.group.clone(), version.to_owned())) {
                Some(other) => other.version_priority,
                None => keep::version_priority(&remote.group, version),
            };
            if let Some((_, versions)) = groups.iter_mut().find(|(g, _)| **g == *remote.group) {
                if !versions.iter().any(|v| **v == *remote.version) {
                    let before = |v: &&str| {
                        let order = priority(v).cmp(&remote.version_priority);
                        let order =
                            order.then_with(|| crate::custom::rows::compare_versions(v, &remote.version));
                        order.is_lt()
                    };
                    let at = versions.iter().position(before).unwrap_or(versions.len());
                    versions.insert(at, &remote.version);
                }
                continue;
            }
            let of_group = |g: &str| {
                let remote = self.all.values().filter(|r| r.group == g).map(|r| r.group_priority).max();
                remote.unwrap_or_else(|| keep::group_priority(g))
            };
            let own = of_group(&remote.group);
            let at = groups.iter().position(|(g, _)| of_group(g) < own).unwrap_or(groups.len());
            groups.insert(at, (&remote.group, vec![&remote.version]));
        }
        groups
    }

    /// A version of the aggregated discovery document, if another server serves it.
    pub fn version(&self, group: &str, version: &str) -> Option<Value> {
        let remote = self.all.get(&(group.to_owned(), version.to_owned()))?;
        let freshness = if remote.available { "Current" } else { "Stale" };
        let mut found =
            remote.discovery.clone().unwrap_or_else(|| json!({"version": version, "resources": []}));
        found["freshness"] = freshness.into();
        Some(found)
    }

    /// What other servers add to OpenAPI v3's index.
    pub fn open_api(&self) -> impl Iterator<Item = (String, Value)> + '_ {
        let available = self.all.values().filter(|r| r.available);
        available.filter_map(|r| Some((format!("apis/{}/{}", r.group, r.version), r.open_api.clone()?)))
    }

    /// The OpenAPI v2 documents of other servers, each once, the more important ones first.
    pub fn swaggers(&self) -> Vec<&Value> {
        let mut all: Vec<&Arc<Remote>> = self.all.values().collect();
        all.sort_by_key(|r| std::cmp::Reverse((r.group_priority, r.version_priority)));
        let mut seen: Vec<*const Swagger> = Vec::new();
        let documents = all.into_iter().filter_map(|r| r.swagger.as_ref());
        let mut first =
            |s: &Arc<Swagger>| !seen.contains(&Arc::as_ptr(s)) && (seen.push(Arc::as_ptr(s)), true).1;
        documents.filter(|s| first(s)).map(|s| &s.document).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(group: &str, version: &str, group_priority: u64, version_priority: u64) -> Remote {
        Remote {
            name: format!("{version}.{group}"),
            group: group.into(),
            version: version.into(),
            namespace: "n".into(),
            service: "s".into(),
            port: 443,
            group_priority,
            version_priority,
            print: String::new(),
            tls: Err("none".into()),
            available: true,
            discovery: None,
            open_api: None,
            swagger: None,
        }
    }

    #[test]
    fn groups_of_other_servers_stand_where_their_priority_says() {
        let table = ResourceTable::builtin().unwrap().served(&registry::RuntimeConfig::default()).unwrap();
        let aggregate = Aggregate::default();
        let all = [
            remote("first.io", "v1", 19_000, 1),
            remote("last.io", "v1", 10, 1),
            remote("last.io", "v2", 10, 5),
        ];
        aggregate.set(all.into_iter().map(|r| ((r.group.clone(), r.version.clone()), Arc::new(r))).collect());
        let remotes = aggregate.remotes();
        let groups = remotes.groups(&table);
        assert_eq!(groups.first().unwrap(), &("first.io", vec!["v1"]));
        assert_eq!(groups.last().unwrap(), &("last.io", vec!["v2", "v1"]));
        assert!(aggregate.of_path("/apis/last.io/v2/things/x").is_some());
        assert!(aggregate.of_path("/openapi/v3/apis/last.io/v2").is_some());
        assert!(
            aggregate.of_path("/apis/last.io").is_none() && aggregate.of_path("/apis/apps/v1/x").is_none()
        );
        assert_eq!(remotes.version("last.io", "v1").unwrap()["freshness"], "Current");
    }
}
