//! `cargo xtask vm [NAME...]`: conformance cases, or other tests, on another kernel, in an emulated machine whose control groups are
//! version 2, whatever this machine has.
//!
//! The machine is Debian's kernel for clouds and a file system in memory that is made here: busybox, the programs
//! that cases call, `ferry` and the cases themselves. Clusters are on a disk of its own; it has no network. It
//! is emulated in software, an order of magnitude slower than the real thing; for that reason it is no part of
//! `cargo xtask test`.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::shell::{self, has};

/// Programs and the Debian packages they come in.
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("kubectl", "kubernetes-client"),
    ("curl", "curl"),
    ("mke2fs", "e2fsprogs"),
];
/// The kernel: any of this name, the newest.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// What cases call besides busybox.
const PROGRAMS: &[&str] = &["ip", "nft", "kubectl", "curl", "/sbin/modprobe"];
/// What runs without names: what a runtime and control groups do.
const DEFAULT: &[&str] = &["[sig-node]"];
/// Memory of the machine in MiB: the file system is in it, twice for a moment.
const MEMORY: &str = "6144";
/// Bytes of its disk, where clusters are; only what is written takes room here.
const DISK: u64 = 6 << 30;
/// What the machine says last.
const END: &str = "the cases ended with ";

/// The first program: makes a root that can be pivoted away from, and goes there.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /root
/bin/busybox mount -t tmpfs -o size=90% root /root
for d in bin sbin usr lib lib64 etc work; do [ -e /$d ] && /bin/busybox cp -a /$d /root/; done
/bin/busybox mkdir -p /root/proc /root/sys /root/dev /root/tmp /root/run /root/root /root/var/log
exec /bin/busybox switch_root /root /etc/begin
";

/// The second: mounts, modules, the cases.
const BEGIN: &str = "#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t securityfs security /sys/kernel/security
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
modprobe -a overlay veth bridge nf_tables nft_chain_nat virtio_pci virtio_blk ext4
mount -t ext4 -o prjquota /dev/vda /tmp
ip link set lo up
hostname machine
cd /work
sh /etc/cases
echo \"
the cases ended with $?\"
poweroff -f
";

/// Runs the tests of a package whose names hold one of `names`.
pub fn run(package: &str, tests: &str, names: &[String]) -> anyhow::Result<()> {
    install()?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| shell::root().join("target"), PathBuf::from);
    shell::run("cargo", &["build", "--workspace", "--bins", "--examples"])?;
    let cases = build(package, tests)?;
    let root = target.join("vm/root");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    let kernel = kernel()?;
    let default: Vec<String> = DEFAULT.iter().map(|s| (*s).to_owned()).collect();
    let names = if names.is_empty() && tests == "conformance" { &default } else { names };
    // Tests that no other machine should be asked to stand are ignored elsewhere.
    let all = (tests != "conformance").then(|| "--include-ignored".to_owned());
    let names: Vec<String> = names.iter().cloned().chain(all).collect();
    furnish(&root, &kernel, &target.join("debug/ferry"), &cases, &names)?;
    let archive = target.join("vm/root.cpio");
    pack(&root, &archive)?;
    let disk = target.join("vm/disk");
    std::fs::File::create(&disk)?.set_len(DISK)?;
    shell::run("mke2fs", &["-q", "-F", "-t", "ext4", "-O", "project,quota", &disk.to_string_lossy()])?;
    boot(&kernel, &archive, &disk)
}

fn install() -> anyhow::Result<()> {
    let missing: Vec<&str> = PACKAGES.iter().filter(|(program, _)| !has(program)).map(|(_, p)| *p).collect();
    let missing: Vec<&str> = missing.into_iter().chain(kernel().is_err().then_some(KERNEL_PACKAGE)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let arguments: Vec<&str> =
        ["install", "-y", "-qq", "--no-install-recommends"].into_iter().chain(missing).collect();
    shell::run_with("apt-get", &arguments, &[("DEBIAN_FRONTEND", "noninteractive")])
}

/// Version of the newest cloud kernel that is installed.
fn kernel() -> anyhow::Result<String> {
    let names = std::fs::read_dir("/boot")?.flatten().filter_map(|e| e.file_name().into_string().ok());
    let versions = names.filter_map(|n| Some(n.strip_prefix("vmlinuz-")?.to_owned()));
    versions.filter(|v| v.contains("cloud")).max().context("no cloud kernel in /boot")
}

/// Builds the tests and answers their program.
fn build(package: &str, tests: &str) -> anyhow::Result<PathBuf> {
    let which = if tests == "lib" { vec!["--lib"] } else { vec!["--test", tests] };
    let output = Command::new("cargo")
        .args(["test", "--package", package, "--no-run", "--message-format=json"])
        .args(which)
        .current_dir(shell::root())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the cases do not build");
    let lines = output.stdout.split(|b| *b == b'\n');
    let found = lines.filter_map(|line| {
        let message: serde_json::Value = serde_json::from_slice(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    found.max().context("cargo names no program")
}

/// Makes the file system.
fn furnish(root: &Path, kernel: &str, ferry: &Path, cases: &Path, names: &[String]) -> anyhow::Result<()> {
    for directory in
        ["bin", "sbin", "usr/bin", "usr/sbin", "etc", "lib/modules", "work/deps", "proc", "sys", "dev"]
    {
        std::fs::create_dir_all(root.join(directory))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is needed")?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let mut copied = BTreeSet::new();
    for program in PROGRAMS {
        let path = find(program).with_context(|| format!("no {program}"))?;
        let name = path.file_name().context("a program without a name")?;
        // Ours come first: of busybox's only what nothing else is named.
        let to = root.join("bin").join(name);
        let _ = std::fs::remove_file(&to);
        program_to(&path, &to, root, &mut copied)?;
    }
    // The kernel calls it there, when something needs a module.
    symlink("../bin/modprobe", root.join("sbin/modprobe"))?;
    program_to(ferry, &root.join("work/ferry"), root, &mut copied)?;
    program_to(cases, &root.join("work/deps/conformance"), root, &mut copied)?;
    let modules = format!("/lib/modules/{kernel}");
    shell::run("cp", &["-aT", &modules, &root.join(modules.trim_start_matches('/')).to_string_lossy()])?;
    let quoted: String = names.iter().map(|n| format!(" '{}'", n.replace('\'', ""))).collect();
    for (path, text) in [
        ("init", INIT.to_owned()),
        ("etc/begin", BEGIN.to_owned()),
        ("etc/cases", format!("deps/conformance{quoted}\n")),
        // The real one is for a shell that is not here.
        ("bin/ldd", "#!/bin/sh\nexec /lib64/ld-linux-x86-64.so.2 --list \"$1\"\n".to_owned()),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n".to_owned()),
        ("etc/group", "root:x:0:\n".to_owned()),
        ("etc/hosts", "127.0.0.1 localhost\n".to_owned()),
    ] {
        let path = root.join(path);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.map(|d| d.join(program)).find(|p| p.is_file())
}

/// Copies a program and the libraries it is linked with.
fn program_to(from: &Path, to: &Path, root: &Path, copied: &mut BTreeSet<String>) -> anyhow::Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let linked = Command::new("ldd").arg(from).output()?;
    for word in String::from_utf8_lossy(&linked.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
        if copied.insert(word.to_owned()) {
            let library = root.join(word.trim_start_matches('/'));
            std::fs::create_dir_all(library.parent().context("a library without a directory")?)?;
            std::fs::copy(word, library)?;
        }
    }
    Ok(())
}

fn pack(root: &Path, archive: &Path) -> anyhow::Result<()> {
    let script =
        format!("cd '{}' && find . | busybox cpio -o -H newc > '{}'", root.display(), archive.display());
    shell::run("sh", &["-c", &script])
}

/// Starts the machine, shows what it says, and fails when the cases did.
fn boot(kernel: &str, archive: &Path, disk: &Path) -> anyhow::Result<()> {
    let mut machine = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            MEMORY,
            "-nographic",
            "-no-reboot",
        ])
        .args(["-nic", "none", "-kernel", &format!("/boot/vmlinuz-{kernel}"), "-initrd"])
        .arg(archive)
        .arg("-drive")
        .arg(format!("file={},format=raw,if=virtio", disk.display()))
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the machine")?;
    let output = machine.stdout.take().context("the machine says nothing")?;
    let mut code = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(rest) = line.trim().strip_prefix(END) {
            code = rest.parse::<i32>().ok();
        }
    }
    machine.wait()?;
    match code {
        Some(0) => Ok(()),
        Some(code) => bail!("cases failed in the machine ({code})"),
        None => bail!("the machine ended before the cases did"),
    }
}
