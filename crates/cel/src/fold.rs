//! Ranges of folds, and the folds that build a list or a map: those append in place instead of copying the
//! accumulator every round, and are charged as if they had.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::ast::{ACCU, Expr, Fold, Kind};
use crate::compare::equal;
use crate::cost;
use crate::error::EvalError;
use crate::eval::{Evaluator, Outcome, Scope, show_key};
use crate::value::{Key, Map, Value};

/// Calls `f` for every element (list), key (map), or index and element, or key and value; until it says no.
pub(crate) fn each<'a>(
    range: &Value<'a>,
    two: bool,
    mut f: impl FnMut(Value<'a>, Option<Value<'a>>) -> Result<bool, EvalError>,
) -> Result<(), EvalError> {
    match range {
        Value::List(list) => {
            for (i, item) in list.iter().enumerate() {
                let more = if two { f(Value::Int(i as i64), Some(item))? } else { f(item, None)? };
                if !more {
                    break;
                }
            }
            Ok(())
        }
        Value::Map(map) => {
            for (key, value) in map.iter() {
                if !f(key, two.then_some(value))? {
                    break;
                }
            }
            Ok(())
        }
        other => Err(EvalError::failed(format!("got '{}', expected iterable type", other.type_name()))),
    }
}

/// `@in`: membership of a list, presence of a key.
pub(crate) fn contains<'a>(values: &[Value<'a>]) -> Outcome<'a> {
    match values {
        [item, Value::List(list)] => Ok(Value::Bool(list.iter().any(|v| equal(item, &v)))),
        // What is not there is not in it, whatever looking it up gives.
        [key, Value::Map(Map::Domains(map))] => {
            Ok(Value::Bool(Key::of(key).is_some_and(|k| map.keys().any(|own| *own == k))))
        }
        [key, Value::Map(map)] => Ok(Value::Bool(Key::of(key).is_some_and(|k| map.get(&k).is_some()))),
        _ => Err(EvalError::no_overload()),
    }
}

/// What a building fold adds each round, and when.
pub(crate) struct Builder<'e> {
    filter: Option<&'e Expr>,
    adds: Adds<'e>,
}

enum Adds<'e> {
    Item(&'e Expr),
    Entry(&'e Expr, &'e Expr),
    Entries(&'e Expr),
}

impl<'e> Builder<'e> {
    /// Recognises the shapes that the macros expand to.
    pub fn of(f: &'e Fold) -> Option<Builder<'e>> {
        let is_accu = |e: &Expr| matches!(&e.kind, Kind::Ident(name) if name == ACCU);
        if f.accu != ACCU {
            return None;
        }
        let (filter, step) = match &f.step.kind {
            Kind::Call { function, args, .. } if function == "_?_:_" && is_accu(args.get(2)?) => {
                (args.first(), args.get(1)?)
            }
            _ => (None, &f.step),
        };
        let Kind::Call { function, args, .. } = &step.kind else { return None };
        if !args.first().is_some_and(is_accu) {
            return None;
        }
        let adds = match (function.as_str(), &args[1..]) {
            ("_+_", [list]) => match &list.kind {
                Kind::List(items) => match &items[..] {
                    [(item, false)] => Adds::Item(item),
                    _ => return None,
                },
                _ => return None,
            },
            ("cel.@mapInsert", [key, value]) => Adds::Entry(key, value),
            ("cel.@mapInsert", [entries]) => Adds::Entries(entries),
            _ => return None,
        };
        Some(Builder { filter, adds })
    }

    /// Begins with nothing.
    pub fn begin<'a>(self) -> Building<'e, 'a> {
        Building { builder: self, list: Vec::new(), map: BTreeMap::new() }
    }
}

/// A list or map being built.
pub(crate) struct Building<'e, 'a> {
    builder: Builder<'e>,
    list: Vec<Value<'a>>,
    map: BTreeMap<Key<'a>, Value<'a>>,
}

impl<'a> Building<'_, 'a> {
    /// One round.
    pub fn step(&mut self, on: &mut Evaluator<'_, '_, 'a>, scope: Scope<'_, 'a>) -> Result<(), EvalError> {
        if let Some(filter) = self.builder.filter {
            match on.eval(filter, scope)? {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(()),
                _ => return Err(EvalError::no_overload()),
            }
        }
        // The accumulator and the call that extends it.
        on.meter.charge(2)?;
        match self.builder.adds {
            Adds::Item(item) => {
                let constant = on.nodes[item.id].constant;
                let value = on.eval(item, scope)?;
                on.meter.charge(if constant { 0 } else { cost::LIST })?;
                self.list.push(value);
            }
            Adds::Entry(key, value) => {
                let key = on.eval(key, scope)?;
                let value = on.eval(value, scope)?;
                self.insert(&key, value)?;
            }
            Adds::Entries(entries) => match on.eval(entries, scope)? {
                Value::Map(map) => {
                    for (key, value) in map.iter() {
                        self.insert(&key, value)?;
                    }
                }
                _ => return Err(EvalError::no_overload()),
            },
        }
        Ok(())
    }

    fn insert(&mut self, key: &Value<'a>, value: Value<'a>) -> Result<(), EvalError> {
        let key = Key::of(key).ok_or_else(|| EvalError::failed("unsupported key type"))?;
        if self.map.contains_key(&key) {
            return Err(EvalError::failed(format!("insert failed: key {} already exists", show_key(&key))));
        }
        self.map.insert(key, value);
        Ok(())
    }

    /// What was built.
    pub fn finish(self) -> Value<'a> {
        match self.builder.adds {
            Adds::Item(_) => Value::list(self.list),
            _ => Value::Map(Map::Made(Rc::new(self.map))),
        }
    }
}
