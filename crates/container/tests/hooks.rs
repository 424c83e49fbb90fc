//! Hooks of devices: where, when and with what they are run, and what comes of those that fail.

mod support;

use std::fs;
use std::path::PathBuf;

use cri::{ContainerConfig, ContainerState, RuntimeService};
use support::{Node, open, shell};

/// A device whose hooks are these: moment, program, arguments.
fn device(node: &Node, hooks: &[(&str, &str, &[&str])]) {
    let hooks: Vec<_> = hooks
        .iter()
        .map(|(moment, path, args)| {
            serde_json::json!({"hookName": moment, "path": path, "args": args, "timeout": 5, "env": ["H=1", "PATH=/bin:/usr/bin"]})
        })
        .collect();
    let spec = serde_json::json!({"cdiVersion": "0.6.0", "kind": "vendor.com/net",
        "devices": [{"name": "a", "containerEdits": {"hooks": hooks}}]});
    fs::create_dir_all(node.data.path().join("cdi")).unwrap();
    fs::write(node.data.path().join("cdi/vendor.json"), spec.to_string()).unwrap();
}

fn with_device(script: &str) -> ContainerConfig {
    let mut config = shell(script);
    config.cdi_devices.push("vendor.com/net=a".into());
    config
}

/// A script on the node that notes its moment, its state, its namespaces and whatever else it is told to.
fn noting(node: &Node, moment: &str, also: &str) -> String {
    let note = node.data.path().join(moment);
    let place = "for n in net mnt ipc uts pid; do readlink /proc/self/ns/$n; done";
    format!("exec > {note}; cat; echo; {place}; date +%s%N; {also}", note = note.display())
}

/// What such a script has noted: the state, the namespaces, the time, and the rest.
fn noted(node: &Node, moment: &str) -> (serde_json::Value, Vec<String>, u64, Vec<String>) {
    let text = fs::read_to_string(node.data.path().join(moment)).unwrap_or_else(|e| panic!("{moment}: {e}"));
    let mut lines = text.lines().map(str::to_owned);
    let state = serde_json::from_str(&lines.next().unwrap()).unwrap();
    let namespaces = lines.by_ref().take(5).collect();
    let time = lines.next().unwrap().parse().unwrap();
    (state, namespaces, time, lines.collect())
}

fn own_namespaces() -> Vec<String> {
    let of = |name: &&str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    ["net", "mnt", "ipc", "uts", "pid"].iter().map(of).collect()
}

#[tokio::test]
async fn hooks_run_where_and_when_they_should() {
    Node::run(async |node| {
        let data = node.data.path().display();
        let bundle = format!("{data}/run/*/c/*");
        let looks = format!("echo $H; test -d {bundle}/root/bin && echo root; true");
        // The root is seen with everything in it, and what a hook mounts in it or changes stays.
        let inside = format!("{looks}; echo made > $(echo {bundle})/root/made; mkdir -p $(echo {bundle})/root/mnt; \
             mount -t tmpfs made $(echo {bundle})/root/mnt; test -c {bundle}/root/dev/null && echo dev");
        let pid = "sed -n 's/.*pid.:\\([0-9]*\\).*/\\1/p'";
        let scripts: Vec<(&str, String)> = vec![
            ("prestart", noting(node, "prestart", &looks)),
            ("createRuntime", noting(node, "createRuntime", &looks)),
            ("createContainer", noting(node, "createContainer", &inside)),
            ("poststart", noting(node, "poststart", &format!("tr '\\0' ' ' < /proc/$(head -1 {data}/poststart | {pid})/cmdline"))),
            ("poststop", noting(node, "poststop", "echo $H")),
        ];
        let args: Vec<[&str; 3]> = scripts.iter().map(|(_, script)| ["sh", "-c", script.as_str()]).collect();
        let mut hooks: Vec<(&str, &str, &[&str])> =
            scripts.iter().zip(&args).map(|((moment, _), args)| (*moment, "/bin/sh", &args[..])).collect();
        hooks.push(("startContainer", "/bin/sh", &["sh", "-c", "cat > /tmp/state; id -u > /tmp/id; echo $OWN$H >> /tmp/id; hostname >> /tmp/id; echo $$ >> /tmp/id"]));
        device(node, &hooks);
        let sandbox = node.sandbox().await;
        let mut config = with_device("cat /made /tmp/state; echo; cat /tmp/id; stat -f -c %T /mnt; ls /proc | grep -c '^[0-9]'; ls -l /proc/self/ns | tr -s ' ' | cut -d' ' -f 11; sleep 1000");
        config.security.run_as_user = Some(1000);
        config.envs.push(cri::EnvVar { name: "OWN".into(), value: "of the container".into() });
        fs::create_dir(node.data.path().join("tmp")).unwrap();
        fs::set_permissions(node.data.path().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        config.mounts.push(cri::Mount {
            host_path: node.data.path().join("tmp"),
            container_path: "/tmp".into(),
            ..Default::default()
        });
        let id = node.runtime.create_container(&sandbox, config).await.unwrap();
        for moment in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            assert!(!node.data.path().join(moment).exists(), "{moment} before the start");
        }
        node.runtime.start_container(&id).await.unwrap();
        let mut last = 0;
        for (moment, status, here) in [
            ("prestart", "creating", true),
            ("createRuntime", "creating", true),
            ("createContainer", "creating", false),
            ("poststart", "running", true),
        ] {
            let (state, namespaces, time, rest) = noted(node, moment);
            assert_eq!((&state["status"], &state["id"]), (&status.into(), &id.as_str().into()), "{state}");
            assert_eq!(state["annotations"]["io.kubernetes.cri.sandbox-name"], "pod");
            assert!(state["pid"].as_i64().unwrap() > 1, "{state}");
            let bundle = PathBuf::from(state["bundle"].as_str().unwrap());
            let file: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap();
            assert_eq!((&file["root"]["path"], &file["process"]["user"]["uid"]), (&"root".into(), &1000.into()));
            assert!(time > last, "{moment} out of turn");
            last = time;
            let own = own_namespaces();
            for (theirs, own) in namespaces.iter().zip(&own) {
                assert_eq!(theirs == own, here, "{moment}: {theirs}");
            }
            match moment {
                "createContainer" => assert_eq!(rest, ["1", "root", "dev"]),
                "poststart" => assert!(rest[0].contains("sleep 1000"), "{rest:?}"),
                // The root stands in the container's mount namespace only.
                _ => assert_eq!(rest, ["1"]),
            }
        }
        node.wait_for_log(&id, "uts").await;
        let log: Vec<String> = node.log(&id).await.iter().map(|l| l.trim_start_matches("stdout F ").to_owned()).collect();
        assert_eq!(log[0], "made");
        let state: serde_json::Value = serde_json::from_str(&log[1]).unwrap();
        assert_eq!(state["status"], "created");
        // With the container's user, root and namespaces but the variables of its own.
        assert_eq!(log[2..5], ["1000", "1", "pod-host"]);
        assert_ne!(log[5], "1");
        assert_eq!(log[6], "tmpfs");
        node.runtime.stop_container(&id, std::time::Duration::ZERO).await.unwrap();
        assert!(!node.data.path().join("poststop").exists(), "poststop before the removal");
        node.runtime.remove_container(&id).await.unwrap();
        let (state, namespaces, _, rest) = noted(node, "poststop");
        assert_eq!((&state["status"], state.get("pid")), (&"stopped".into(), None));
        assert_eq!((namespaces, rest), (own_namespaces(), vec!["1".to_owned()]));
    })
    .await;
}

#[tokio::test]
async fn a_hook_that_fails_ends_the_start() {
    Node::run(async |node| {
        let sandbox = node.sandbox().await;
        let prefix = "OCI runtime create failed: runc create failed: unable to start container process: ";
        for (moment, place) in [
            ("prestart", ""),
            ("createRuntime", ""),
            ("createContainer", "error during container init: "),
            ("startContainer", "error during container init: "),
            ("poststart", ""),
        ] {
            let stopped = node.data.path().join(format!("stopped-{moment}"));
            let touch = format!("touch {}", stopped.display());
            let hooks: [(&str, &str, &[&str]); 4] = [
                (moment, "/bin/sh", &["sh", "-c", "exit 0"]),
                (moment, "/bin/sh", &["sh", "-c", "echo no device >&2; exit 7"]),
                // One that fails does not keep the others from clearing up.
                ("poststop", "/bin/false", &[]),
                ("poststop", "/bin/sh", &["sh", "-c", &touch]),
            ];
            device(node, &hooks);
            let id = node.runtime.create_container(&sandbox, with_device("sleep 1000")).await.unwrap();
            let error = node.runtime.start_container(&id).await.unwrap_err();
            let want = format!(
                "{prefix}{place}error running {moment} hook #1: exit status 7, stdout: , stderr: no device\n: unknown"
            );
            assert_eq!(error.reason(), "RunContainerError");
            assert!(error.to_string().contains(&want), "{error}\n{want}");
            let status = node.runtime.container_status(&id).await.unwrap();
            let exit = status.exit.unwrap();
            assert_eq!(
                (status.state, exit.code, exit.reason.as_str(), exit.message.as_str()),
                (ContainerState::Exited, 128, "StartError", want.as_str())
            );
            node.runtime.remove_container(&id).await.unwrap();
            assert!(stopped.exists(), "{moment}");
        }
    })
    .await;
}

/// A node that dies while it runs hooks leaves no container that waits for ever.
#[tokio::test]
async fn a_start_that_is_given_up_fails() {
    Node::run(async |node| {
        device(node, &[("createRuntime", "/bin/sh", &["sh", "-c", "sleep 1; touch ../done"])]);
        let sandbox = node.sandbox().await;
        let id = node.runtime.create_container(&sandbox, with_device("sleep 1000")).await.unwrap();
        let start = node.runtime.start_container(&id);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(300), start).await.is_err());
        // The next process finds what the shim has recorded.
        let mark = node.data.path().join("run").join(&sandbox).join("c/done");
        let again = async {
            loop {
                let other = open(node.data.path(), &node.cluster).await;
                if let Some(exit) = other.container_status(&id).await.unwrap().exit {
                    return exit;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let exit = tokio::time::timeout(support::PATIENCE, again).await.unwrap();
        assert_eq!(
            (exit.reason.as_str(), exit.message.as_str()),
            ("StartError", "the node went away while hooks ran")
        );
        // The hook itself still runs to its end.
        while !mark.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}
