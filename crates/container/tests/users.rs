//! Pods with users of their own (`hostUsers: false`).

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use cri::{ContainerConfig, IdMapping, Mount, RuntimeService};
use support::{Node, share_pids, shell};

const ROOT: u32 = 7 << 16;

async fn sandbox(node: &Node) -> Option<String> {
    if !node.runtime.info().await.unwrap().user_namespaces {
        eprintln!("this kernel has no user namespaces for pods");
        return None;
    }
    let mut pod = node.pod();
    pod.security.namespaces.host_users = false;
    pod.security.namespaces.user_ids = Some(IdMapping { container_id: 0, host_id: ROOT, length: 65536 });
    Some(node.runtime.run_pod_sandbox(pod).await.unwrap())
}

fn lines(log: &[String]) -> Vec<&str> {
    log.iter().map(|line| line.split_once(" F ").map_or(line.as_str(), |(_, text)| text)).collect()
}

fn mount(host: &std::path::Path, container: &str) -> Mount {
    Mount { container_path: container.into(), host_path: host.to_owned(), ..Mount::default() }
}

#[tokio::test]
async fn ids_and_files() {
    Node::run(async |node| {
        let Some(sandbox) = sandbox(node).await else { return };
        let volume = node.data.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "x").unwrap();
        std::os::unix::fs::chown(&volume, Some(0), Some(200)).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2775)).unwrap();
        let script = "set -e; echo $(cat /proc/self/uid_map); echo $(cat /proc/self/gid_map); \
             stat -c '%n %u:%g' / /bin/busybox /etc /etc/hosts /dev /dev/null /dev/shm /proc/1 /dev/pts /v /v/file /deep /deep/er /tmp; \
             touch /v/made /own /dev/shm/x; stat -c '%n %u:%g' /v/made /own; \
             echo changed >> /etc/plain; stat -c '%n %u:%g' /etc/plain; chown 33:34 /own; pwd; \
             chown 70000 /own 2>/dev/null || echo outside";
        let mut config = shell(script);
        config.mounts = vec![mount(&volume, "/v"), mount(&volume, "/deep/er")];
        config.working_dir = "/work/here".into();
        config.security.supplemental_groups = vec![200];
        let (code, log) = node.script(&sandbox, config).await;
        let map = format!("0 {ROOT} 65536");
        let expected = [
            &map, &map, "/ 0:0", "/bin/busybox 0:0", "/etc 0:0", "/etc/hosts 0:0", "/dev 0:0", "/dev/null 0:0",
            "/dev/shm 0:0", "/proc/1 0:0", "/dev/pts 0:0", "/v 0:200", "/v/file 0:0", "/deep 0:0", "/deep/er 0:200",
            "/tmp 0:0", "/v/made 0:200", "/own 0:0", "/etc/plain 0:0", "/work/here", "outside",
        ];
        assert_eq!((code, lines(&log)), (0, expected.to_vec()));
        let made = fs::metadata(volume.join("made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 200), "what a pod writes to a volume is on the disk as it sees it");
    })
    .await;
}

#[tokio::test]
async fn power_ends_at_the_pod() {
    Node::run(async |node| {
        let Some(sandbox) = sandbox(node).await else { return };
        let script = "mount -t tmpfs x /tmp && echo mounted; umount /proc/kcore 2>/dev/null || echo locked; \
             umount /etc/hosts 2>/dev/null || echo kept; ip link set lo down && echo link; \
             sh -c 'echo 1 > /proc/sys/vm/drop_caches' 2>/dev/null || echo denied; mknod /n c 1 3 2>/dev/null || echo no node";
        let mut config = shell(script);
        config.security.capabilities.add = vec!["SYS_ADMIN".into(), "NET_ADMIN".into()];
        let (_, log) = node.script(&sandbox, config).await;
        assert_eq!(lines(&log), ["mounted", "locked", "kept", "link", "denied", "no node"]);

        let mut config = shell("id -u; grep CapEff /proc/self/status; echo x > /dev/null && echo null; cat /etc/hosts >/dev/null && echo hosts");
        config.security.run_as_user = Some(1000);
        let (code, log) = node.script(&sandbox, config).await;
        assert_eq!((code, lines(&log)), (0, vec!["1000", "CapEff:\t0000000000000000", "null", "hosts"]));
        let mut config = shell("true");
        config.security.run_as_user = Some(70000);
        let id = node.runtime.create_container(&sandbox, config).await.unwrap();
        let error = node.runtime.start_container(&id).await.unwrap_err();
        assert!(error.to_string().contains("setuid"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn further_processes_and_terminals() {
    Node::run(async |node| {
        let Some(sandbox) = sandbox(node).await else { return };
        let id = node
            .start(&sandbox, ContainerConfig { tty: true, ..shell("tty; stat -c %u:%g $(tty); sleep 1000") })
            .await;
        node.wait_for_log(&id, "0:5").await;
        let (code, out, _) = node
            .exec(&id, &["sh", "-c", "id -u; cat /proc/self/uid_map | tr -s ' '; touch /x; stat -c %u /x"])
            .await;
        assert_eq!((code, out), (0, format!("0\n 0 {ROOT} 65536\n0")));
        let pid = node.runtime.container_status(&id).await.unwrap().pid.unwrap();
        assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), ROOT);
        let upper = node.runtime.changes_of(&id).unwrap();
        assert_eq!(fs::metadata(upper.join("x")).unwrap().uid(), ROOT);
        let stats = node.runtime.container_stats(&id).await.unwrap();
        assert!(stats.pids >= 1 && stats.writable_layer_inodes > 0, "{stats:?}");
        // A neighbour that sees its processes is the same users'.
        let mut other = node.pod();
        other.uid = "uid-2".into();
        other.security.namespaces.host_users = false;
        other.security.namespaces.pid = cri::NamespaceMode::Pod;
        other.security.namespaces.user_ids =
            Some(IdMapping { container_id: 0, host_id: 2 * ROOT, length: 65536 });
        let shared = node.runtime.run_pod_sandbox(other).await.unwrap();
        let mut config = shell("echo $$ > /tmp/pid; test $(cat /tmp/pid) != 1 && kill -0 $$ && echo shared");
        share_pids(&mut config);
        let (_, log) = node.script(&shared, config).await;
        assert_eq!(lines(&log), ["shared"]);
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be() {
    Node::run(async |node| {
        let mut pod = node.pod();
        pod.security.namespaces.host_users = false;
        let error = node.runtime.run_pod_sandbox(pod.clone()).await.unwrap_err().to_string();
        assert!(error.ends_with("a user namespace needs a mapping of ids"), "{error}");
        pod.security.namespaces.user_ids = Some(IdMapping { container_id: 5, host_id: ROOT, length: 65536 });
        let error = node.runtime.run_pod_sandbox(pod).await.unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("user namespace mapping 5:{ROOT}:65536 is not supported")),
            "{error}"
        );
    })
    .await;
}
