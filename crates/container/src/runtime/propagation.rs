//! Whether the node's mounts allow the propagation that a volume asks for.
//!
//! Where they do not, the volume would silently miss mounts; containerd refuses such a container, and so do we.

use std::path::{Path, PathBuf};

use cri::MountPropagation;

use super::teardown::unescape;

/// The mount that holds a path: where it is, and whether it is shared or a slave.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    point: PathBuf,
    shared: bool,
    slave: bool,
}

/// Finds the innermost (and of several there, the topmost) mount above `path` in the text of `mountinfo`.
fn holder(table: &str, path: &Path) -> Option<Holder> {
    let mut best: Option<Holder> = None;
    for line in table.lines() {
        let Some((left, _)) = line.split_once(" - ") else { continue };
        let mut fields = left.split(' ').skip(4);
        let point = fields.next().map(unescape)?;
        let longer = best.as_ref().is_none_or(|b| point.as_os_str().len() >= b.point.as_os_str().len());
        if path.starts_with(&point) && longer {
            let tags: Vec<&str> = fields.skip(1).collect();
            let has = |name: &str| tags.iter().any(|tag| tag.starts_with(name));
            best = Some(Holder { point, shared: has("shared:"), slave: has("master:") });
        }
    }
    best
}

/// Checks one volume; the error is containerd's message.
pub(super) fn check(table: &str, path: &Path, wanted: MountPropagation) -> Result<(), String> {
    if wanted == MountPropagation::Private {
        return Ok(());
    }
    let Some(holder) = holder(table, path) else { return Err(format!("{path:?} is on no mount")) };
    let (allowed, what) = match wanted {
        MountPropagation::Bidirectional => (holder.shared, "a shared mount"),
        _ => (holder.shared || holder.slave, "a shared or slave mount"),
    };
    let point = holder.point;
    if allowed { Ok(()) } else { Err(format!("path {path:?} is mounted on {point:?} but it is not {what}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        30 27 0:5 / /data rw - tmpfs t rw\n\
        31 27 0:6 / /slave rw master:1 - tmpfs t rw\n\
        32 27 0:7 / /with\\040space rw shared:9 - tmpfs t rw\n";

    #[test]
    fn follows_the_innermost_mount() {
        use MountPropagation::{Bidirectional, HostToContainer, Private};
        let table = [
            ("/var/x", Bidirectional, true),
            ("/data/x", Private, true),
            ("/data/x", HostToContainer, false),
            ("/data/x", Bidirectional, false),
            ("/database", Bidirectional, true),
            ("/slave", HostToContainer, true),
            ("/slave", Bidirectional, false),
            ("/with space/x", Bidirectional, true),
        ];
        for (path, wanted, allowed) in table {
            assert_eq!(check(TABLE, Path::new(path), wanted).is_ok(), allowed, "{path} {wanted:?}");
        }
        let error = check(TABLE, Path::new("/data/x"), Bidirectional).unwrap_err();
        assert_eq!(error, "path \"/data/x\" is mounted on \"/data\" but it is not a shared mount");
    }
}
