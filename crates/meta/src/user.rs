//! The identity of a caller, as authenticators establish it and everything behind them sees it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Group of every authenticated user.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// Group of the anonymous user.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// Group that RBAC's bootstrap binding makes cluster administrators.
pub const GROUP_MASTERS: &str = "system:masters";
/// Group of all nodes.
pub const GROUP_NODES: &str = "system:nodes";
/// Name of the anonymous user.
pub const USER_ANONYMOUS: &str = "system:anonymous";

/// Who makes a request (authentication.k8s.io/v1 UserInfo).
///
/// In-process callers put one into the request's `http::Extensions`; over the network authenticators
/// make it from certificates and tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserInfo {
    /// User name, e.g. `system:serviceaccount:kube-system:deployment-controller`.
    pub username: String,
    /// Unique id, empty where the authenticator has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Groups the user belongs to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Further attributes, e.g. the pod a token is bound to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// The anonymous user.
    pub fn anonymous() -> Self {
        UserInfo {
            username: USER_ANONYMOUS.into(),
            groups: vec![GROUP_UNAUTHENTICATED.into()],
            ..Default::default()
        }
    }

    /// A ServiceAccount's user, in the groups upstream puts it in.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        UserInfo {
            username: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                GROUP_AUTHENTICATED.into(),
            ],
            ..Default::default()
        }
    }

    /// A user in the given groups and in `system:authenticated`.
    pub fn authenticated(username: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().copied().chain([GROUP_AUTHENTICATED]).map(String::from).collect();
        UserInfo { username: username.into(), groups, ..Default::default() }
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}
