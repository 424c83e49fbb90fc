//! Selectors of devices (`resource.k8s.io`): what they may say, what they may cost, and whether a device is
//! selected.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::LazyLock;

use meta::Quantity;

use crate::cost::Meter;
use crate::estimate::Sizes;
use crate::library::{Opaque, Semver};
use crate::types::Type;
use crate::value::{Key, Map, Text, Value};
use crate::{Env, Program};

/// Most bytes of a selector (`CELSelectorExpressionMaxLength`).
pub const LENGTH_MAX: usize = 10 * 1024;
/// Most that a selector may cost (`CELSelectorExpressionMaxCost`).
pub const COST_MAX: u64 = 1_000_000;
/// Most attributes and capacities of a device.
const ENTRIES_MAX: u64 = 32;
/// Longest domain of an attribute's name.
const DOMAIN_MAX: u64 = 63;
/// Longest name within its domain.
const ID_MAX: u64 = 32;
/// Longest name of a driver.
const DRIVER_MAX: u64 = 63;
/// Longest value of an attribute.
const VALUE_MAX: u64 = 64;

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute<'a> {
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `string`
    String(&'a str),
    /// `version`
    Version(&'a str),
}

/// A device as selectors see it.
#[derive(Debug, Clone, Default)]
pub struct Device<'a> {
    /// Its driver, which is also the domain of names without one.
    pub driver: &'a str,
    /// Whether several claims may have it at once.
    pub shared: bool,
    /// Attributes by name.
    pub attributes: Vec<(&'a str, Attribute<'a>)>,
    /// Capacities by name.
    pub capacity: Vec<(&'a str, Quantity)>,
}

/// A selector that compiles.
#[derive(Debug, Clone)]
pub struct Selector(Program);

static ENVIRONMENT: LazyLock<Env> = LazyLock::new(|| {
    let by_domain = |value: Type| Type::map(Type::String, Type::map(Type::String, value));
    let device = Type::object(
        "kubernetes.DRADevice",
        [
            ("driver", Type::String),
            ("allowMultipleAllocations", Type::Bool),
            ("attributes", by_domain(Type::Dyn)),
            ("capacity", by_domain(Type::Opaque("kubernetes.Quantity"))),
        ],
    );
    Env::new().variable("device", device).bindings()
});

/// How large the parts of a device can be.
struct Limits;

impl Sizes for Limits {
    fn max(&self, path: &[String]) -> Option<u64> {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path.as_slice() {
            ["device", "driver"] => Some(DRIVER_MAX),
            ["device", "allowMultipleAllocations"] => Some(1),
            ["device", "attributes" | "capacity"] => Some(ENTRIES_MAX),
            ["device", "attributes" | "capacity", "@keys"] => Some(DOMAIN_MAX),
            ["device", "attributes" | "capacity", "@values"] => Some(ENTRIES_MAX),
            ["device", "attributes" | "capacity", "@values", "@keys"] => Some(ID_MAX),
            ["device", "attributes", "@values", _] => Some(VALUE_MAX),
            _ => None,
        }
    }
}

impl Selector {
    /// Compiles a selector. An error is in upstream's words.
    pub fn compile(source: &str) -> Result<Selector, String> {
        let program = ENVIRONMENT.compile(source).map_err(|e| format!("compilation failed: {e}"))?;
        match program.result_type() {
            Type::Bool | Type::Dyn => Ok(Selector(program)),
            other => Err(format!("must evaluate to bool or the unknown type, not {other}")),
        }
    }

    /// The most that one evaluation may cost.
    pub fn cost(&self) -> u64 {
        self.0.estimate(&Limits).max
    }

    /// Whether a device is selected.
    pub fn matches(&self, device: &Device<'_>) -> Result<bool, String> {
        let value = value_of(device)?;
        let variables = vec![("device", value)];
        let result = self.0.evaluate(&variables, &mut Meter::new(COST_MAX));
        let result = result.map_err(|error| error.to_string())?;
        result.as_bool().ok_or_else(|| {
            let ty = result.type_name();
            format!(
                "CEL result of type {ty} could not be converted to bool: type conversion error from '{ty}' to 'bool'"
            )
        })
    }
}

fn key(text: &str) -> Key<'_> {
    Key::String(Text::Borrowed(text))
}

type Entries<'a> = BTreeMap<Key<'a>, Value<'a>>;

/// Sorts names into their domains.
fn by_domain<'a>(driver: &'a str, entries: Vec<(&'a str, Value<'a>)>) -> Value<'a> {
    let mut domains: BTreeMap<&str, Entries<'a>> = BTreeMap::new();
    for (name, value) in entries {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        domains.entry(domain).or_default().insert(key(id), value);
    }
    let made = domains.into_iter().map(|(domain, ids)| (key(domain), Value::Map(Map::Made(Rc::new(ids)))));
    Value::Map(Map::Domains(Rc::new(made.collect())))
}

fn value_of<'a>(device: &Device<'a>) -> Result<Value<'a>, String> {
    let attributes = device.attributes.iter().map(|(name, attribute)| {
        let value = match attribute {
            Attribute::Bool(b) => Value::Bool(*b),
            Attribute::Int(n) => Value::Int(*n),
            Attribute::String(s) => Value::text(s),
            Attribute::Version(v) => {
                let version = Semver::parse(v)
                    .map_err(|why| format!("attribute {name}: parse semantic version: {why}"))?;
                Value::Opaque(Opaque::Semver(Rc::new(version)))
            }
        };
        Ok((*name, value))
    });
    let attributes = attributes.collect::<Result<Vec<_>, String>>()?;
    let capacity = device.capacity.iter().map(|(name, q)| (*name, Value::Opaque(Opaque::Quantity(*q))));
    let fields: Entries<'a> = [
        (key("driver"), Value::text(device.driver)),
        (key("allowMultipleAllocations"), Value::Bool(device.shared)),
        (key("attributes"), by_domain(device.driver, attributes)),
        (key("capacity"), by_domain(device.driver, capacity.collect())),
    ]
    .into();
    Ok(Value::Map(Map::Made(Rc::new(fields))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device<'static> {
        Device {
            driver: "gpu.example.com",
            shared: false,
            attributes: vec![
                ("model", Attribute::String("a100")),
                ("index", Attribute::Int(3)),
                ("example.org/fast", Attribute::Bool(true)),
                ("driverVersion", Attribute::Version("1.2.3")),
            ],
            capacity: vec![("memory", Quantity::parse("80Gi").unwrap())],
        }
    }

    #[test]
    fn selection() {
        let cases = [
            ("true", "Ok(true)"),
            ("device.driver == 'gpu.example.com'", "Ok(true)"),
            ("device.attributes['gpu.example.com'].model == 'a100'", "Ok(true)"),
            ("device.attributes['gpu.example.com'].index > 3", "Ok(false)"),
            ("device.attributes['example.org'].fast", "Ok(true)"),
            ("has(device.attributes['nowhere.org'].fast)", "Ok(false)"),
            ("'nowhere.org' in device.attributes", "Ok(false)"),
            ("'gpu.example.com' in device.attributes", "Ok(true)"),
            ("device.attributes['nowhere.org'].fast", "Err(\"no such key: fast\")"),
            ("device.attributes['gpu.example.com'].driverVersion.isGreaterThan(semver('1.2.0'))", "Ok(true)"),
            ("device.capacity['gpu.example.com'].memory.compareTo(quantity('80Gi')) == 0", "Ok(true)"),
            (
                "cel.bind(a, device.attributes['gpu.example.com'], a.index == 3 && a.model == 'a100')",
                "Ok(true)",
            ),
            ("device.allowMultipleAllocations", "Ok(false)"),
        ];
        for (source, expected) in cases {
            let selector = Selector::compile(source).unwrap();
            assert_eq!(format!("{:?}", selector.matches(&device())), expected, "{source}");
            assert!(selector.cost() <= COST_MAX, "{source}: {}", selector.cost());
        }
    }

    #[test]
    fn mistakes() {
        let of = |source: &str| Selector::compile(source).unwrap_err();
        assert_eq!(of("1 + 1"), "must evaluate to bool or the unknown type, not int");
        assert!(
            of("noSuchVar")
                .starts_with("compilation failed: ERROR: <input>:1:1: undeclared reference to 'noSuchVar'")
        );
        assert!(of("device.name == 'x'").contains("undefined field 'name'"));
        let many = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, a + b + c + d == 'x'))))";
        assert!(Selector::compile(many).unwrap().cost() > COST_MAX);
    }
}
