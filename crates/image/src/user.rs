//! Who a container runs as: `user[:group]` looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! Pure: takes the files' text. Follows runc's `user.GetExecUser`, with its wording.

use serde::{Deserialize, Serialize};

/// A resolved identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids, of the image's `/etc/group`.
    pub groups: Vec<u32>,
    /// Home directory, `/` where unknown.
    pub home: String,
}

/// The name is not in the image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Unknown user.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// Unknown group.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// Not a number that fits.
    #[error("uids and gids must be in range 0-2147483647: {0}")]
    Range(String),
}

/// Largest id accepted, as in runc.
const ID_MAX: u32 = i32::MAX as u32;

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let (_, uid, gid, _, home) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next(), fields.next());
        let usable = !name.is_empty() && !name.starts_with('#');
        usable.then_some(PasswdEntry {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.unwrap_or(""),
        })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let (_, gid, members) = (fields.next()?, fields.next()?, fields.next().unwrap_or(""));
        Some((name, gid.parse().ok()?, members))
    })
}

fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return Ok(None);
    }
    let id = text.parse::<u32>().ok().filter(|id| *id <= ID_MAX);
    id.map(Some).ok_or_else(|| UserError::Range(text.to_owned()))
}

/// Resolves `spec` (`""`, `user`, `uid`, `user:group`, ...) against the texts of passwd and group.
pub fn resolve_user(spec: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec, None),
    };
    let as_number = number(user)?;
    let entry = passwd_entries(passwd).find(|e| match as_number {
        _ if user.is_empty() => e.uid == 0,
        Some(uid) => e.uid == uid,
        None => e.name == user,
    });
    let mut identity = Identity { home: "/".into(), ..Identity::default() };
    let mut name = None;
    match (&entry, as_number) {
        (Some(e), _) => {
            (identity.uid, identity.gid, name) = (e.uid, e.gid, Some(e.name));
            if !e.home.is_empty() {
                identity.home = e.home.to_owned();
            }
        }
        (None, Some(uid)) => identity.uid = uid,
        (None, None) if user.is_empty() => {}
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    }
    match wanted_group {
        Some(wanted) => {
            let by_number = number(wanted)?;
            let found = group_entries(group).find(|(name, _, _)| *name == wanted).map(|(_, gid, _)| gid);
            identity.gid = by_number.or(found).ok_or_else(|| UserError::NoGroup(wanted.to_owned()))?;
        }
        // With an explicit group the user's other groups do not count, as in runc.
        None => {
            if let Some(name) = name {
                let member = |members: &str| members.split(',').any(|m| m == name);
                identity.groups = group_entries(group)
                    .filter(|(_, _, members)| member(members))
                    .map(|(_, gid, _)| gid)
                    .collect();
            }
        }
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# note\nweb:x:33:34:web:/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:other,web\nops:x:60:web\n";

    #[test]
    fn looks_up_as_runc_does() {
        let table: [(&str, (u32, u32, &[u32], &str)); 8] = [
            ("", (0, 0, &[], "/root")),
            ("web", (33, 34, &[50, 60], "/srv")),
            ("33", (33, 34, &[50, 60], "/srv")),
            ("1000", (1000, 0, &[], "/")),
            ("web:logs", (33, 50, &[], "/srv")),
            ("1000:1001", (1000, 1001, &[], "/")),
            ("web:0", (33, 0, &[], "/srv")),
            ("web:", (33, 34, &[50, 60], "/srv")),
        ];
        for (spec, (uid, gid, groups, home)) in table {
            let got = resolve_user(spec, PASSWD, GROUP).unwrap();
            assert_eq!(got, Identity { uid, gid, groups: groups.to_vec(), home: home.into() }, "{spec}");
        }
        assert_eq!(resolve_user("", "", "").unwrap(), Identity { home: "/".into(), ..Identity::default() });
    }

    #[test]
    fn names_what_is_missing() {
        assert_eq!(resolve_user("nobody", PASSWD, GROUP), Err(UserError::NoUser("nobody".into())));
        assert_eq!(resolve_user("web:x", PASSWD, GROUP), Err(UserError::NoGroup("x".into())));
        assert_eq!(resolve_user("4294967295", PASSWD, GROUP), Err(UserError::Range("4294967295".into())));
    }
}
