//! `Impersonate-*` headers: acting as somebody else, where the authorizers allow each part of it.

use std::collections::BTreeMap;

use auth::rbac::{Attributes, Decision};
use http::HeaderMap;
use meta::user::{GROUP_AUTHENTICATED, GROUP_UNAUTHENTICATED, USER_ANONYMOUS};
use meta::{Status, UserInfo};

use crate::server::Server;

const EXTRA_PREFIX: &str = "impersonate-extra-";
/// Group of what is no resource but can be impersonated.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// What the headers ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

fn wanted(headers: &HeaderMap) -> Wanted {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok().map(String::from)).collect()
    };
    let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX) {
            let key = crate::path::percent_decode(key).to_lowercase();
            extra.entry(key).or_default().extend(all(name.as_str()));
        }
    }
    Wanted {
        user: first("impersonate-user"),
        uid: first("impersonate-uid"),
        groups: all("impersonate-group"),
        extra,
    }
}

impl Server {
    /// The user a request acts as.
    pub(crate) async fn impersonate(&self, headers: &HeaderMap, user: UserInfo) -> Result<UserInfo, Status> {
        let wanted = wanted(headers);
        if wanted == Wanted::default() {
            return Ok(user);
        }
        if wanted.user.is_empty() {
            return Err(Status::bad_request(format!(
                "requested {} without impersonating a user",
                if wanted.groups.is_empty() { "attributes" } else { "groups" }
            )));
        }
        let account = wanted.user.strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':'));
        match account {
            Some((namespace, name)) => {
                self.may_be(&user, ("", "serviceaccounts", ""), namespace, name).await?
            }
            None => self.may_be(&user, ("", "users", ""), "", &wanted.user).await?,
        }
        for group in &wanted.groups {
            self.may_be(&user, ("", "groups", ""), "", group).await?;
        }
        if !wanted.uid.is_empty() {
            self.may_be(&user, (AUTHENTICATION, "uids", ""), "", &wanted.uid).await?;
        }
        for (key, values) in &wanted.extra {
            for value in values {
                self.may_be(&user, (AUTHENTICATION, "userextras", key), "", value).await?;
            }
        }
        let mut acting = match account {
            Some((namespace, name)) if wanted.groups.is_empty() => UserInfo::service_account(namespace, name),
            _ => UserInfo { username: wanted.user.clone(), groups: wanted.groups, ..Default::default() },
        };
        (acting.uid, acting.extra) = (wanted.uid, wanted.extra);
        let group =
            if acting.username == USER_ANONYMOUS { GROUP_UNAUTHENTICATED } else { GROUP_AUTHENTICATED };
        if !acting.in_group(GROUP_AUTHENTICATED) && !acting.in_group(GROUP_UNAUTHENTICATED) {
            acting.groups.push(group.into());
        }
        Ok(acting)
    }

    async fn may_be(
        &self,
        user: &UserInfo,
        (api_group, resource, subresource): (&str, &str, &str),
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        let attributes = Attributes {
            verb: "impersonate",
            api_group,
            api_version: "v1",
            resource,
            subresource,
            name,
            namespace,
            resource_request: true,
            ..Attributes::of(user)
        };
        match self.authorize(&attributes).await {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion(reason) | Decision::Deny(reason) => Err(attributes.forbidden(&reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(wanted(&headers), Wanted::default());
        for (name, value) in [
            ("impersonate-user", "ann"),
            ("impersonate-uid", "u"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
            ("impersonate-extra-acme.com%2Fproject", "one"),
            ("impersonate-extra-acme.com%2Fproject", "two"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let found = wanted(&headers);
        assert_eq!((found.user.as_str(), found.uid.as_str()), ("ann", "u"));
        assert_eq!(found.groups, ["a", "b"]);
        assert_eq!(found.extra["acme.com/project"], ["one", "two"]);
    }
}
