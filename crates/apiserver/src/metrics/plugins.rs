//! How long each admission plugin takes, and what policies say.
//!
//! Plugins, operations and outcomes are few and known: their histograms have places of their own, and counting takes
//! no lock.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use admission::dynamic::policy::Check;
use parking_lot::RwLock;
use stdx::Histogram;

use super::{STEPS, header};

/// Plugins that are part of the server rather than of the table of pure ones.
const OWN: [&str; 6] = [
    MUTATING_POLICY,
    "MutatingAdmissionWebhook",
    VALIDATING_POLICY,
    "ValidatingAdmissionWebhook",
    "NodeRestriction",
    "ResourceQuota",
];
/// Policies that change objects.
pub const MUTATING_POLICY: &str = "MutatingAdmissionPolicy";
/// Policies that refuse requests.
pub const VALIDATING_POLICY: &str = "ValidatingAdmissionPolicy";

const TYPES: [&str; 2] = ["admit", "validate"];
const OPERATIONS: [&str; 4] = ["CREATE", "UPDATE", "DELETE", "CONNECT"];
/// Places of one plugin: by type, operation and outcome.
const PLACES: usize = TYPES.len() * OPERATIONS.len() * 2;
/// Upper bounds of the time of a policy's check (upstream's).
const CHECKS: &[f64] = &[0.000_000_5, 0.001, 0.01, 0.1, 1.0];
/// Most series of policies: they are named by users.
const SERIES_MAX: usize = 1024;

/// Times of all plugins.
pub struct Plugins(Vec<OnceLock<Histogram>>);

fn names() -> impl Iterator<Item = &'static str> {
    admission::PLUGINS.iter().map(|p| p.name()).chain(OWN)
}

impl Default for Plugins {
    fn default() -> Self {
        Plugins((0..names().count() * PLACES).map(|_| OnceLock::new()).collect())
    }
}

impl Plugins {
    /// Counts one run of a plugin; `kind` is `admit` or `validate`.
    pub fn observe(&self, name: &str, kind: &str, operation: &str, rejected: bool, took: Duration) {
        let place = || {
            let plugin = names().position(|n| n == name)?;
            let kind = TYPES.iter().position(|t| *t == kind)?;
            let operation = OPERATIONS.iter().position(|o| *o == operation)?;
            let place = ((plugin * TYPES.len() + kind) * OPERATIONS.len() + operation) * 2;
            self.0.get(place + usize::from(rejected))
        };
        if let Some(place) = place() {
            place.get_or_init(|| Histogram::new(STEPS)).observe(took.as_secs_f64());
        }
    }

    pub(super) fn render(&self, out: &mut String) {
        let name = "apiserver_admission_controller_admission_duration_seconds";
        let help = "Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).";
        header(out, name, "histogram", help);
        let mut places = self.0.iter();
        for plugin in names() {
            for kind in TYPES {
                for operation in OPERATIONS {
                    for rejected in [false, true] {
                        let Some(histogram) = places.next().and_then(OnceLock::get) else { continue };
                        let labels = format!(
                            "name=\"{plugin}\",operation=\"{operation}\",rejected=\"{rejected}\",type=\"{kind}\""
                        );
                        histogram.render(out, name, &labels);
                    }
                }
            }
        }
    }
}

/// What validating policies have said.
#[derive(Default)]
pub struct Checks(RwLock<BTreeMap<Check, (AtomicU64, Histogram)>>);

impl Checks {
    /// Counts checks, each of which took this long.
    pub fn observe(&self, checks: Vec<Check>, took: Duration) {
        for check in checks {
            let count = |found: &(AtomicU64, Histogram)| {
                found.0.fetch_add(1, Ordering::Relaxed);
                found.1.observe(took.as_secs_f64());
            };
            if let Some(found) = self.0.read().get(&check) {
                count(found);
                continue;
            }
            let mut all = self.0.write();
            if all.len() < SERIES_MAX {
                count(all.entry(check).or_insert_with(|| (AtomicU64::new(0), Histogram::new(CHECKS))));
            }
        }
    }

    pub(super) fn render(&self, out: &mut String) {
        let all = self.0.read();
        let labels = |c: &Check| {
            let (policy, binding) = (super::clean(&c.policy), super::clean(&c.binding));
            format!(
                "enforcement_action=\"{}\",error_type=\"{}\",policy=\"{policy}\",policy_binding=\"{binding}\"",
                c.action, c.error
            )
        };
        let name = "apiserver_validating_admission_policy_check_duration_seconds";
        let help = "Validation admission latency for individual validation expressions in seconds, labeled by policy and further including binding and enforcement action taken.";
        header(out, name, "histogram", help);
        for (check, (_, took)) in all.iter() {
            took.render(out, name, &labels(check));
        }
        let name = "apiserver_validating_admission_policy_check_total";
        let help = "Validation admission policy check total, labeled by policy and further identified by binding and enforcement action taken.";
        header(out, name, "counter", help);
        for (check, (count, _)) in all.iter() {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(check), count.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_counted_by_name_type_operation_and_outcome() {
        let plugins = Plugins::default();
        let took = Duration::from_millis(30);
        plugins.observe("LimitRanger", "admit", "CREATE", false, took);
        plugins.observe("LimitRanger", "admit", "CREATE", false, took);
        plugins.observe("ResourceQuota", "validate", "CONNECT", true, took);
        plugins.observe("NobodyKnows", "validate", "CREATE", true, took);
        let mut out = String::new();
        plugins.render(&mut out);
        let name = "apiserver_admission_controller_admission_duration_seconds";
        let counts: Vec<&str> = out.lines().filter(|l| l.starts_with(&format!("{name}_count"))).collect();
        assert_eq!(
            counts,
            [
                format!(
                    "{name}_count{{name=\"LimitRanger\",operation=\"CREATE\",rejected=\"false\",type=\"admit\"}} 2"
                ),
                format!(
                    "{name}_count{{name=\"ResourceQuota\",operation=\"CONNECT\",rejected=\"true\",type=\"validate\"}} 1"
                ),
            ]
        );
        assert!(
            out.contains("type=\"admit\",le=\"0.025\"} 0") && out.contains("type=\"admit\",le=\"0.1\"} 2")
        );
    }

    #[test]
    fn policies_are_counted_by_what_they_led_to() {
        let checks = Checks::default();
        let check = |action| Check { policy: "p".into(), binding: "b".into(), action, error: "no_error" };
        checks.observe(vec![check("allow"), check("deny"), check("allow")], Duration::from_millis(1));
        let mut out = String::new();
        checks.render(&mut out);
        let name = "apiserver_validating_admission_policy_check_total";
        for (action, n) in [("allow", 2), ("deny", 1)] {
            let line = format!(
                "{name}{{enforcement_action=\"{action}\",error_type=\"no_error\",policy=\"p\",policy_binding=\"b\"}} {n}"
            );
            assert!(out.lines().any(|l| l == line), "{out}");
        }
    }
}
