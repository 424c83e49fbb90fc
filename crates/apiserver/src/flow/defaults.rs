//! The levels and schemas that every cluster has: two of each in any case, the others as a suggestion.

use serde_json::{Value, json};

/// An object that is kept.
pub struct Default {
    /// The object without what the server sets.
    pub object: Value,
    /// Whether it is so whatever anybody writes.
    pub mandatory: bool,
}

/// Annotation of objects that follow the server's defaults.
pub const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, lendable percent, queues and hand size; no queues refuse.
const LEVELS: [(&str, u32, u32, u32, u32); 7] = [
    ("catch-all", 5, 0, 0, 0),
    ("system", 30, 33, 64, 6),
    ("node-high", 40, 25, 64, 6),
    ("leader-election", 10, 0, 16, 4),
    ("workload-high", 40, 50, 128, 6),
    ("workload-low", 100, 90, 128, 6),
    ("global-default", 20, 50, 128, 6),
];

fn metadata(name: &str) -> Value {
    json!({"name": name, "annotations": {AUTOUPDATE: "true"}})
}

/// The priority levels.
pub fn levels() -> Vec<Default> {
    let exempt = json!({"metadata": metadata("exempt"), "spec": {"type": "Exempt",
        "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}});
    let limited = LEVELS.iter().map(|(name, shares, lendable, queues, hand)| {
        let response = match queues {
            0 => json!({"type": "Reject"}),
            _ => json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}}),
        };
        let limited =
            json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
        let spec = json!({"type": "Limited", "limited": limited});
        Default { object: json!({"metadata": metadata(name), "spec": spec}), mandatory: *name == "catch-all" }
    });
    std::iter::once(Default { object: exempt, mandatory: true }).chain(limited).collect()
}

fn groups(names: &[&str]) -> Vec<Value> {
    names.iter().map(|n| json!({"kind": "Group", "group": {"name": n}})).collect()
}

fn users(names: &[&str]) -> Vec<Value> {
    names.iter().map(|n| json!({"kind": "User", "user": {"name": n}})).collect()
}

fn system_accounts() -> Vec<Value> {
    vec![json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}})]
}

fn resources(verbs: &[&str], group: &str, resources: &[&str], cluster: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

/// Everything a subject may ask.
fn anything(subjects: Vec<Value>) -> Value {
    json!({"subjects": subjects, "resourceRules": [resources(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})
}

fn leases(verbs: &[&str]) -> Value {
    resources(verbs, "coordination.k8s.io", &["leases"], false)
}

/// The flow schemas.
pub fn schemas() -> Vec<Default> {
    let everybody = || groups(&["system:unauthenticated", "system:authenticated"]);
    let managers = ["system:kube-controller-manager", "system:kube-scheduler"];
    let probes = json!({"subjects": everybody(),
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]});
    let candidates = [users(&managers), system_accounts()].concat();
    let elections = json!({"subjects": candidates,
        "resourceRules": [leases(&["get", "create", "update"])]});
    let nodes = json!({"subjects": groups(&["system:nodes"]),
        "resourceRules": [resources(&["*"], "", &["nodes", "nodes/status"], true), leases(&["*"])]});
    let rows = [
        ("exempt", "exempt", 1, "", anything(groups(&["system:masters"]))),
        ("catch-all", "catch-all", 10_000, "ByUser", anything(everybody())),
        ("system-nodes", "system", 500, "ByUser", anything(groups(&["system:nodes"]))),
        ("system-node-high", "node-high", 400, "ByUser", nodes),
        ("probes", "exempt", 2, "", probes),
        ("system-leader-election", "leader-election", 100, "ByUser", elections),
        ("kube-controller-manager", "workload-high", 800, "ByNamespace", anything(users(&managers[..1]))),
        ("kube-scheduler", "workload-high", 800, "ByNamespace", anything(users(&managers[1..]))),
        ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", anything(system_accounts())),
        ("service-accounts", "workload-low", 9000, "ByUser", anything(groups(&["system:serviceaccounts"]))),
        ("global-default", "global-default", 9900, "ByUser", anything(everybody())),
    ];
    rows.into_iter()
        .map(|(name, level, precedence, by, rule)| {
            let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
                "rules": [rule]});
            if !by.is_empty() {
                spec["distinguisherMethod"] = json!({"type": by});
            }
            let mandatory = matches!(name, "exempt" | "catch-all");
            Default { object: json!({"metadata": metadata(name), "spec": spec}), mandatory }
        })
        .collect()
}
