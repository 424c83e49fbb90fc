//! Services: addresses, node ports, families and policies.

use meta::{FieldError, Status};
use serde_json::{Value, json};

use super::{Context, Object, Strategy, child, set_default, text};
use crate::allocate::Reservation;
use crate::validate;
use crate::write::meta_text;

/// Seconds that ClientIP affinity lasts unless told otherwise.
const AFFINITY_SECONDS: i64 = 10_800;
/// `clusterIP` of a headless Service.
const HEADLESS: &str = "None";

/// What of a Service does nothing, or is on its way out.
fn ignored(service: &Object) -> Vec<String> {
    let (spec, none) = (service.get("spec").unwrap_or(&Value::Null), Value::Null);
    let annotations = service.get("metadata").map_or(&none, |m| &m["annotations"]);
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    let external = spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty());
    let named = text("type") == "ExternalName";
    let headless = text("type") == "ClusterIP" && text("clusterIP") == HEADLESS;
    let affinity = !matches!(text("sessionAffinity"), "" | "None");
    let hints = "service.kubernetes.io/topology-aware-hints";
    let all = [
        (
            annotations.get(hints).is_some(),
            "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead",
        ),
        (
            headless && !text("loadBalancerIP").is_empty(),
            "spec.loadBalancerIP is ignored for headless services",
        ),
        (headless && external, "spec.externalIPs is ignored for headless services"),
        (headless && affinity, "spec.SessionAffinity is ignored for headless services"),
        (named && external, "spec.externalIPs is ignored when spec.type is \"ExternalName\""),
        (
            !named && !text("externalName").is_empty(),
            "spec.externalName is ignored when spec.type is not \"ExternalName\"",
        ),
        (
            text("trafficDistribution") == "PreferClose",
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
        ),
    ];
    all.into_iter().filter(|(holds, _)| *holds).map(|(_, text)| text.to_owned()).collect()
}

/// Strategy of Services.
pub struct Service;

fn service_type(spec: &Object) -> &str {
    text(spec, "type")
}

fn wants_node_ports(spec: &Object) -> bool {
    match service_type(spec) {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn needs_address(spec: &Object) -> bool {
    service_type(spec) != "ExternalName" && text(spec, "clusterIP") != HEADLESS
}

fn refuse(service: &Object, error: FieldError) -> Status {
    Status::invalid("", "Service", meta_text(service, "name"), &[error])
}

impl Strategy for Service {
    fn warnings(&self, service: &Object) -> Vec<String> {
        ignored(service)
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }

    fn default(&self, service: &mut Object) {
        let spec = child(service, "spec");
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let Value::Object(port) = port else { continue };
            let unset = match port.get("targetPort") {
                None | Some(Value::Null) => true,
                Some(v) => v.as_i64() == Some(0) || v.as_str() == Some(""),
            };
            if unset && let Some(number) = port.get("port").cloned() {
                port.insert("targetPort".into(), number);
            }
        }
        if text(spec, "sessionAffinity") == "ClientIP" {
            set_default(
                child(child(spec, "sessionAffinityConfig"), "clientIP"),
                "timeoutSeconds",
                AFFINITY_SECONDS,
            );
        }
        let external = matches!(service_type(spec), "NodePort" | "LoadBalancer")
            || spec.get("externalIPs").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
        if external {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        if service_type(spec) == "LoadBalancer" {
            spec.entry("allocateLoadBalancerNodePorts").or_insert(Value::Bool(true));
        }
        if service_type(spec) != "ExternalName" {
            set_default(spec, "internalTrafficPolicy", "Cluster");
            spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
            set_default(spec, "ipFamilyPolicy", "SingleStack");
        }
    }

    fn prepare_create(
        &self,
        context: &Context<'_>,
        service: &mut Object,
    ) -> Result<Option<Reservation>, Status> {
        service.insert("status".into(), json!({"loadBalancer": {}}));
        let mut held = Reservation::new(context.allocators);
        allocate(context, service, None, &mut held)?;
        Ok(Some(held))
    }

    fn prepare_update(
        &self,
        context: &Context<'_>,
        subresource: &str,
        new: &mut Object,
        old: &Object,
    ) -> Result<Option<Reservation>, Status> {
        if subresource == "status" {
            return Ok(None);
        }
        let empty = Object::new();
        let before = old.get("spec").and_then(Value::as_object).unwrap_or(&empty);
        let spec = child(new, "spec");
        if service_type(spec) == "ExternalName" {
            ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
                .iter()
                .for_each(|k| drop(spec.remove(*k)));
        } else if text(spec, "clusterIP").is_empty() {
            for key in ["clusterIP", "clusterIPs"] {
                if let Some(value) = before.get(key) {
                    spec.insert(key.into(), value.clone());
                }
            }
        }
        keep_node_ports(spec, before);
        let mut held = Reservation::new(context.allocators);
        allocate(context, new, Some(before), &mut held)?;
        Ok(Some(held))
    }

    fn validate(&self, service: &Object) -> Option<Vec<FieldError>> {
        Some(validate_service(service))
    }

    fn validate_update(&self, _: &str, new: &Object, old: &Object) -> Vec<FieldError> {
        let spec = |o: &Object| o.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
        let (new, old) = (spec(new), spec(old));
        let had = text(&old, "clusterIP");
        let stays = service_type(&old) != "ExternalName" && service_type(&new) != "ExternalName";
        if stays && !had.is_empty() && text(&new, "clusterIP") != had {
            let value = new.get("clusterIP").cloned().unwrap_or_default();
            return vec![FieldError::invalid("spec.clusterIPs[0]", &value, "may not change once set")];
        }
        Vec::new()
    }

    fn name_problem(&self, name: &str) -> Option<String> {
        meta::names::label_1035_problem(name)
    }
}

/// Node ports are kept for ports that stay, and dropped when the type no longer has them.
fn keep_node_ports(spec: &mut Object, before: &Object) {
    let wants = wants_node_ports(spec);
    let had = wants_node_ports(before);
    let old_ports = before.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Value::Object(port) = port else { continue };
        let same = |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"];
        let kept = old_ports.iter().find(same).map(|o| o["nodePort"].clone()).filter(Value::is_number);
        let own = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
        if wants && own == 0 {
            if let Some(kept) = kept {
                port.insert("nodePort".into(), kept);
            }
        } else if !wants && had && kept.is_some_and(|k| k == own) {
            port.remove("nodePort");
        }
    }
}

/// Gives the Service what it lacks; what it had before is its own already.
fn allocate(
    context: &Context<'_>,
    service: &mut Object,
    before: Option<&Object>,
    held: &mut Reservation,
) -> Result<(), Status> {
    let name = service.clone();
    let spec = child(service, "spec");
    let empty = Object::new();
    let before = before.unwrap_or(&empty);
    if text(spec, "clusterIP").is_empty()
        && let Some(first) = spec.get("clusterIPs").and_then(|l| l.get(0)).cloned()
    {
        spec.insert("clusterIP".into(), first);
    }
    if needs_address(spec)
        && (text(spec, "clusterIP").is_empty() || text(spec, "clusterIP") != text(before, "clusterIP"))
    {
        let wanted = Some(text(spec, "clusterIP").to_owned()).filter(|w| !w.is_empty());
        let taken = held.address(wanted.as_deref(), context.random);
        let address = taken.map_err(|why| {
            let value = wanted.clone().map_or(Value::Null, Value::from);
            match &wanted {
                Some(_) => refuse(&name, FieldError::invalid("spec.clusterIPs", &json!([value]), &why)),
                None => Status::internal(why),
            }
        })?;
        spec.insert("clusterIP".into(), address.to_string().into());
    }
    if !text(spec, "clusterIP").is_empty() {
        let ip = spec["clusterIP"].clone();
        spec.insert("clusterIPs".into(), json!([ip]));
    }
    if !wants_node_ports(spec) {
        return Ok(());
    }
    let had: Vec<i64> = (before.get("ports").and_then(Value::as_array).into_iter().flatten())
        .filter_map(|p| p["nodePort"].as_i64())
        .collect();
    for (i, port) in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        let Value::Object(port) = port else { continue };
        let own = port.get("nodePort").and_then(Value::as_i64).filter(|n| *n != 0);
        if own.is_some_and(|n| had.contains(&n)) {
            continue;
        }
        let wanted = own.and_then(|n| u16::try_from(n).ok());
        let got = held.port(wanted, context.random).map_err(|why| {
            refuse(&name, FieldError::invalid(format!("spec.ports[{i}].nodePort"), &json!(own), &why))
        })?;
        port.insert("nodePort".into(), got.into());
    }
    Ok(())
}

fn validate_service(service: &Object) -> Vec<FieldError> {
    let empty = Object::new();
    let spec = service.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    let at = |key: &str| spec.get(key).unwrap_or(&Value::Null);
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    let mut errors: Vec<FieldError> =
        validate::required_one_of(at("type"), "spec.type", &types).into_iter().collect();
    errors.extend(validate::one_of(at("sessionAffinity"), "spec.sessionAffinity", &["ClientIP", "None"]));
    errors.extend(validate::one_of(
        at("externalTrafficPolicy"),
        "spec.externalTrafficPolicy",
        &["Cluster", "Local"],
    ));
    errors.extend(validate::one_of(
        at("internalTrafficPolicy"),
        "spec.internalTrafficPolicy",
        &["Cluster", "Local"],
    ));
    let ports = at("ports").as_array().map_or(&[][..], Vec::as_slice);
    let headless = text(spec, "clusterIP") == HEADLESS;
    if ports.is_empty() && !headless && service_type(spec) != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    match service_type(spec) {
        "ExternalName" => {
            match meta::names::subdomain_problem(text(spec, "externalName").trim_end_matches('.')) {
                _ if text(spec, "externalName").is_empty() => {
                    errors.push(FieldError::required("spec.externalName", ""))
                }
                Some(problem) => {
                    errors.push(FieldError::invalid("spec.externalName", at("externalName"), &problem))
                }
                None => {}
            }
        }
        "NodePort" | "LoadBalancer" if headless => {
            let why = format!("may not be set to 'None' for {} services", service_type(spec));
            errors.push(FieldError::invalid("spec.clusterIPs[0]", &json!(HEADLESS), &why));
        }
        _ => {}
    }
    if text(spec, "sessionAffinity") == "ClientIP" {
        let seconds = &at("sessionAffinityConfig")["clientIP"]["timeoutSeconds"];
        if seconds.as_i64().is_some_and(|n| !(1..=86_400).contains(&n)) {
            errors.push(FieldError::invalid(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                seconds,
                "must be greater than 0 and less than 86400",
            ));
        }
    }
    errors.extend(validate::labels(at("selector"), "spec.selector"));
    errors.extend(validate_ports(ports, wants_node_ports(spec)));
    errors
}

fn validate_ports(ports: &[Value], node_ports: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (mut names, mut numbers) = (std::collections::HashSet::new(), std::collections::HashSet::new());
    for (i, port) in ports.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{i}].{field}");
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(at("name"), ""));
        } else if !name.is_empty() {
            if let Some(problem) = meta::names::label_problem(name) {
                errors.push(FieldError::invalid(at("name"), &port["name"], &problem));
            }
            if !names.insert(name) {
                errors.push(FieldError::duplicate(at("name"), &port["name"]));
            }
        }
        if port["port"].is_null() {
            errors.push(FieldError::required(at("port"), ""));
        }
        errors.extend(validate::port_number(&port["port"], &at("port")));
        errors.extend(validate::required_one_of(&port["protocol"], &at("protocol"), &["SCTP", "TCP", "UDP"]));
        match &port["targetPort"] {
            Value::String(s) => {
                if let Some(problem) = meta::names::port_name_problem(s) {
                    errors.push(FieldError::invalid(at("targetPort"), &port["targetPort"], problem));
                }
            }
            number => errors.extend(validate::port_number(number, &at("targetPort"))),
        }
        if !node_ports && port["nodePort"].as_i64().unwrap_or(0) != 0 {
            errors.push(FieldError::forbidden(at("nodePort"), "may not be used when `type` is 'ClusterIP'"));
        }
        if !numbers.insert((port["port"].as_i64(), port["protocol"].as_str())) {
            let value = json!({"port": port["port"], "protocol": port["protocol"]});
            errors.push(FieldError::duplicate(format!("spec.ports[{i}]"), &value));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_rules() {
        let mut service = json!({"metadata": {"name": "s"}, "spec": {"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]}})
            .as_object().unwrap().clone();
        Service.default(&mut service);
        assert_eq!(service["spec"]["ports"][0]["targetPort"], 80);
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
        assert!(validate_service(&service).is_empty());
        service["spec"]["ports"] =
            json!([{"port": 80, "protocol": "TCP"}, {"port": 0, "protocol": "X", "name": "b"}]);
        let fields: Vec<String> = validate_service(&service).into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["spec.ports[0].name", "spec.ports[1].port", "spec.ports[1].protocol"]);
    }
}
