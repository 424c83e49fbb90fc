//! Tidiness as a test: allowed edges between crates, sizes of files and functions (a ratchet: never more
//! than today), a header in every module.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::shell::root;

/// Longest file and function that need no entry in the ratchet.
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 100;
/// Where today's exceptions are.
const RATCHET: &str = "tidy.ratchet";

/// What each crate may use of ours: the layers of ARCHITECTURE.md.
const EDGES: &[(&str, &[&str])] = &[
    ("stdx", &[]),
    ("meta", &["stdx"]),
    ("schema", &["meta"]),
    ("cel", &["meta"]),
    ("certificate", &[]),
    ("api", &["meta"]),
    ("quota", &["meta"]),
    ("volumes", &["meta", "api"]),
    ("devices", &["meta", "api", "cel", "volumes"]),
    ("store", &["stdx"]),
    ("encryption", &["stdx", "store"]),
    ("registry", &["stdx", "meta", "schema", "cel", "certificate", "store"]),
    ("auth", &["stdx", "meta", "cel", "certificate"]),
    ("admission", &["meta", "schema", "cel", "certificate"]),
    (
        "apiserver",
        &[
            "stdx",
            "meta",
            "schema",
            "api",
            "store",
            "registry",
            "auth",
            "admission",
            "cel",
            "certificate",
            "quota",
        ],
    ),
    ("client", &["stdx", "meta", "api"]),
    ("reconcile", &["stdx", "meta", "api", "client"]),
    (
        "controllers",
        &["stdx", "meta", "certificate", "api", "client", "reconcile", "quota", "volumes", "devices"],
    ),
    ("scheduler", &["stdx", "meta", "api", "client", "reconcile", "volumes", "devices"]),
    ("rpc", &[]),
    ("cri", &[]),
    ("image", &["stdx", "cri"]),
    ("cdi", &["cri"]),
    ("container", &["stdx", "cri", "image", "cdi"]),
    ("build", &["cri", "image"]),
    ("streaming", &["client", "cri"]),
    ("cri-socket", &["client", "rpc", "cri", "streaming"]),
    (
        "kubelet",
        &[
            "stdx",
            "meta",
            "certificate",
            "api",
            "client",
            "reconcile",
            "cri",
            "streaming",
            "rpc",
            "volumes",
            "devices",
        ],
    ),
    ("net", &["stdx", "cri"]),
    ("proxy", &["stdx", "meta", "api", "client", "reconcile", "net"]),
    ("dns", &["stdx", "meta", "api", "client", "reconcile"]),
    ("testkit", &["stdx", "meta", "api", "client", "rpc"]),
    ("bench", &["meta", "client"]),
    ("xtask", &[]),
    ("codegen", &[]),
];

/// Checks everything, or (with `ratchet`) writes today's sizes down.
pub fn run(ratchet: bool) -> anyhow::Result<()> {
    let mut problems = edges()?;
    let mut sizes = BTreeMap::new();
    for file in sources()? {
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
        if !text.starts_with("//!") && !is_test_module(&file) {
            problems.push(format!("{name}: a module opens with a `//!` paragraph on its job"));
        }
        for marker in ["TODO", "FIXME", "XXX"] {
            if text.lines().any(|l| l.contains("//") && l.contains(&format!("{marker} ")) && !l.contains('#'))
            {
                problems.push(format!("{name}: {marker} without an issue number"));
            }
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            sizes.insert(name.clone(), lines);
        }
        for (function, lines) in long_functions(&text) {
            sizes.insert(format!("{name} fn {function}"), lines);
        }
    }
    let path = root().join(RATCHET);
    if ratchet {
        let text: String = sizes.iter().fold(String::new(), |mut out, (name, lines)| {
            let _ = writeln!(out, "{lines} {name}");
            out
        });
        std::fs::write(&path, text)?;
        return Ok(());
    }
    let allowed = read_ratchet(&path);
    for (name, lines) in &sizes {
        match allowed.get(name) {
            Some(limit) if lines <= limit => {}
            Some(limit) => problems.push(format!("{name}: {lines} lines, was {limit}; split it")),
            None => {
                problems.push(format!("{name}: {lines} lines; split it along a seam a reader would look for"))
            }
        }
    }
    if problems.is_empty() {
        println!("tidy: fine");
        return Ok(());
    }
    bail!("not tidy:\n  {}", problems.join("\n  "))
}

fn read_ratchet(path: &Path) -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|l| l.split_once(' '))
        .filter_map(|(n, name)| Some((name.to_owned(), n.parse().ok()?)))
        .collect()
}

fn is_test_module(file: &Path) -> bool {
    file.file_name().is_some_and(|n| n == "tests.rs") || file.components().any(|c| c.as_os_str() == "tests")
}

fn edges() -> anyhow::Result<Vec<String>> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
        .context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut problems = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        if name == "ferry" {
            continue;
        }
        let Some((_, allowed)) = EDGES.iter().find(|(n, _)| *n == name) else {
            problems.push(format!("crate {name} has no row in xtask's table of edges"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let in_tests = dependency["kind"] == "dev";
            if ours.contains(target) && !allowed.contains(&target) && !in_tests {
                problems.push(format!("crate {name} may not use {target}"));
            }
        }
    }
    Ok(problems)
}

fn sources() -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![root().join("crates")];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "target" && n != "generated") {
                    left.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Functions longer than the limit. The code is formatted, so a function ends at a brace as deep as its
/// first line.
fn long_functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let Some(at) = body.find("fn ").filter(|at| *at == 0 || body[..*at].ends_with(' ')) else { continue };
        if body.starts_with("//") || body.contains('"') {
            continue;
        }
        let name: String = body[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let indent = line.len() - body.len();
        let closing = format!("{}}}", " ".repeat(indent));
        let Some(length) = lines[start..].iter().position(|l| *l == closing) else { continue };
        if length + 1 > FUNCTION_LINES_MAX && !name.is_empty() {
            out.push((name, length + 1));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_functions_are_found() {
        let body = "    x();\n".repeat(120);
        let text = format!("fn short() {{\n    x();\n}}\n\npub async fn long() {{\n{body}}}\n");
        assert_eq!(long_functions(&text), [("long".to_owned(), 122)]);
    }

    #[test]
    fn the_tree_is_tidy() {
        run(false).unwrap();
    }
}
