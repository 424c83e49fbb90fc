//! NFS volumes, by the kernel's own client.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use nix::mount::MsFlags;

use super::mount::is_mounted;

/// The plugin's name in pods' directories.
pub const PLUGIN: &str = "kubernetes.io/nfs";
/// The version when options name none.
const VERSION: &str = "4.2";

/// Flags and data of a mount by its options.
fn options(given: &[String], server: IpAddr, read_only: bool) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data: Vec<String> = Vec::new();
    for option in given.iter().flat_map(|option| option.split(',')) {
        match option.trim() {
            "" | "defaults" | "rw" | "hard" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            other => data.push(match other.strip_prefix("nfsvers=") {
                Some(version) => format!("vers={version}"),
                None => other.to_owned(),
            }),
        }
    }
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    if !data.iter().any(|option| option.starts_with("vers=")) {
        data.push(format!("vers={VERSION}"));
    }
    data.push(format!("addr={server}"));
    (flags, data.join(","))
}

/// Whether the kernel has a client; the table is `/proc/filesystems`.
fn is_known(table: &str, kind: &str) -> bool {
    table.lines().any(|line| line.split_whitespace().last() == Some(kind))
}

/// Mounts an export, unless it is there already.
pub async fn mount(
    server: &str,
    export: &str,
    given: &[String],
    read_only: bool,
    target: &Path,
) -> Result<(), String> {
    if is_mounted(target).map_err(|error| error.to_string())? {
        return Ok(());
    }
    let source = format!("{server}:{export}");
    let said = |why: String| {
        format!(
            "mount failed: {why}\nMounting command: mount\nMounting arguments: -t nfs {source} {}",
            target.display()
        )
    };
    let table = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let kind = if is_known(&table, "nfs4") { "nfs4" } else { "nfs" };
    if !is_known(&table, kind) {
        return Err(said("unknown filesystem type 'nfs': the kernel of this node has no NFS client.".into()));
    }
    let mut found = tokio::net::lookup_host((server, 0))
        .await
        .map_err(|error| said(format!("mount.nfs: Failed to resolve server {server}: {error}")))?;
    let Some(address) = found.next() else {
        return Err(said(format!("mount.nfs: Failed to resolve server {server}: no address")));
    };
    let (flags, data) = options(given, address.ip(), read_only);
    fs::create_dir_all(target).map_err(|error| error.to_string())?;
    let (from, to) = (source.clone(), target.to_owned());
    // The kernel asks the server, which may take its time.
    let mounting = tokio::task::spawn_blocking(move || {
        nix::mount::mount(Some(from.as_str()), &to, Some(kind), flags, Some(data.as_str()))
    });
    let mounted = mounting.await.map_err(|error| error.to_string())?;
    mounted.map_err(|error| said(format!("mount.nfs: {error} for {source}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_the_kernels() {
        let server: IpAddr = "10.0.0.1".parse().unwrap();
        for (given, read_only, flags, data) in [
            (&[][..], false, MsFlags::empty(), "vers=4.2,addr=10.0.0.1"),
            (
                &["nfsvers=4.1", "noatime"][..],
                true,
                MsFlags::MS_NOATIME | MsFlags::MS_RDONLY,
                "vers=4.1,addr=10.0.0.1",
            ),
            (&["hard,timeo=600"][..], false, MsFlags::empty(), "timeo=600,vers=4.2,addr=10.0.0.1"),
        ] {
            let given: Vec<String> = given.iter().map(|option| (*option).to_owned()).collect();
            assert_eq!(options(&given, server, read_only), (flags, data.to_owned()));
        }
        assert!(is_known("nodev\ttmpfs\nnodev\tnfs4\n", "nfs4") && !is_known("nodev\ttmpfs\n", "nfs"));
    }

    #[tokio::test]
    async fn a_node_without_a_client_says_so() {
        if is_known(&fs::read_to_string("/proc/filesystems").unwrap(), "nfs") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let error = mount("127.0.0.1", "/x", &[], false, &directory.path().join("v")).await.unwrap_err();
        assert!(error.starts_with("mount failed: unknown filesystem type 'nfs'"), "{error}");
    }
}
