//! The evaluator: walks the checked tree, charging the meter as it goes.

use std::rc::Rc;

use crate::ast::{Expr, Fold, Kind, Literal};
use crate::compare::equal;
use crate::cost::{self, Meter};
use crate::error::EvalError;
use crate::fold;
use crate::library::Impl;
use crate::value::{Key, List, Map, Text, Value};

/// What a compiled tree knows of its nodes.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The overload, if checking left only one.
    pub overload: &'static str,
    /// What a call runs.
    pub run: Option<Impl>,
    /// Whether the node is made of constants only; such lists and maps cost nothing.
    pub constant: bool,
}

/// Where variables come from.
pub trait Activation<'a> {
    /// The value of a variable.
    fn variable(&self, name: &str) -> Option<Value<'a>>;
}

impl<'a> Activation<'a> for Vec<(&str, Value<'a>)> {
    fn variable(&self, name: &str) -> Option<Value<'a>> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone())
    }
}

/// Variables of folds, innermost first.
pub(crate) struct Locals<'s, 'a> {
    pub name: &'s str,
    pub value: Value<'a>,
    pub outer: Option<&'s Locals<'s, 'a>>,
}

pub(crate) struct Evaluator<'p, 'v, 'a> {
    pub nodes: &'p [Node],
    pub variables: &'v dyn Activation<'a>,
    pub meter: &'v mut Meter,
}

pub(crate) type Outcome<'a> = Result<Value<'a>, EvalError>;
pub(crate) type Scope<'s, 'a> = Option<&'s Locals<'s, 'a>>;

impl<'a> Evaluator<'_, '_, 'a> {
    pub fn eval(&mut self, e: &Expr, scope: Scope<'_, 'a>) -> Outcome<'a> {
        match &e.kind {
            Kind::Literal(literal) => Ok(constant(literal)),
            Kind::Ident(_) | Kind::Select { .. } => {
                self.base(e)?;
                self.attribute(e, scope)
            }
            Kind::Call { function, target, args } => match function.as_str() {
                "_[_]" | "_[?_]" | "_?._" => {
                    self.base(e)?;
                    self.attribute(e, scope)
                }
                "_&&_" => self.logic(&args[0], &args[1], scope, false),
                "_||_" => self.logic(&args[0], &args[1], scope, true),
                "_?_:_" => self.conditional(&args[0], &args[1], &args[2], scope),
                "@not_strictly_false" => self.not_strictly_false(&args[0], scope),
                "or" | "orValue" if target.is_some() => self.or(function, target.as_deref(), args, scope),
                _ => self.call(e, function, target.as_deref(), args, scope),
            },
            Kind::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for (item, optional) in items {
                    let value = self.eval(item, scope)?;
                    match (optional, value) {
                        (false, value) => out.push(value),
                        (true, Value::Optional(inner)) => out.extend(inner.map(|v| (*v).clone())),
                        _ => return Err(EvalError::no_overload()),
                    }
                }
                self.made(e, cost::LIST)?;
                Ok(Value::list(out))
            }
            Kind::Map(_) => self.map(e, scope),
            Kind::Struct { .. } => self.structure(e, scope),
            Kind::Fold(f) => self.fold(f, scope),
        }
    }

    fn made(&mut self, e: &Expr, cost: u64) -> Result<(), EvalError> {
        if self.nodes[e.id].constant { Ok(()) } else { self.meter.charge(cost) }
    }

    /// Charges for what a chain of selections begins with: a variable or a computed value costs one, a
    /// choice between two nothing.
    fn base(&mut self, e: &Expr) -> Result<(), EvalError> {
        match root(e) {
            Kind::Call { function, .. } if function == "_?_:_" => Ok(()),
            _ => self.meter.charge(1),
        }
    }

    /// A chain of selections without the charge for its beginning.
    fn attribute(&mut self, e: &Expr, scope: Scope<'_, 'a>) -> Outcome<'a> {
        match &e.kind {
            Kind::Ident(name) => self.variable(name, scope),
            Kind::Select { operand, field, test } => {
                let on = self.attribute(operand, scope)?;
                if *test {
                    return self.has(&on, field).map(Value::Bool);
                }
                self.meter.charge(1)?;
                self.select(&on, field)
            }
            Kind::Call { function, args, .. } if is_index(function) => {
                let on = self.attribute(&args[0], scope)?;
                if function == "_?._" {
                    self.meter.charge(1)?;
                    let Kind::Literal(Literal::String(field)) = &args[1].kind else {
                        return Err(EvalError::no_overload());
                    };
                    return self.optional(on, |s, on| s.find_field(on, field));
                }
                let index = self.eval(&args[1], scope)?;
                // An index that is itself a chain was charged for as one.
                if !is_attribute(&args[1]) {
                    self.meter.charge(1)?;
                }
                if function == "_[?_]" {
                    return self.optional(on, |_, on| find_index(on, &index));
                }
                match &on {
                    Value::Optional(_) => self.optional(on, |_, on| find_index(on, &index)),
                    on => find_index(on, &index)?.ok_or_else(|| missing(on, &index)),
                }
            }
            Kind::Call { function, args, .. } if function == "_?_:_" => {
                self.conditional(&args[0], &args[1], &args[2], scope)
            }
            _ => self.eval(e, scope),
        }
    }

    fn variable(&self, name: &str, scope: Scope<'_, 'a>) -> Outcome<'a> {
        let mut at = scope;
        while let Some(local) = at {
            if local.name == name {
                return Ok(local.value.clone());
            }
            at = local.outer;
        }
        if let Some(value) = self.variables.variable(name) {
            return Ok(value);
        }
        match crate::decls::type_named(name) {
            Some(_) => Ok(Value::Type(name.into())),
            None => Err(EvalError::failed(format!("no such attribute(s): {name}"))),
        }
    }

    fn find_field(&mut self, on: &Value<'a>, field: &str) -> Result<Option<Value<'a>>, EvalError> {
        match on {
            Value::Map(map) => Ok(map.field(field)),
            Value::Host(host) => host.field(field, self.meter).transpose(),
            _ => Err(EvalError::no_overload()),
        }
    }

    fn select(&mut self, on: &Value<'a>, field: &str) -> Outcome<'a> {
        match on {
            Value::Optional(_) => self.optional(on.clone(), |s, on| s.find_field(on, field)),
            on => self.find_field(on, field)?.ok_or_else(|| EvalError::no_such_key(field)),
        }
    }

    /// Looks inside an optional or a plain value; what is not there is an absent optional.
    fn optional(
        &mut self,
        on: Value<'a>,
        find: impl FnOnce(&mut Self, &Value<'a>) -> Result<Option<Value<'a>>, EvalError>,
    ) -> Outcome<'a> {
        let inner = match on {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => (*inner).clone(),
            other => other,
        };
        Ok(match find(self, &inner)? {
            Some(Value::Optional(already)) => Value::Optional(already),
            Some(found) => Value::some(found),
            None => Value::Optional(None),
        })
    }

    fn has(&mut self, on: &Value<'a>, field: &str) -> Result<bool, EvalError> {
        match on {
            Value::Optional(None) => Ok(false),
            Value::Optional(Some(inner)) => self.has(&(**inner).clone(), field),
            Value::Map(Map::Json(map, crate::types::Type::Object(_))) => {
                let name = crate::escape::unescape(field);
                let found = map.get(field).or_else(|| map.get(&*name?));
                Ok(found.is_some_and(|v| !v.is_null()))
            }
            Value::Map(map) => Ok(map.field(field).is_some()),
            Value::Host(host) => host.field(field, self.meter).transpose().map(|v| v.is_some()),
            _ => Err(EvalError::no_overload()),
        }
    }

    /// `&&` and `||`: the deciding value wins over an error on the other side.
    fn logic(&mut self, left: &Expr, right: &Expr, scope: Scope<'_, 'a>, decides: bool) -> Outcome<'a> {
        let left = self.eval(left, scope);
        match &left {
            Ok(Value::Bool(b)) if *b == decides => return left,
            Err(EvalError::CostExceeded) => return left,
            _ => {}
        }
        let right = self.eval(right, scope);
        match (left, right) {
            (_, Err(EvalError::CostExceeded)) => Err(EvalError::CostExceeded),
            (_, Ok(Value::Bool(b))) if b == decides => Ok(Value::Bool(decides)),
            (Err(e), _) | (Ok(Value::Bool(_)), Err(e)) => Err(e),
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => Ok(Value::Bool(!decides)),
            _ => Err(EvalError::no_overload()),
        }
    }

    fn conditional(&mut self, condition: &Expr, yes: &Expr, no: &Expr, scope: Scope<'_, 'a>) -> Outcome<'a> {
        match self.eval(condition, scope)? {
            Value::Bool(true) => self.branch(yes, scope),
            Value::Bool(false) => self.branch(no, scope),
            _ => Err(EvalError::no_overload()),
        }
    }

    /// A branch that is a chain of selections pays for the selections only.
    fn branch(&mut self, e: &Expr, scope: Scope<'_, 'a>) -> Outcome<'a> {
        if is_attribute(e) { self.attribute(e, scope) } else { self.eval(e, scope) }
    }

    fn not_strictly_false(&mut self, e: &Expr, scope: Scope<'_, 'a>) -> Outcome<'a> {
        let value = self.eval(e, scope);
        self.meter.charge(1)?;
        match value {
            Err(EvalError::CostExceeded) => Err(EvalError::CostExceeded),
            Ok(Value::Bool(false)) => Ok(Value::Bool(false)),
            _ => Ok(Value::Bool(true)),
        }
    }

    /// `a.or(b)` and `a.orValue(b)` look at `b` only if `a` is absent.
    fn or(
        &mut self,
        function: &str,
        target: Option<&Expr>,
        args: &[Expr],
        scope: Scope<'_, 'a>,
    ) -> Outcome<'a> {
        let (Some(target), [other]) = (target, args) else { return Err(EvalError::no_overload()) };
        match self.eval(target, scope)? {
            Value::Optional(Some(inner)) if function == "orValue" => Ok((*inner).clone()),
            present @ Value::Optional(Some(_)) => Ok(present),
            Value::Optional(None) => self.eval(other, scope),
            _ => Err(EvalError::no_overload()),
        }
    }

    fn call(
        &mut self,
        e: &Expr,
        function: &str,
        target: Option<&Expr>,
        args: &[Expr],
        scope: Scope<'_, 'a>,
    ) -> Outcome<'a> {
        let mut values = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            values.push(self.eval(arg, scope)?);
        }
        let node = &self.nodes[e.id];
        if function == "@in" && args.get(1).is_some_and(|a| self.nodes[a.id].constant) {
            // Membership of a constant set is one look-up.
            return fold::contains(&values);
        }
        let (overload, run) = (node.overload, node.run);
        let result = match (function, &values[..]) {
            ("_==_", [a, b]) => Ok(Value::Bool(equal(a, b))),
            ("_!=_", [a, b]) => Ok(Value::Bool(!equal(a, b))),
            ("@in", values) => fold::contains(values),
            _ => match run {
                Some(run) => run(&values),
                None => Err(EvalError::failed(format!("unbound function: {function}()"))),
            },
        };
        self.meter.charge(cost::call(function, overload, &values, result.as_ref().ok()))?;
        result.map_err(|e| match e {
            EvalError::Failed(why) if why == "no such overload" => {
                let types: Vec<_> = values.iter().map(|v| v.type_name().into_owned()).collect();
                EvalError::failed(format!("no such overload: {function}({})", types.join(", ")))
            }
            other => other,
        })
    }

    fn map(&mut self, e: &Expr, scope: Scope<'_, 'a>) -> Outcome<'a> {
        let Kind::Map(entries) = &e.kind else { return Err(EvalError::no_overload()) };
        let mut out = std::collections::BTreeMap::new();
        for entry in entries {
            let key = self.eval(&entry.key, scope)?;
            let value = match (entry.optional, self.eval(&entry.value, scope)?) {
                (false, value) => value,
                (true, Value::Optional(Some(inner))) => (*inner).clone(),
                (true, Value::Optional(None)) => continue,
                _ => return Err(EvalError::no_overload()),
            };
            let key = Key::of(&key).ok_or_else(|| EvalError::failed("unsupported key type"))?;
            if out.contains_key(&key) {
                return Err(EvalError::failed(format!("Failed with repeated key: {}", show_key(&key))));
            }
            out.insert(key, value);
        }
        self.made(e, cost::MAP)?;
        Ok(Value::Map(Map::Made(Rc::new(out))))
    }

    fn structure(&mut self, e: &Expr, scope: Scope<'_, 'a>) -> Outcome<'a> {
        let Kind::Struct { name, fields } = &e.kind else { return Err(EvalError::no_overload()) };
        let mut out = std::collections::BTreeMap::new();
        for field in fields {
            let value = match (field.optional, self.eval(&field.value, scope)?) {
                (false, value) => value,
                (true, Value::Optional(Some(inner))) => (*inner).clone(),
                (true, Value::Optional(None)) => continue,
                _ => return Err(EvalError::no_overload()),
            };
            out.insert(Key::String(Text::Shared(field.name.as_str().into())), value);
        }
        self.meter.charge(cost::STRUCT)?;
        Ok(Value::Map(Map::Struct(name.as_str().into(), Rc::new(out))))
    }

    fn fold(&mut self, f: &Fold, scope: Scope<'_, 'a>) -> Outcome<'a> {
        let range = self.eval(&f.range, scope)?;
        if let Some(builder) = fold::Builder::of(f) {
            let mut building = builder.begin();
            fold::each(&range, f.var2.is_some(), |first, second| {
                let locals = Locals { name: &f.var, value: first, outer: scope };
                let second = second.zip(f.var2.as_deref()).map(|(value, name)| (name, value));
                match second {
                    Some((name, value)) => {
                        let both = Locals { name, value, outer: Some(&locals) };
                        building.step(self, Some(&both))
                    }
                    None => building.step(self, Some(&locals)),
                }?;
                Ok(true)
            })?;
            // The accumulator as the result.
            self.meter.charge(1)?;
            return Ok(building.finish());
        }
        let mut accu = self.eval(&f.init, scope);
        if f.var != "#unused" {
            fold::each(&range, f.var2.is_some(), |first, second| {
                let current = Locals { name: &f.accu, value: Value::Null, outer: scope };
                self.step(f, &mut accu, current, first, second)
            })?;
        }
        if let Err(EvalError::CostExceeded) = accu {
            return Err(EvalError::CostExceeded);
        }
        match accu {
            Ok(value) => {
                let locals = Locals { name: &f.accu, value, outer: scope };
                self.eval(&f.result, Some(&locals))
            }
            // An accumulator that failed: the result is it, and was looked at.
            Err(e) => {
                self.meter.charge(1)?;
                Err(e)
            }
        }
    }

    /// One round of a fold whose accumulator is a bool or a number; whether to go on.
    fn step(
        &mut self,
        f: &Fold,
        accu: &mut Outcome<'a>,
        mut current: Locals<'_, 'a>,
        first: Value<'a>,
        second: Option<Value<'a>>,
    ) -> Result<bool, EvalError> {
        let failed = match accu {
            Ok(value) => {
                current.value = value.clone();
                None
            }
            Err(EvalError::CostExceeded) => return Err(EvalError::CostExceeded),
            Err(e) => Some(e.clone()),
        };
        let locals = Locals { name: &f.var, value: first, outer: Some(&current) };
        let both = second.zip(f.var2.as_deref());
        let both = both.map(|(value, name)| Locals { name, value, outer: Some(&locals) });
        let scope = both.as_ref().unwrap_or(&locals);
        let Some(error) = failed else {
            if let Value::Bool(false) = self.eval(&f.condition, Some(scope))? {
                return Ok(false);
            }
            *accu = self.eval(&f.step, Some(scope));
            return match accu {
                Err(EvalError::CostExceeded) => Err(EvalError::CostExceeded),
                _ => Ok(true),
            };
        };
        // Only the logical macros absorb: the other side may still decide.
        match &f.step.kind {
            Kind::Call { function, args, .. } if matches!(function.as_str(), "_&&_" | "_||_") => {
                self.meter.charge(3)?;
                let decides = function == "_||_";
                match self.eval(&args[1], Some(scope)) {
                    Ok(Value::Bool(b)) if b == decides => *accu = Ok(Value::Bool(b)),
                    Err(EvalError::CostExceeded) => return Err(EvalError::CostExceeded),
                    _ => *accu = Err(error),
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

fn is_index(function: &str) -> bool {
    matches!(function, "_[_]" | "_[?_]" | "_?._")
}

fn is_attribute(e: &Expr) -> bool {
    match &e.kind {
        Kind::Ident(_) | Kind::Select { .. } => true,
        Kind::Call { function, .. } => is_index(function),
        _ => false,
    }
}

/// What a chain of selections begins with.
fn root(e: &Expr) -> &Kind {
    match &e.kind {
        Kind::Select { operand, .. } => root(operand),
        Kind::Call { function, args, .. } if is_index(function) => root(&args[0]),
        other => other,
    }
}

fn constant<'a>(literal: &Literal) -> Value<'a> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(n) => Value::Int(*n),
        Literal::Uint(n) => Value::Uint(*n),
        Literal::Double(n) => Value::Double(*n),
        Literal::String(s) => Value::String(Text::Shared(s.clone())),
        Literal::Bytes(b) => Value::Bytes(b.clone()),
    }
}

pub(crate) fn show_key(key: &Key<'_>) -> String {
    match key {
        Key::Bool(b) => b.to_string(),
        Key::Int(n) => n.to_string(),
        Key::Uint(n) => n.to_string(),
        Key::String(s) => s.to_string(),
    }
}

fn missing(on: &Value<'_>, index: &Value<'_>) -> EvalError {
    let shown = Key::of(index).map(|k| show_key(&k)).unwrap_or_default();
    match on {
        Value::List(_) => EvalError::failed(format!("index out of bounds: {shown}")),
        _ => EvalError::no_such_key(shown),
    }
}

fn find_index<'a>(on: &Value<'a>, index: &Value<'a>) -> Result<Option<Value<'a>>, EvalError> {
    match on {
        Value::List(list) => match Key::of(index) {
            Some(Key::Int(i)) => Ok(usize::try_from(i).ok().and_then(|i| List::get(list, i))),
            _ => Err(EvalError::failed(format!("unsupported index type '{}' in list", index.type_name()))),
        },
        Value::Map(map) => match Key::of(index) {
            Some(key) => Ok(map.get(&key)),
            None => Err(EvalError::no_overload()),
        },
        _ => Err(EvalError::no_overload()),
    }
}
