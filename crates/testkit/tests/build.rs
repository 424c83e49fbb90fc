//! Images from Dockerfile to Deployment to registry and back, with real containers throughout.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{Cluster, Scope};

/// Longest time of a build that finds every step done, for a debug build on a loaded machine.
const CACHED_TIME_MAX: Duration = Duration::from_secs(1);

const DOCKERFILE: &str = r#"# syntax=docker/dockerfile:1
ARG BASE=busybox:1
FROM $BASE AS tools
ONBUILD RUN echo "made by a trigger" > /trigger
RUN mkdir -p /opt && printf '#!/bin/sh\necho "tool: $*"\n' > /opt/tool && chmod 755 /opt/tool

FROM tools AS compile
ARG VERSION=0
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/cache --mount=type=secret,id=token \
    test "$(cut -c 5- /run/secrets/token)" = secret && \
    date +%N >> /cache/runs && \
    /opt/tool "$(cat main.txt) version $VERSION" > /src/app
RUN --network=none ls /src > /src/list && ! test -e /run/secrets/token

FROM busybox:1 AS unneeded
RUN exit 1

FROM busybox:1
COPY --from=compile --chown=nobody:nogroup --chmod=640 /src/app /src/list /app/
COPY --from=compile /trigger /app/
COPY <<EOF /app/note
from a heredoc
EOF
ENV NAME=built
HEALTHCHECK --interval=5s CMD test -e /app/app
USER nobody
CMD ["sh", "-c", "cat /app/app /app/list /app/trigger /app/note; id -u; sleep 3600"]
"#;

/// A cluster, a project and the commands on them.
struct Bench {
    cluster: Cluster,
    project: tempfile::TempDir,
}

impl Bench {
    fn start() -> anyhow::Result<Bench> {
        let bench = Bench { cluster: Cluster::start()?, project: tempfile::tempdir()? };
        bench.write("Dockerfile", DOCKERFILE)?;
        bench.write("main.txt", "hello")?;
        bench.write("notes/skip.log", "x")?;
        bench.write("notes/keep.log", "x")?;
        bench.write(".dockerignore", "**/*.log\n!notes/keep.log\n.dockerignore\nDockerfile\n")?;
        std::fs::write(bench.project.path().with_extension("token"), "top secret")?;
        Ok(bench)
    }

    fn write(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let path = self.project.path().join(path);
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        Ok(std::fs::write(path, text)?)
    }

    fn token(&self) -> PathBuf {
        self.project.path().with_extension("token")
    }

    fn image(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(testkit::binary()?);
        command.arg("image").args(arguments).arg("--data-dir").arg(self.cluster.data());
        Ok(testkit::process::output(command.current_dir(self.project.path()))?)
    }

    /// Runs a command that has to succeed, and parses what it says.
    fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = self.image(&[arguments, &["-o", "json"]].concat())?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Builds, and returns the outcome and the texts of the steps that were really taken.
    fn build(&self, more: &[&str]) -> anyhow::Result<(Value, Vec<String>)> {
        let secret = format!("id=token,src={}", self.token().display());
        let fixed =
            ["build", "--progress", "plain", "-t", "app:1", "-t", "localhost/app:1", "--secret", &secret];
        let output = self.image(&[&fixed, more, &["-o", "json", "."]].concat())?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{told}");
        Ok((serde_json::from_slice(&output.stdout)?, taken(&told)))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.token());
    }
}

/// The steps that plain progress shows as done, not cached; FROM is neither.
fn taken(told: &str) -> Vec<String> {
    let numbered = |line: &str| {
        let (number, text) = line.strip_prefix('#')?.split_once(' ')?;
        Some((number.to_owned(), text.to_owned()))
    };
    let lines: Vec<(String, String)> = told.lines().filter_map(numbered).collect();
    let done = |number: &str| lines.iter().any(|(n, text)| n == number && text.starts_with("DONE"));
    let begun =
        lines.iter().filter(|(n, text)| text.starts_with('[') && !text.contains("] FROM ") && done(n));
    begun.filter_map(|(_, text)| Some(text.split_once("] ")?.1.to_owned())).collect()
}

/// A registry that ends with the test.
struct Registry {
    child: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Registry {
    fn start(scope: &Scope<'_>) -> anyhow::Result<Registry> {
        let directory = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        let root = directory.path().join("data");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
                root.display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        let child = command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let registry = Registry {
            child: child.context("the test needs docker-registry")?,
            address,
            _directory: directory,
        };
        let began = Instant::now();
        while std::net::TcpStream::connect(&registry.address).is_err() {
            ensure!(began.elapsed() < Duration::from_secs(10), "the registry does not listen");
            scope.pause(Duration::from_millis(20));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn skopeo_digest(reference: &str) -> anyhow::Result<String> {
    let output = Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}", reference])
        .output()
        .context("the test needs skopeo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[test]
fn from_dockerfile_to_deployment_to_registry_and_back() -> anyhow::Result<()> {
    let bench = Bench::start()?;
    let (first, steps) = bench.build(&["--build-arg", "VERSION=7"])?;
    ensure!(steps.iter().any(|s| s.contains("/opt/tool \"$(cat main.txt)")), "{steps:?}");
    ensure!(!steps.iter().any(|s| s.contains("exit 1")), "a stage that nobody needs was built: {steps:?}");

    // The same again takes no step, and gives the same image.
    let began = Instant::now();
    let (again, steps) = bench.build(&["--build-arg", "VERSION=7"])?;
    ensure!(began.elapsed() < CACHED_TIME_MAX, "a cached build took {:?}", began.elapsed());
    ensure!(steps.is_empty(), "{steps:?}");
    ensure!(again["digest"] == first["digest"] && again["id"] == first["id"]);
    ensure!(again["names"] == json!(["docker.io/library/app:1", "localhost/app:1"]), "{again}");

    invalidation(&bench)?;
    let (last, _) = bench.build(&["--build-arg", "VERSION=7"])?;
    runs(&bench)?;
    configuration(&bench)?;
    registry(&bench, last["digest"].as_str().context("no digest")?)
}

fn invalidation(bench: &Bench) -> anyhow::Result<()> {
    // A touched file and an ignored one change nothing.
    bench.write("main.txt", "hello")?;
    bench.write("notes/other.log", "new")?;
    let (_, steps) = bench.build(&["--build-arg", "VERSION=7"])?;
    ensure!(steps.is_empty(), "{steps:?}");
    // An argument changes the steps behind its ARG, where their results differ.
    let (_, steps) = bench.build(&["--build-arg", "VERSION=8"])?;
    ensure!(steps.iter().all(|s| !s.starts_with("COPY . .") && !s.starts_with("WORKDIR")), "{steps:?}");
    ensure!(steps.iter().any(|s| s.starts_with("COPY --from=compile --chown")), "{steps:?}");
    // A changed file counts from the step that copies it.
    bench.write("main.txt", "goodbye")?;
    let (_, steps) = bench.build(&["--build-arg", "VERSION=7"])?;
    ensure!(steps.iter().any(|s| s == "COPY . ."), "{steps:?}");
    let earlier = |s: &String| s.contains("mkdir -p /opt") || s.starts_with("WORKDIR");
    ensure!(!steps.iter().any(earlier), "{steps:?}");
    Ok(())
}

fn runs(bench: &Bench) -> anyhow::Result<()> {
    let scope = bench.cluster.namespace("build")?;
    let labels = json!({"app": "built"});
    scope.create(
        "deployments",
        json!({"metadata": {"name": "built"}, "spec": {"replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers":
            [{"name": "c", "image": "app:1", "imagePullPolicy": "IfNotPresent"}]}}}}),
    )?;
    scope.wait_any("deployments", "built", "an available replica", |d| {
        d["status"]["availableReplicas"] == 1
    })?;
    let want = "tool: goodbye version 7\nmain.txt\nnotes\nmade by a trigger\nfrom a heredoc\n65534\n";
    let began = Instant::now();
    loop {
        let log = scope.kubectl(&["logs", "deployment/built"])?;
        // The list was written while `app` and itself were there already.
        let seen = log
            .lines()
            .filter(|l| !["app", "list"].contains(l))
            .map(|l| format!("{l}\n"))
            .collect::<String>();
        if seen == want {
            break;
        }
        ensure!(began.elapsed() < Duration::from_secs(20), "the pod says {log:?}");
        scope.pause(Duration::from_millis(100));
    }
    scope.kubectl(&["delete", "deployment", "built", "--wait=false"])?;
    scope.kubectl(&["wait", "--for=delete", "pod", "-l", "app=built", "--timeout=30s"])?;
    Ok(())
}

fn configuration(bench: &Bench) -> anyhow::Result<()> {
    let inspected = bench.json(&["inspect", "app:1"])?;
    let config = &inspected[0]["config"]["config"];
    ensure!(config["User"] == "nobody" && config["Healthcheck"]["Interval"] == 5_000_000_000_u64, "{config}");
    let history = bench.json(&["history", "app:1"])?;
    let text = history.to_string();
    ensure!(text.contains("COPY --from=compile") && !text.contains("top secret"), "{text}");
    let blobs = bench.cluster.data().join("images/build-cache.json");
    ensure!(!std::fs::read_to_string(blobs)?.contains("top secret"));
    Ok(())
}

fn registry(bench: &Bench, digest: &str) -> anyhow::Result<()> {
    let registry = Registry::start(&bench.cluster.namespace("registry")?)?;
    let name = format!("{}/team/app:1", registry.address);
    let pushed = bench.json(&["push", "app:1", &name])?;
    ensure!(pushed["digest"] == digest, "{pushed}");
    ensure!(skopeo_digest(&format!("docker://{name}"))? == digest);
    // A second push sends nothing; to another repository, the registry has all of it.
    ensure!(bench.json(&["push", "app:1", &name])?["sent"] == 0);
    bench.json(&["tag", "app:1", &name])?;
    let other = format!("{}/other/app:1", registry.address);
    ensure!(bench.json(&["push", "app:1", &other])?["sent"] == 0);
    archives(bench, digest)?;
    bench.json(&["rm", &name, "app:1", "localhost/app:1"])?;
    bench.json(&["prune", "--all"])?;
    bench.json(&["prune", "--build-cache"])?;
    ensure!(!bench.image(&["inspect", "app:1"])?.status.success(), "the image is still there");
    let pulled = bench.json(&["pull", &name])?;
    ensure!(pulled["digest"].as_str().is_some_and(|d| d.ends_with(digest)), "{pulled}");
    Ok(())
}

fn archives(bench: &Bench, digest: &str) -> anyhow::Result<()> {
    let path = |name: &str| bench.project.path().with_extension(name);
    let file = |path: &Path| path.display().to_string();
    let (docker, oci) = (path("docker.tar"), path("oci.tar"));
    let saved = bench.image(&["save", "app:1", "-f", &file(&docker)])?;
    ensure!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let saved = bench.image(&["save", "app:1", "--format", "oci-archive", "-f", &file(&oci)])?;
    ensure!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    ensure!(skopeo_digest(&format!("oci-archive:{}", file(&oci)))? == digest);
    skopeo_digest(&format!("docker-archive:{}", file(&docker)))?;
    let loaded = bench.json(&["load", &file(&oci)])?;
    ensure!(loaded[0]["names"] == json!(["docker.io/library/app:1"]), "{loaded}");
    std::fs::remove_file(docker)?;
    Ok(std::fs::remove_file(oci)?)
}

#[test]
fn mistakes_say_where_and_what() -> anyhow::Result<()> {
    let bench = Bench::start()?;
    let table = [
        (
            "FROM busybox:1\nRUN echo said; exit 3",
            "Broken:2: RUN echo said; exit 3\n  said\n",
            "exit code: 3",
        ),
        ("FROM busybox:1\n\nCOPY none /x", "Broken:3: COPY none /x\n", "\"/none\": not found"),
        ("FROM busybox:1\nRUM x", "Broken:2: RUM x\n", "unknown instruction: RUM"),
        ("FROM busybox:1\nRUN --mount=type=secret,id=no,required x", "Broken:2: ", "secret no: not found"),
        ("FROM busybox:1\nCOPY ../token /x", "Broken:2: ", "not found"),
        ("FROM busybox:1\nRUN --security=insecure x", "Broken:2: ", "--allow security.insecure"),
        ("FROM --platform=windows/amd64 busybox:1", "Broken:1: ", "is not this machine's"),
    ];
    for (text, place, why) in table {
        bench.write("Broken", text)?;
        let output = bench.image(&["build", "-f", "Broken", "."])?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && told.contains(place) && told.contains(why), "{text}: {told}");
    }
    // A command that talks to nobody says so.
    let mut command = Command::new(testkit::binary()?);
    let lost =
        command.args(["image", "build", "--data-dir", "/nonexistent"]).arg(bench.project.path()).output()?;
    let told = String::from_utf8_lossy(&lost.stderr);
    ensure!(told.contains("start one with `ferry up`"), "{told}");
    Ok(())
}

#[test]
fn a_given_time_makes_the_same_bytes() -> anyhow::Result<()> {
    let bench = Bench::start()?;
    let build = || {
        let (outcome, _) = bench.build(&["--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"])?;
        Ok::<_, anyhow::Error>(outcome["digest"].clone())
    };
    let first = build()?;
    bench.cluster.namespace("pause")?.pause(Duration::from_millis(1100));
    ensure!(build()? == first, "two builds with one time differ");
    Ok(())
}
