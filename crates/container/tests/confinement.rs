//! What containers may and may not do, and what they see.

mod support;

use std::fs;
use std::path::Path;

use cri::{Mount, MountPropagation, NamespaceMode, RuntimeService, SeccompProfile};
use support::{Node, share_pids, shell};

#[tokio::test]
async fn seccomp_blocks_and_lets_through() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let script = "unshare -U true 2>/dev/null; echo unshare=$?; chmod 700 /tmp; echo chmod=$?; grep Seccomp: /proc/self/status";
        let mut config = shell(script);
        config.security.seccomp = SeccompProfile::RuntimeDefault;
        let (_, log) = node.script(&sandbox, config).await;
        assert_eq!(log, ["stdout F unshare=1", "stdout F chmod=0", "stdout F Seccomp:\t2"]);
        let (_, log) = node.script(&sandbox, shell(script)).await;
        assert_eq!(log, ["stdout F unshare=0", "stdout F chmod=0", "stdout F Seccomp:\t0"]);

        let profile = node.data.path().join("profile.json");
        let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["chmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
        fs::write(&profile, json).unwrap();
        let mut config = shell("chmod 700 /tmp; id -u");
        config.security.seccomp = SeccompProfile::Localhost(profile);
        config.security.no_new_privs = true;
        config.security.run_as_user = Some(1000);
        let (code, log) = node.script(&sandbox, config).await;
        assert_eq!(code, 0);
        assert!(log[0].contains("Permission denied") && log[1].ends_with("1000"), "{log:?}");
        let mut config = shell("true");
        config.security.seccomp = SeccompProfile::Localhost("/no/such/profile".into());
        let error = node.runtime.create_container(&sandbox, config).await.unwrap_err();
        assert_eq!(error.reason(), "CreateContainerConfigError");
    })
    .await;
}

/// A line of `/proc/self/status`.
fn status_line<'a>(log: &'a [String], key: &str) -> &'a str {
    let line = log.iter().find(|l| l.contains(key)).unwrap();
    line.rsplit('\t').next().unwrap()
}

#[tokio::test]
async fn capabilities_users_and_no_new_privs() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let script = "cat /proc/self/status; id";
        let (_, log) = node.script(&sandbox, shell(script)).await;
        for key in ["CapBnd:", "CapEff:", "CapPrm:"] {
            assert_eq!(status_line(&log, key), "00000000a80425fb", "containerd's default set");
        }
        assert_eq!(status_line(&log, "CapInh:"), "0000000000000000");
        assert_eq!(status_line(&log, "NoNewPrivs:"), "0");

        let mut config = shell(script);
        config.security.capabilities.drop = vec!["ALL".into()];
        config.security.capabilities.add = vec!["NET_BIND_SERVICE".into()];
        config.security.run_as_username = "web".into();
        config.security.supplemental_groups = vec![77];
        config.security.no_new_privs = true;
        let (_, log) = node.script(&sandbox, config).await;
        assert_eq!(status_line(&log, "CapBnd:"), "0000000000000400");
        assert_eq!(status_line(&log, "CapEff:"), "0000000000000000");
        assert_eq!(status_line(&log, "NoNewPrivs:"), "1");
        let id = log.last().unwrap();
        assert!(
            id.contains("uid=33(web) gid=34(web)") && id.contains("50(logs)") && id.contains("77"),
            "{id}"
        );

        let mut config = shell("mount -t tmpfs x /tmp && echo mounted; test -e /dev/kmsg && echo devices");
        config.security.privileged = true;
        let (_, log) = node.script(&sandbox, config).await;
        assert_eq!(log, ["stdout F mounted", "stdout F devices"]);
    })
    .await;
}

#[tokio::test]
async fn masked_read_only_and_device_files() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let script = "cat /proc/interrupts | wc -c; ls /sys/firmware | wc -l; \
            (echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo protected; \
            (touch /sys/x) 2>/dev/null || echo sys; touch /w && echo writable; \
            head -c 3 /dev/zero | wc -c; mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem >/dev/null 2>&1 || echo nomem; \
            ls /dev | tr '\\n' ' '; df /dev/shm | tail -1 | wc -l; cat /proc/mounts | wc -l";
        let (_, log) = node.script(&sandbox, shell(script)).await;
        let text: Vec<&str> = log.iter().map(|l| l.trim_start_matches("stdout F ")).collect();
        assert_eq!(text[..7], ["0", "0", "protected", "sys", "writable", "3", "nomem"]);
        assert_eq!(text[7].trim_end_matches('1').trim_end(), "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero");
        let mounts: usize = text.last().unwrap().parse().unwrap();
        assert!(mounts < 50, "the node's mounts must not show: {mounts}");

        let mut config = shell("touch /w 2>/dev/null || echo refused; touch /dev/shm/x && echo shm");
        config.security.readonly_rootfs = true;
        let (_, log) = node.script(&sandbox, config).await;
        assert_eq!(log, ["stdout F refused", "stdout F shm"]);
        // The same /dev/shm for all of the pod.
        let (code, _) = node.script(&sandbox, shell("test -e /dev/shm/x")).await;
        assert_eq!(code, 0);
    })
    .await;
}

#[tokio::test]
async fn mounts_are_as_asked() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let volume = node.data.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "content").unwrap();
        let mount = |container_path: &str, host_path: &Path, readonly| Mount {
            container_path: container_path.into(),
            host_path: host_path.into(),
            readonly,
            propagation: MountPropagation::Private,
            ..Default::default()
        };
        let mut config = shell(
            "cat /data/file; touch /data/new && echo rw; touch /ro/x 2>/dev/null || echo ro; cat /deep/a/one; \
             cat /etc/hosts",
        );
        config.mounts = vec![
            mount("/deep/a/one", &volume.join("file"), true),
            mount("/data", &volume, false),
            mount("/ro", &volume, true),
            mount("/etc/hosts", &volume.join("file"), false),
        ];
        config.mounts[2].recursive_readonly = true;
        let (_, log) = node.script(&sandbox, config).await;
        assert_eq!(log, ["stdout F contentrw", "stdout F ro", "stdout P contentcontent"]);
        assert!(volume.join("new").exists());
        let mut config = shell("true");
        config.mounts = vec![mount("/x", Path::new("/no/such/dir"), false)];
        let error = node.runtime.create_container(&sandbox, config).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/dir"), "{error}");

        let mut config = shell("cat /img/shown; ls /img/etc; touch /img/x 2>/dev/null || echo ro; cat /part/passwd | wc -l");
        let image = |path: &str, sub: &str| Mount {
            container_path: path.into(),
            image: Some("busybox:test".into()),
            image_sub_path: sub.into(),
            ..Default::default()
        };
        config.mounts = vec![image("/img", ""), image("/part", "etc")];
        let (_, log) = node.script(&sandbox, config).await;
        let want = ["stdout F from abovegroup", "stdout F passwd", "stdout F plain", "stdout F ro", "stdout F 2"];
        assert_eq!(log, want);
    })
    .await;
}

#[tokio::test]
async fn limits_reach_the_cgroups() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let mut config = shell("cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max; sleep 1000");
        config.resources.memory_limit_bytes = 64 << 20;
        config.resources.cpu_shares = 512;
        config.resources.cpu_quota_us = 50_000;
        config.resources.cpu_period_us = 100_000;
        config.resources.pids_limit = 99;
        config.resources.cpuset_cpus = "0".into();
        let id = node.start(&sandbox, config).await;
        node.wait_for_log(&id, "67108864").await;
        assert_eq!(node.exec(&id, &["nproc"]).await.1, "1");
        if !node.runtime.cgroups().is_v2() {
            let file = |path: &str| format!("/sys/fs/cgroup/{path}");
            let table = [
                ("cpu/cpu.shares", "512"),
                ("cpu/cpu.cfs_quota_us", "50000"),
                ("pids/pids.max", "99"),
            ];
            for (path, want) in table {
                assert_eq!(node.exec(&id, &["cat", &file(path)]).await.1, want, "{path}");
            }
        }
        let update = cri::ContainerResources { memory_limit_bytes: 128 << 20, cpu_shares: 1024, ..Default::default() };
        node.runtime.update_container_resources(&id, &update).await.unwrap();
        let resources = node.runtime.container_status(&id).await.unwrap().resources;
        assert_eq!((resources.memory_limit_bytes, resources.cpu_shares, resources.pids_limit), (128 << 20, 1024, 99));
        let stats = node.runtime.container_stats(&id).await.unwrap();
        assert!(stats.cpu_usage_ns > 0 && stats.memory_usage_bytes > 0 && stats.pids >= 1, "{stats:?}");
        assert!(stats.memory_available_bytes.unwrap() <= 128 << 20);
        let pod = node.runtime.pod_sandbox_stats(&sandbox).await.unwrap();
        assert!(pod.memory_usage_bytes >= stats.memory_rss_bytes);
    })
    .await;
}

#[tokio::test]
async fn processes_are_shared_on_demand() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let alone = node.start(&sandbox, shell("exec sleep 1001")).await;
        let (_, log) = node.script(&sandbox, shell("echo $$; ps | grep -c '[s]leep 1001'")).await;
        assert_eq!(log, ["stdout F 1", "stdout F 0"]);
        // An ephemeral container joins its target.
        let mut config = shell("ps | grep -c '[s]leep 1001'; cat /proc/1/root/shown");
        config.security.namespaces.pid = NamespaceMode::Target(alone.clone());
        assert_eq!(node.script(&sandbox, config).await.1[0], "stdout F 1");

        let mut pod = node.pod();
        pod.security.namespaces.pid = NamespaceMode::Pod;
        let shared = node.runtime.run_pod_sandbox(pod).await.unwrap();
        let mut config = shell("exec sleep 1002");
        share_pids(&mut config);
        let first = node.start(&shared, config).await;
        let mut config = shell("ps; ls /proc/1/root/ 2>&1 | head -1; (sleep 500 &); exit 0");
        share_pids(&mut config);
        let second = node.start(&shared, config).await;
        node.exit(&second).await;
        let log = node.log(&second).await.join("\n");
        assert!(log.contains("sleep 1002") && log.contains("1 65535"), "{log}");
        assert!(!log.contains("stdout F boot"), "the node's root must not show: {log}");
        // What the second left behind went with it.
        let (_, out, _) = node.exec(&first, &["ps"]).await;
        assert!(!out.contains("sleep 500"), "{out}");
        assert_eq!(node.runtime.container_status(&first).await.unwrap().exit, None);
    })
    .await;
}

#[tokio::test]
async fn host_namespaces_and_sysctls() {
    Node::run(async |node| {
        let mut pod = node.pod();
        pod.sysctls.insert("net.ipv4.ip_local_port_range".into(), "20000 20010".into());
        let sandbox = node.runtime.run_pod_sandbox(pod).await.unwrap();
        let script = "cat /proc/sys/net/ipv4/ip_local_port_range; ip -o link | wc -l; ip addr show lo | grep -c 'inet 127'; \
            cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
        let (_, log) = node.script(&sandbox, shell(script)).await;
        assert_eq!(log, ["stdout F 20000\t20010", "stdout F 1", "stdout F 1", "stdout F 0"]);
        let mut pod = node.pod();
        pod.security.namespaces.network = NamespaceMode::Node;
        let sandbox = node.runtime.run_pod_sandbox(pod).await.unwrap();
        let (_, log) = node.script(&sandbox, shell("hostname; readlink /proc/self/ns/net")).await;
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let net = fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(log, [format!("stdout F {}", name.trim()), format!("stdout F {}", net.display())]);
        let mut pod = node.pod();
        pod.sysctls.insert("../etc/passwd".into(), "x".into());
        let error = node.runtime.run_pod_sandbox(pod).await.unwrap_err();
        assert_eq!(error.reason(), "FailedCreatePodSandBox");
    })
    .await;
}

#[tokio::test]
async fn cgroup_v2_works_too() {
    let Some(node) = Node::with_v2().await else { return };
    node.run_on(async |node| {
        assert!(node.runtime.cgroups().is_v2());
        let sandbox = node.sandbox().await;
        let script = "cat /proc/self/cgroup | grep '^0:'; cat /sys/fs/cgroup/cgroup.procs; \
            touch /sys/fs/cgroup/x 2>/dev/null || echo ro; head -c1 /dev/zero | wc -c; \
            mknod /tmp/kmsg c 1 11 && head -c1 /tmp/kmsg >/dev/null 2>&1 || echo denied; sleep 1000";
        let id = node.start(&sandbox, shell(script)).await;
        node.wait_for_log(&id, "denied").await;
        let log = node.log(&id).await;
        assert_eq!(log[0], "stdout F 0::/", "its own cgroup is the root of its namespace");
        assert_eq!(log[1], "stdout F 1");
        assert!(log.contains(&"stdout F ro".to_owned()) && log.contains(&"stdout F 1".to_owned()), "{log:?}");
        assert_eq!(node.exec(&id, &["grep", "^0:", "/proc/self/cgroup"]).await.1, "0::/");
        node.runtime.stop_container(&id, std::time::Duration::ZERO).await.unwrap();
    })
    .await;
}

/// A shared mount of the test's own, whatever the machine's root is.
struct SharedMount(std::path::PathBuf);

impl SharedMount {
    fn new(path: &Path) -> SharedMount {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        fs::create_dir(path).unwrap();
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        mount_change(path, MountPropagationFlags::SHARED).unwrap();
        SharedMount(path.to_owned())
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
}

#[tokio::test]
async fn mounts_propagate_as_asked() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let dir = node.data.path().join("volume");
        let shared = SharedMount::new(&dir);
        for name in ["in", "out"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        let volume = |propagation| Mount {
            container_path: "/v".into(),
            host_path: dir.clone(),
            propagation,
            ..Default::default()
        };
        let mut config = shell("mount -t tmpfs x /v/out && touch /v/out/made && echo done; sleep 1000");
        config.security.privileged = true;
        config.mounts = vec![volume(MountPropagation::Bidirectional)];
        let id = node.start(&sandbox, config).await;
        node.wait_for_log(&id, "done").await;
        assert!(dir.join("out/made").exists(), "the container's mount shows on the node");
        let mut config = shell("sleep 1000");
        config.mounts = vec![volume(MountPropagation::HostToContainer)];
        let slave = node.start(&sandbox, config).await;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.join("in"), "tmpfs", flags, c"size=1m").unwrap();
        fs::write(dir.join("in/late"), "").unwrap();
        assert_eq!(node.exec(&slave, &["test", "-e", "/v/in/late"]).await.0, 0, "the node's shows inside");

        let plain = node.data.path().join("plain");
        fs::create_dir(&plain).unwrap();
        rustix::mount::mount("tmpfs", &plain, "tmpfs", flags, c"size=1m").unwrap();
        rustix::mount::mount_change(&plain, rustix::mount::MountPropagationFlags::PRIVATE).unwrap();
        let private = SharedMount(plain.clone());
        let mut config = shell("true");
        config.mounts = vec![Mount { host_path: plain, ..volume(MountPropagation::Bidirectional) }];
        let error = node.runtime.create_container(&sandbox, config).await.unwrap_err();
        assert!(error.to_string().contains("but it is not a shared mount"), "{error}");
        for id in [id, slave] {
            node.runtime.stop_container(&id, std::time::Duration::ZERO).await.unwrap();
        }
        for name in ["in", "out"] {
            rustix::mount::unmount(dir.join(name), rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        drop((shared, private));
    })
    .await;
}
