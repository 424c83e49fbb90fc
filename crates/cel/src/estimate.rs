//! The worst case of an expression's cost, from the greatest sizes of what it looks at. Limits on custom
//! resources' rules hang on these numbers, so they follow upstream's exactly.

use std::collections::HashMap;

use crate::ast::{ACCU, Expr, Fold, Id, Kind, Literal};
use crate::check::Checked;
use crate::cost::{AUTHORIZATION, LIST, MAP, REGEX, STRUCT, TRAVERSAL};
use crate::types::Type;

/// From the least to the most: of a cost, or of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// The least.
    pub min: u64,
    /// The most.
    pub max: u64,
}

/// How large things can be.
pub trait Sizes {
    /// The greatest size of what a path leads to, e.g. `["self", "spec", "items", "@items"]`; `@items`,
    /// `@keys` and `@values` are the parts of lists and maps.
    fn max(&self, path: &[String]) -> Option<u64>;
}

/// Nothing is known.
impl Sizes for () {
    fn max(&self, _: &[String]) -> Option<u64> {
        None
    }
}

const UNKNOWN: Cost = Cost { min: 0, max: u64::MAX };

fn fixed(n: u64) -> Cost {
    Cost { min: n, max: n }
}

impl Cost {
    fn add(self, other: Cost) -> Cost {
        Cost { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }
    fn times(self, other: Cost) -> Cost {
        Cost { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }
    fn factor(self, factor: f64) -> Cost {
        // A cast to an integer saturates.
        let scale = |n: u64| (n as f64 * factor).ceil() as u64;
        Cost { min: scale(self.min), max: scale(self.max) }
    }
    fn union(self, other: Cost) -> Cost {
        Cost { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

pub(crate) fn estimate(root: &Expr, checked: &Checked, sizes: &dyn Sizes) -> Cost {
    let mut coster = Coster {
        checked,
        sizes,
        paths: HashMap::new(),
        locals: Vec::new(),
        computed: HashMap::new(),
        entries: HashMap::new(),
    };
    coster.cost(root)
}

/// Sizes of a container's keys and values.
#[derive(Debug, Clone, Copy)]
struct EntrySize {
    list: bool,
    key: Cost,
    value: Cost,
}

struct Local {
    name: String,
    path: Vec<String>,
    size: Option<Cost>,
    entry: Option<EntrySize>,
}

struct Coster<'a> {
    checked: &'a Checked,
    sizes: &'a dyn Sizes,
    paths: HashMap<Id, Vec<String>>,
    locals: Vec<Local>,
    computed: HashMap<Id, Cost>,
    entries: HashMap<Id, EntrySize>,
}

/// The cost of a call, and the size of its result.
type CallCost = (Cost, Option<Cost>);

impl Coster<'_> {
    fn type_of(&self, e: &Expr) -> &Type {
        self.checked.types.get(e.id).unwrap_or(&Type::Dyn)
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|l| l.name == name)
    }

    fn path(&self, e: &Expr) -> Vec<String> {
        if let Kind::Ident(name) = &e.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&e.id).cloned().unwrap_or_default()
    }

    fn extended(&self, e: &Expr, part: &str) -> Vec<String> {
        let mut path = self.path(e);
        path.push(part.to_owned());
        path
    }

    fn at_path(&self, path: &[String]) -> Option<Cost> {
        match path.first() {
            None => None,
            Some(root) if root == ACCU => None,
            Some(_) => self.sizes.max(path).map(|max| Cost { min: 0, max }),
        }
    }

    fn size(&mut self, e: &Expr) -> Option<Cost> {
        if let Some(size) = self.computed.get(&e.id) {
            return Some(*size);
        }
        let literal = match &e.kind {
            Kind::Literal(Literal::String(s)) => Some(s.chars().count() as u64),
            Kind::Literal(Literal::Bytes(b)) => Some(b.len() as u64),
            Kind::Literal(_) => Some(1),
            Kind::List(items) => Some(items.len() as u64),
            Kind::Map(entries) => Some(entries.len() as u64),
            _ => None,
        };
        if let Some(n) = literal {
            return Some(fixed(n));
        }
        if let Some(size) = self.at_path(&self.path(e)) {
            self.computed.insert(e.id, size);
            return Some(size);
        }
        if is_scalar(self.type_of(e)) {
            return Some(fixed(1));
        }
        match &e.kind {
            Kind::Ident(name) => self.local(name).and_then(|l| l.size),
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, e: &Expr) -> Cost {
        self.size(e).unwrap_or(UNKNOWN)
    }

    fn entry(&self, e: &Expr) -> Option<EntrySize> {
        self.entries.get(&e.id).copied().or_else(|| match &e.kind {
            Kind::Ident(name) => self.local(name).and_then(|l| l.entry),
            _ => None,
        })
    }

    fn cost(&mut self, e: &Expr) -> Cost {
        match &e.kind {
            Kind::Literal(_) => fixed(0),
            Kind::Ident(name) => {
                let path = match self.local(name) {
                    Some(local) => local.path.clone(),
                    None => vec![name.clone()],
                };
                self.paths.insert(e.id, path);
                fixed(1)
            }
            Kind::Select { operand, test: true, .. } => self.cost(operand),
            Kind::Select { operand, field, .. } => {
                let cost = self.cost(operand);
                let path = self.extended(operand, field);
                self.paths.insert(e.id, path);
                let selects =
                    matches!(self.type_of(operand), Type::Map(..) | Type::Object(_) | Type::Param(_));
                cost.add(fixed(u64::from(selects)))
            }
            Kind::Call { .. } => self.call(e),
            Kind::List(items) => {
                let mut sum = fixed(LIST);
                let mut size = if items.is_empty() { fixed(0) } else { Cost { min: u64::MAX, max: 0 } };
                for (item, _) in items {
                    sum = sum.add(self.cost(item));
                    size = size.union(self.size_or_unknown(item));
                }
                self.entries.insert(e.id, EntrySize { list: true, key: fixed(1), value: size });
                sum
            }
            Kind::Map(entries) => {
                let mut sum = fixed(MAP);
                let empty = if entries.is_empty() { fixed(0) } else { Cost { min: u64::MAX, max: 0 } };
                let (mut key, mut value) = (empty, empty);
                for entry in entries {
                    sum = sum.add(self.cost(&entry.key)).add(self.cost(&entry.value));
                    key = key.union(self.size_or_unknown(&entry.key));
                    value = value.union(self.size_or_unknown(&entry.value));
                }
                self.entries.insert(e.id, EntrySize { list: false, key, value });
                sum
            }
            Kind::Struct { fields, .. } => {
                fields.iter().fold(fixed(STRUCT), |sum, f| sum.add(self.cost(&f.value)))
            }
            Kind::Fold(fold) if fold.accu != ACCU => self.bind(e, fold),
            Kind::Fold(fold) => self.fold(e, fold),
        }
    }

    fn bind(&mut self, e: &Expr, fold: &Fold) -> Cost {
        let mut sum = self.cost(&fold.range).add(self.cost(&fold.init));
        let local = Local {
            name: fold.accu.clone(),
            path: self.path(&fold.init),
            size: self.size(&fold.init),
            entry: self.entry(&fold.init),
        };
        self.locals.push(local);
        sum = sum.add(self.cost(&fold.result));
        let (size, entry) = (self.size(&fold.result), self.entry(&fold.result));
        self.locals.pop();
        self.set(e, size, entry);
        sum
    }

    fn set(&mut self, e: &Expr, size: Option<Cost>, entry: Option<EntrySize>) {
        if let Some(size) = size {
            self.computed.insert(e.id, size);
        }
        if let Some(entry) = entry {
            self.entries.insert(e.id, entry);
        }
    }

    fn fold(&mut self, e: &Expr, fold: &Fold) -> Cost {
        let mut sum = self.cost(&fold.range).add(self.cost(&fold.init));
        let accu = Local {
            name: fold.accu.clone(),
            path: self.path(&fold.init),
            size: self.size(&fold.init),
            entry: self.entry(&fold.init),
        };
        self.locals.push(accu);
        let entry = self.entry(&fold.range);
        let list = entry.map_or(matches!(self.type_of(&fold.range), Type::List(..)), |e| e.list);
        let (key, value) = (entry.map(|e| e.key), entry.map(|e| e.value));
        let (first, second) = match (fold.var2.is_some(), list) {
            (false, true) => (("@items", value), None),
            (false, false) => (("@keys", key), None),
            (true, true) => (("@indices", key), Some(("@items", value))),
            (true, false) => (("@keys", key), Some(("@values", value))),
        };
        let depth = self.locals.len();
        for (name, part) in [(Some(&fold.var), Some(first)), (fold.var2.as_ref(), second)] {
            if let (Some(name), Some((part, size))) = (name, part) {
                let path = self.extended(&fold.range, part);
                self.locals.push(Local { name: name.clone(), path, size, entry: None });
            }
        }
        let round = self.cost(&fold.condition);
        let round = self.cost(&fold.step).add(round);
        self.locals.truncate(depth);
        sum = sum.add(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        sum = sum.add(count.times(round));
        match &fold.init.kind {
            Kind::Literal(_) => {
                let size = self.size(&fold.init);
                self.set(e, size, None);
            }
            Kind::List(_) | Kind::Map(_) => {
                let entry = self.entry(&fold.step);
                self.set(e, Some(count), entry);
            }
            _ => {}
        }
        sum
    }

    fn call(&mut self, e: &Expr) -> Cost {
        let Kind::Call { function, target, args } = &e.kind else { return fixed(0) };
        if function == "dyn"
            && let [arg] = &args[..]
        {
            let cost = self.cost(arg);
            let (size, entry) = (self.size(arg), self.entry(arg));
            self.set(e, size, entry);
            return cost.add(fixed(1));
        }
        let costs: Vec<Cost> = args.iter().map(|a| self.cost(a)).collect();
        let overloads = self.checked.overloads.get(e.id).cloned().unwrap_or_default();
        if overloads.is_empty() {
            return fixed(0);
        }
        let mut sum = fixed(0);
        if let Some(target) = target {
            sum = self.cost(target);
        }
        let mut total = Cost { min: u64::MAX, max: 0 };
        let mut result: Option<Cost> = None;
        for overload in overloads {
            let (cost, size) = self.overload(e, function, overload, target.as_deref(), args, &costs);
            total = total.union(cost);
            if let Some(size) = size {
                result = Some(result.map_or(size, |r| r.union(size)));
            }
            if let (Some(part), Some(on)) = (indexes(overload), args.first()) {
                result = self.entry(on).map(|e| e.value);
                let path = self.extended(on, part);
                self.paths.insert(e.id, path);
            }
            if result.is_none() {
                result = self.size(e);
            }
        }
        self.set(e, result, None);
        sum.add(total)
    }

    fn overload(
        &mut self,
        e: &Expr,
        function: &str,
        overload: &str,
        target: Option<&Expr>,
        args: &[Expr],
        costs: &[Cost],
    ) -> CallCost {
        let all = costs.iter().fold(fixed(0), |sum, c| sum.add(*c));
        if let Some((cost, size)) = self.library(function, overload, target, args) {
            return (cost.add(all), size);
        }
        let two = |c: &mut Self| {
            (args.first().map(|a| c.size_or_unknown(a)), args.get(1).map(|a| c.size_or_unknown(a)))
        };
        match (overload, costs) {
            ("logical_or" | "logical_and", [left, right]) => {
                (Cost { min: left.min, max: left.add(*right).max }, None)
            }
            ("conditional", [condition, yes, no]) => {
                let size = match &args[1..] {
                    [yes, no] => {
                        let entry = match (self.entry(yes), self.entry(no)) {
                            (Some(a), Some(b)) => Some(joined(a, b)),
                            _ => None,
                        };
                        self.set(e, None, entry);
                        Some(self.size_or_unknown(yes).union(self.size_or_unknown(no)))
                    }
                    _ => None,
                };
                (condition.add(yes.union(*no)), size)
            }
            ("add_string" | "add_bytes" | "add_list", [_, _]) => {
                let (Some(a), Some(b)) = two(self) else { return (all.add(fixed(1)), None) };
                if let (Some(a), Some(b)) = (self.entry(&args[0]), self.entry(&args[1])) {
                    self.set(e, None, Some(joined(a, b)));
                }
                let size = a.add(b);
                let own = if overload == "add_list" { fixed(1) } else { size.factor(TRAVERSAL) };
                (own.add(all), Some(size))
            }
            (
                "less_string"
                | "greater_string"
                | "less_equals_string"
                | "greater_equals_string"
                | "less_bytes"
                | "greater_bytes"
                | "less_equals_bytes"
                | "greater_equals_bytes"
                | "equals"
                | "not_equals",
                [_, _],
            ) => {
                let (Some(a), Some(b)) = two(self) else { return (all.add(fixed(1)), None) };
                let max = a.max.min(b.max);
                (Cost { min: u64::from(max > 0), max }.factor(TRAVERSAL).add(all), None)
            }
            _ => self.standard(overload, target, args, all),
        }
    }

    /// Functions of the language that look at all of their argument.
    fn standard(&mut self, overload: &str, target: Option<&Expr>, args: &[Expr], all: Cost) -> CallCost {
        let on = target.map(|t| self.size_or_unknown(t));
        let first = args.first().map(|a| self.size_or_unknown(a));
        let second = args.get(1).map(|a| self.size_or_unknown(a));
        let (cost, size) = match (overload, on, first, second) {
            ("string_format", Some(on), ..) => (on.factor(TRAVERSAL), None),
            ("string_to_bytes", _, Some(s), _) => {
                (s.factor(TRAVERSAL), Some(Cost { min: s.min, max: s.max.saturating_mul(4) }))
            }
            ("bytes_to_string", _, Some(s), _) => {
                (s.factor(TRAVERSAL), Some(Cost { min: s.min / 4, max: s.max }))
            }
            ("strings_quote", _, Some(s), _) => {
                let size =
                    Cost { min: s.min.saturating_add(2), max: s.max.saturating_mul(2).saturating_add(2) };
                (s.factor(TRAVERSAL), Some(size))
            }
            ("starts_with_string" | "ends_with_string", _, Some(s), _) => (s.factor(TRAVERSAL), None),
            ("in_list", _, _, Some(list)) => (list, None),
            ("matches_string", Some(on), Some(pattern), _) => (regex(on, pattern), None),
            ("matches", _, Some(on), Some(pattern)) => (regex(on, pattern), None),
            ("contains_string", Some(on), Some(part), _) => {
                (on.factor(TRAVERSAL).times(part.factor(TRAVERSAL)), None)
            }
            _ => (fixed(1), None),
        };
        (cost.add(all), size)
    }

    /// The element of a list, as the node that upstream makes for it.
    fn element(&mut self, list: &Expr) -> Option<(Type, Cost)> {
        let Type::List(item, _) = self.type_of(list) else { return None };
        let item = (**item).clone();
        let path = self.path(list);
        let size = if path.is_empty() { None } else { self.at_path(&self.extended(list, "@items")) };
        Some((item, size.unwrap_or(UNKNOWN)))
    }

    /// Functions of the libraries.
    fn library(
        &mut self,
        function: &str,
        overload: &str,
        target: Option<&Expr>,
        args: &[Expr],
    ) -> Option<CallCost> {
        let first = args.first().map(|a| self.size_or_unknown(a));
        let on = target.map(|t| self.size_or_unknown(t));
        let parse = |by: f64| first.map(|s| (s.factor(by), None));
        match function {
            "check" => Some((fixed(AUTHORIZATION), None)),
            "fieldSelector" | "labelSelector" => {
                let s = first?;
                Some((
                    fixed(LIST).add(s.factor(TRAVERSAL)).add(s.factor(0.5).factor((LIST + STRUCT) as f64)),
                    None,
                ))
            }
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "includes" => {
                let (target, on) = (target?, on?);
                let cost = match self.element(target) {
                    Some((Type::String | Type::Bytes, size)) => {
                        on.times(fixed(1).add(size.factor(TRAVERSAL)))
                    }
                    Some(_) => on,
                    None if function == "includes" => on,
                    None => on.factor(TRAVERSAL),
                };
                Some((cost, None))
            }
            "url" | "jsonpatch.escapeKey" => first.map(|s| (s.factor(TRAVERSAL), Some(s))),
            "lowerAscii" | "upperAscii" | "substring" | "trim" => on.map(|s| (s.factor(TRAVERSAL), Some(s))),
            "replace" => {
                let (on, to) = (on?, self.size_or_unknown(args.get(1)?));
                Some((on.factor(2.0 * TRAVERSAL), Some(replaced(on, first?, to))))
            }
            "split" => {
                let on = on?;
                let max = match args.get(1).map(|a| &a.kind) {
                    Some(Kind::Literal(Literal::Int(n))) => *n as u64,
                    _ => on.max,
                };
                Some((on.factor(2.0 * TRAVERSAL), Some(Cost { min: 0, max })))
            }
            "join" => {
                let (target, on) = (target?, on?);
                let mut size = self.element(target).map_or(fixed(0), |(_, element)| on.times(element));
                if let Some(separator) = first {
                    let between = Cost { min: on.min.saturating_sub(1), max: on.max.saturating_sub(1) };
                    size = size.add(separator.times(between));
                }
                Some((size.factor(TRAVERSAL), Some(size)))
            }
            "find" | "findAll" => {
                let on = on?;
                Some((regex(on, first?), Some(Cost { min: 0, max: on.max })))
            }
            "ip" if overload == "cidr_ip" => Some((fixed(1), None)),
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
                parse(TRAVERSAL)
            }
            "ip.isCanonical" => parse(2.0 * TRAVERSAL),
            "containsIP" | "containsCIDR" => {
                let bytes = Cost { min: 4, max: 16 };
                let mut cost = bytes.add(bytes).factor(TRAVERSAL);
                if function == "containsCIDR" {
                    cost = cost.add(bytes.factor(TRAVERSAL)).add(fixed(1));
                }
                if overload.ends_with("_string") {
                    cost = cost.add(first?.factor(TRAVERSAL));
                }
                Some((cost, None))
            }
            "validate" => first.map(|s| (s.factor(TRAVERSAL).factor(FORMAT_REGEX_MAX * REGEX), None)),
            "_==_" => match (args, self.type_of(args.first()?)) {
                ([a, b], Type::Opaque(_)) if self.type_of(a) == self.type_of(b) => Some((fixed(1), None)),
                _ => None,
            },
            "serviceAccount"
            | "path"
            | "group"
            | "resource"
            | "subresource"
            | "namespace"
            | "name"
            | "allowed"
            | "reason"
            | "error"
            | "errored"
            | "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "format.named"
            | "sign"
            | "asInteger"
            | "isInteger"
            | "asApproximateFloat"
            | "isGreaterThan"
            | "isLessThan"
            | "compareTo"
            | "add"
            | "sub"
            | "major"
            | "minor"
            | "patch"
            | "getScheme"
            | "getHostname"
            | "getHost"
            | "getPort"
            | "getEscapedPath"
            | "getQuery" => Some((fixed(1), None)),
            _ => None,
        }
    }
}

/// Longest pattern behind a named format.
const FORMAT_REGEX_MAX: f64 = 128.0;

fn regex(text: Cost, pattern: Cost) -> Cost {
    text.add(fixed(1)).factor(TRAVERSAL).times(pattern.factor(REGEX))
}

fn joined(a: EntrySize, b: EntrySize) -> EntrySize {
    EntrySize { list: a.list, key: a.key.union(b.key), value: a.value.union(b.value) }
}

/// Which part of a container an index gives.
fn indexes(overload: &str) -> Option<&'static str> {
    match overload {
        "index_list" => Some("@items"),
        "index_map" => Some("@values"),
        _ => None,
    }
}

/// How long a text may get when parts of it are replaced.
fn replaced(text: Cost, from: Cost, to: Cost) -> Cost {
    let (mut count, mut kept) = (fixed(0), fixed(0));
    if from.min == 0 {
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if to.max <= from.min {
        kept.max = text.max;
    } else {
        count.max = (text.max as f64 / from.min as f64).ceil() as u64;
    }
    if from.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if from.max <= to.min {
        kept.min = text.min;
    } else {
        count.min = (text.min as f64 / from.max as f64).ceil() as u64;
    }
    count.times(to).add(kept)
}

fn is_scalar(t: &Type) -> bool {
    match t {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        Type::Optional(inner) => is_scalar(inner),
        _ => false,
    }
}
