//! The node's part in a container's hooks: those of its own namespaces, and the files that hooks look at.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::connection::Connection;
use super::{Container, blocking};
use crate::hooks::{self, Hook, Hooks, Status};
use crate::spec::{ContainerSpec, write_json};
use crate::wire::{Failure, Reply, Request};

/// File of a bundle that says what the container is.
const BUNDLE_FILE: &str = "config.json";

/// What hooks may know of a container's place in the cluster, under the names that containerd gives it.
pub(super) fn annotations(
    sandbox_id: &str,
    sandbox: &cri::PodSandboxConfig,
    container: &cri::ContainerConfig,
) -> Vec<(String, String)> {
    let known = [
        ("container-type", "container"),
        ("sandbox-id", sandbox_id),
        ("sandbox-name", &sandbox.name),
        ("sandbox-namespace", &sandbox.namespace),
        ("sandbox-uid", &sandbox.uid),
        ("container-name", &container.name),
        ("image-name", &container.image),
    ];
    let known = known.map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned()));
    known.into_iter().collect()
}

/// Writes what hooks read of a container besides its state: where its root is, its program and its mounts.
pub(super) fn write_bundle(dir: &Path, spec: &ContainerSpec) -> io::Result<()> {
    let process = &spec.process;
    let mounts: Vec<_> = spec
        .mounts
        .iter()
        .map(|mount| {
            let access = if mount.readonly { "ro" } else { "rw" };
            json!({"destination": mount.target, "source": mount.source, "type": "bind", "options": ["rbind", access]})
        })
        .collect();
    let annotations: serde_json::Map<_, _> =
        spec.hooks.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let bundle = json!({
        "ociVersion": hooks::OCI_VERSION,
        "root": {"path": "root", "readonly": spec.readonly_rootfs},
        "process": {"terminal": process.tty, "args": process.argv, "env": process.env, "cwd": process.cwd,
            "user": {"uid": process.uid, "gid": process.gid, "additionalGids": process.groups}},
        "mounts": mounts,
        "annotations": annotations,
        "linux": {"cgroupsPath": spec.cgroup},
    });
    write_json(&dir.join(BUNDLE_FILE), &bundle)
}

/// Asks a shim to start a container, and runs the hooks that come before its program on the way.
pub(super) async fn start(container: &Container) -> io::Result<Reply> {
    let connection = Connection::connect(&container.sandbox.dir)?;
    connection.send(&Request::Start { container: container.id.clone() }, &[]).await?;
    let (reply, _) = connection.reply().await?;
    let Reply::Created { pid } = reply else { return Ok(reply) };
    let failure = before_start(container, pid).await.err();
    connection.send(&Request::Continue { container: container.id.clone(), failure }, &[]).await?;
    Ok(connection.reply().await?.0)
}

async fn before_start(container: &Container, pid: i32) -> Result<(), Failure> {
    run(container, "prestart", |hooks| &hooks.prestart, Status::Creating, pid).await?;
    run(container, "createRuntime", |hooks| &hooks.create_runtime, Status::Creating, pid).await
}

/// The hooks that come once a container's program runs.
pub(super) async fn after_start(container: &Container, pid: i32) -> Result<(), Failure> {
    run(container, "poststart", |hooks| &hooks.poststart, Status::Running, pid).await
}

/// The hooks of a container that is gone. They can stop nothing any more, so failures are only told of.
pub(super) async fn stopped(container: &Container) {
    let ran = {
        let record = container.record.borrow();
        record.pid != 0 || record.exit.is_some()
    };
    if !ran {
        return;
    }
    // Each one runs, whatever became of those before.
    for index in 0..container.hooks.poststop.len() {
        let only = move |hooks: &Hooks| hooks.poststop.get(index).cloned().into_iter().collect::<Vec<_>>();
        if let Err(failure) = run_list(container, "poststop", only, Status::Stopped, 0).await {
            tracing::warn!(container = container.id, error = failure.message, "a hook has failed");
        }
    }
}

async fn run(
    container: &Container,
    moment: &'static str,
    of: fn(&Hooks) -> &Vec<Hook>,
    status: Status,
    pid: i32,
) -> Result<(), Failure> {
    run_list(container, moment, move |hooks| of(hooks).clone(), status, pid).await
}

async fn run_list(
    container: &Container,
    moment: &'static str,
    of: impl FnOnce(&Hooks) -> Vec<Hook>,
    status: Status,
    pid: i32,
) -> Result<(), Failure> {
    let all: Arc<Hooks> = container.hooks.clone();
    let list = of(&all);
    if list.is_empty() {
        return Ok(());
    }
    let done = blocking(move || {
        Ok(hooks::run_all(&list, &all.state(status, pid), &all.bundle, None)
            .map_err(|error| hooks::failure(false, moment, &error)))
    });
    done.await.unwrap_or_else(|error: cri::Error| Err(Failure::new(error.to_string())))
}
