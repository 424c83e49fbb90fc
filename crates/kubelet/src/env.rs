//! The environment of a container: sources, `$(VAR)` expansion, service variables, the downward API.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::k8s_openapi::api::core::v1::{EnvVar, ResourceFieldSelector};
use api::prelude::*;

use crate::resources;
use crate::spec;

/// A value could not be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A ConfigMap or Secret does not exist.
    #[error("{kind} {name:?} not found")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    MissingKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Key.
        key: String,
    },
    /// A field or resource cannot be told.
    #[error("{0}")]
    Field(String),
}

/// What the node knows beside the pod itself.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Name of the node.
    pub node_name: String,
    /// Addresses of the node, primary first.
    pub host_ips: Vec<IpAddr>,
    /// Addresses of the pod, primary first; empty before its sandbox exists.
    pub pod_ips: Vec<IpAddr>,
    /// Allocatable resources of the node: the limit of a container that has none.
    pub allocatable: resources::Amounts,
}

/// Looks up ConfigMaps and Secrets of the pod's namespace. `None` if they do not exist.
pub trait Objects {
    /// The data of a ConfigMap.
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>>;
    /// The data of a Secret.
    fn secret(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>>;
}

/// Expands `$(NAME)` with `lookup`; `$$` is a dollar sign, what is unknown stays as it is.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('(') {
            match after.find(')') {
                Some(end) => {
                    let name = &after[..end];
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = &after[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = after;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Variables that tell a pod of the services of its namespace (and of the API server's), as Docker links did.
pub fn service_variables(
    services: &[std::sync::Arc<Service>],
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let master = service.namespace() == "default" && service.name() == "kubernetes";
        let linked = links && service.namespace() == namespace;
        if !master && !linked {
            continue;
        }
        // The API server's variables hold in every namespace; one's own service of that name wins.
        if master
            && namespace != "default"
            && links
            && services.iter().any(|s| s.namespace() == namespace && s.name() == "kubernetes")
        {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
            continue;
        };
        let Some(first) = spec.ports.iter().flatten().next() else { continue };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let prefix = service.name().to_uppercase().replace(['-', '.'], "_");
        variables.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        for port in spec.ports.iter().flatten() {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                let name = name.to_uppercase().replace('-', "_");
                variables.insert(format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string());
            }
        }
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let lower = protocol.to_lowercase();
            let url = format!("{lower}://{host}:{}", port.port);
            if index == 0 {
                variables.insert(format!("{prefix}_PORT"), url.clone());
            }
            let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            variables.insert(port_prefix.clone(), url);
            variables.insert(format!("{port_prefix}_PROTO"), lower);
            variables.insert(format!("{port_prefix}_PORT"), port.port.to_string());
            variables.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
        }
    }
    variables
}

/// The environment of a container, in order of definition; service variables first where nothing overrides
/// them.
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    facts: &Facts,
    objects: &dyn Objects,
) -> Result<Vec<cri::EnvVar>, Error> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |known: &mut BTreeMap<String, String>, name: &str, value: String| {
        if known.insert(name.to_owned(), value).is_none() {
            order.push(name.to_owned());
        }
    };
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let data = if let Some(reference) = &from.config_map_ref {
            match objects.config_map(&reference.name) {
                Some(data) => data,
                None if reference.optional == Some(true) => continue,
                None => return Err(Error::Missing { kind: "configmap", name: reference.name.clone() }),
            }
        } else if let Some(reference) = &from.secret_ref {
            match objects.secret(&reference.name) {
                Some(data) => data,
                None if reference.optional == Some(true) => continue,
                None => return Err(Error::Missing { kind: "secret", name: reference.name.clone() }),
            }
        } else {
            continue;
        };
        for (key, value) in data {
            set(&mut known, &format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned());
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => {
                expand(text, |name| known.get(name).or_else(|| services.get(name)).cloned())
            }
            (_, Some(_)) => match source_value(pod, container, variable, facts, objects)? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        set(&mut known, &variable.name, value);
    }
    let extra = services.keys().filter(|name| !known.contains_key(*name)).cloned().collect::<Vec<_>>();
    let own = order.into_iter().map(|name| cri::EnvVar { value: known[&name].clone(), name });
    let services = extra.into_iter().map(|name| cri::EnvVar { value: services[&name].clone(), name });
    Ok(services.chain(own).collect())
}

/// The value of a variable with a source; `None` for an optional one that is missing.
fn source_value(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    facts: &Facts,
    objects: &dyn Objects,
) -> Result<Option<String>, Error> {
    let Some(source) = &variable.value_from else { return Ok(None) };
    if let Some(field) = &source.field_ref {
        return pod_field(pod, &field.field_path, facts).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return resource_field(pod, container, selector, facts).map(Some);
    }
    let (kind, lower, name, key, optional, data) = if let Some(selector) = &source.config_map_key_ref {
        let data = objects.config_map(&selector.name);
        ("ConfigMap", "configmap", &selector.name, &selector.key, selector.optional, data)
    } else if let Some(selector) = &source.secret_key_ref {
        ("Secret", "secret", &selector.name, &selector.key, selector.optional, objects.secret(&selector.name))
    } else {
        return Err(Error::Field(format!("the source of variable {} is not supported", variable.name)));
    };
    let optional = optional == Some(true);
    match data {
        None if optional => Ok(None),
        None => Err(Error::Missing { kind: lower, name: name.clone() }),
        Some(data) => match data.get(key) {
            Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
            None if optional => Ok(None),
            None => Err(Error::MissingKey {
                kind,
                namespace: pod.namespace().to_owned(),
                name: name.clone(),
                key: key.clone(),
            }),
        },
    }
}

/// The key in `metadata.labels['key']`.
fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")
}

/// A map as the downward API writes it: `key="escaped value"` lines in order.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn join_ips(ips: &[IpAddr]) -> String {
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// A field of the pod for the downward API.
pub fn pod_field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, Error> {
    let meta = &pod.metadata;
    let spec = spec::spec(pod);
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(meta.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(meta.annotations.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    // With the host's network the pod's addresses are the node's.
    let pod_ips = if spec.host_network == Some(true) { &facts.host_ips } else { &facts.pod_ips };
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().map(IpAddr::to_string).unwrap_or_default(),
        "status.hostIPs" => join_ips(&facts.host_ips),
        "status.podIP" => pod_ips.first().map(IpAddr::to_string).unwrap_or_default(),
        "status.podIPs" => join_ips(pod_ips),
        other => return Err(Error::Field(format!("unsupported fieldPath: {other}"))),
    })
}

/// A limit or request of a container for the downward API.
pub fn resource_field(
    pod: &Pod,
    container: &Container,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, Error> {
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let found = named.and_then(|name| spec::find(pod, name));
    let container = match (named, &found) {
        (Some(name), None) => return Err(Error::Field(format!("container {name} not found"))),
        (_, Some((_, container))) => container.as_ref(),
        (None, None) => container,
    };
    let unsupported = || Error::Field(format!("unsupported container resource : {}", selector.resource));
    let (kind, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let value = match kind {
        // What is not limited may use all that the node has to give.
        "limits" => resources::limits(container)
            .get(resource)
            .copied()
            .filter(|limit| *limit > 0)
            .or_else(|| facts.allocatable.get(resource).copied()),
        "requests" => resources::requests(container).get(resource).copied(),
        _ => return Err(unsupported()),
    }
    .unwrap_or(0);
    let one = Quantity("1".into());
    let divisor = selector.divisor.as_ref().filter(|d| !d.0.is_empty() && d.0 != "0").unwrap_or(&one);
    let divisor = resources::amount(resource, divisor).max(1);
    Ok(((value + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    struct Data;
    impl Objects for Data {
        fn config_map(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
            (name == "cm").then(|| BTreeMap::from([("k".into(), b"v".to_vec())]))
        }
        fn secret(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
            (name == "se").then(|| BTreeMap::from([("p".into(), b"w".to_vec())]))
        }
    }

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        let cases = [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$$$(A)", "$1"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    fn pod() -> Pod {
        Pod::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b\"c"}},
            "spec": {"serviceAccountName": "sa", "containers": [{"name": "c",
                "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}},
                "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "P_"}, {"secretRef": {"name": "x", "optional": true}}],
                "env": [
                    {"name": "ONE", "value": "1"}, {"name": "TWO", "value": "$(ONE)$(P_k)$(KUBERNETES_SERVICE_HOST)"},
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
                    {"name": "SEC", "valueFrom": {"secretKeyRef": {"name": "se", "key": "p"}}},
                    {"name": "OPT", "valueFrom": {"secretKeyRef": {"name": "se", "key": "none", "optional": true}}}
                ]}]}
        }))
        .unwrap()
    }

    #[test]
    fn sources_and_order() {
        let pod = pod();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let service = Service::from_value(json!({"metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}))
        .unwrap();
        let services = service_variables(&[Arc::new(service)], "n", true);
        assert_eq!(services["KUBERNETES_PORT_443_TCP_ADDR"], "10.43.0.1");
        assert_eq!(services["KUBERNETES_PORT"], "tcp://10.43.0.1:443");
        assert_eq!(services["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
        let all = environment(&pod, container, &services, &Facts::default(), &Data).unwrap();
        let own: Vec<(&str, &str)> =
            all[services.len()..].iter().map(|v| (v.name.as_str(), v.value.as_str())).collect();
        assert_eq!(
            own,
            [
                ("P_k", "v"),
                ("ONE", "1"),
                ("TWO", "1v10.43.0.1"),
                ("NAME", "p"),
                ("CPU", "2"),
                ("MEM", "64"),
                ("SEC", "w")
            ]
        );
    }

    #[test]
    fn what_is_missing_is_told() {
        let mut pod = pod();
        let container = &mut pod.spec.as_mut().unwrap().containers[0];
        container.env_from.as_mut().unwrap()[0].config_map_ref.as_mut().unwrap().name = "gone".into();
        let container = container.clone();
        let error = environment(&pod, &container, &BTreeMap::new(), &Facts::default(), &Data).unwrap_err();
        assert_eq!(error.to_string(), "configmap \"gone\" not found");
        let error =
            Error::MissingKey { kind: "Secret", namespace: "n".into(), name: "s".into(), key: "k".into() };
        assert_eq!(error.to_string(), "couldn't find key k in Secret n/s");
    }

    #[test]
    fn downward_fields() {
        let facts = Facts { pod_ips: vec!["10.42.0.5".parse().unwrap()], ..Facts::default() };
        let pod = pod();
        let cases = [
            ("metadata.labels['a']", "b\"c"),
            ("metadata.labels", "a=\"b\\\"c\""),
            ("status.podIP", "10.42.0.5"),
            ("spec.serviceAccountName", "sa"),
        ];
        for (path, expected) in cases {
            assert_eq!(pod_field(&pod, path, &facts).unwrap(), expected, "{path}");
        }
        assert!(pod_field(&pod, "spec.nope", &facts).is_err());
    }
}
