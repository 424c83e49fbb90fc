//! The type checker: every node gets a type, every call the overloads it may use.

use crate::ast::{Expr, Fold, Id, Kind, Literal};
use crate::decls::{self, Overload};
use crate::error::Mistake;
use crate::parser::Parsed;
use crate::types::{Mapping, Type};

/// What the environment knows.
pub(crate) trait Scope {
    /// The type of a variable.
    fn variable(&self, name: &str) -> Option<Type>;
    /// A struct that may be constructed.
    fn structure(&self, name: &str) -> Option<Type>;
}

/// What checking found out, by number of node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checked {
    pub types: Vec<Type>,
    pub overloads: Vec<Vec<&'static str>>,
}

/// Checks a tree, and rewrites qualified names in it.
pub(crate) fn check(parsed: &mut Parsed, scope: &dyn Scope) -> Result<Checked, Vec<Mistake>> {
    let count = parsed.positions.len();
    let mut checker = Checker {
        scope,
        positions: &parsed.positions,
        locals: Vec::new(),
        mapping: Mapping::default(),
        // Numbers below belong to the letters of the table.
        next_var: 256,
        types: vec![Type::Dyn; count],
        overloads: vec![Vec::new(); count],
        mistakes: Vec::new(),
    };
    checker.check(&mut parsed.root);
    crate::literals::check(&parsed.root, &parsed.positions, &mut checker.mistakes);
    if !checker.mistakes.is_empty() {
        return Err(checker.mistakes);
    }
    let types = checker.types.iter().map(|t| checker.mapping.substitute(t, true)).collect();
    Ok(Checked { types, overloads: checker.overloads })
}

struct Checker<'a> {
    scope: &'a dyn Scope,
    positions: &'a [usize],
    locals: Vec<(String, Type)>,
    mapping: Mapping,
    next_var: u32,
    types: Vec<Type>,
    overloads: Vec<Vec<&'static str>>,
    mistakes: Vec<Mistake>,
}

impl Checker<'_> {
    fn mistake(&mut self, id: Id, message: String) {
        let at = self.positions.get(id).copied().unwrap_or(0);
        self.mistakes.push(Mistake { at, message });
    }

    fn undeclared(&mut self, id: Id, name: &str) -> Type {
        self.mistake(id, format!("undeclared reference to '{name}' (in container '')"));
        Type::Error
    }

    fn fresh(&mut self) -> Type {
        self.next_var += 1;
        Type::Param(self.next_var)
    }

    fn assignable(&mut self, from: &Type, to: &Type) -> bool {
        self.mapping.assign_all(std::slice::from_ref(from), std::slice::from_ref(to))
    }

    fn mismatch(&mut self, id: Id, expected: &Type, found: &Type) {
        let shown = |t: &Type| self.mapping.substitute(t, true).to_string();
        let message = format!("expected type '{}' but found '{}'", shown(expected), shown(found));
        self.mistake(id, message);
    }

    fn ident(&self, name: &str) -> Option<Type> {
        let local = self.locals.iter().rev().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        local.or_else(|| self.scope.variable(name)).or_else(|| {
            decls::type_named(name).or_else(|| self.scope.structure(name)).map(|t| Type::Type(t.into()))
        })
    }

    fn check(&mut self, e: &mut Expr) -> Type {
        let ty = match &mut e.kind {
            Kind::Literal(literal) => type_of_literal(literal),
            Kind::Ident(name) => match self.ident(name) {
                Some(t) => t,
                None => {
                    let name = name.clone();
                    self.undeclared(e.id, &name)
                }
            },
            Kind::Select { .. } => self.check_select(e),
            Kind::Call { .. } => self.check_call(e),
            Kind::List(items) => {
                let mut joined = None;
                for (item, optional) in items {
                    let t = self.check(item);
                    let t = self.unwrapped(item.id, t, *optional);
                    joined = Some(self.join(item.id, joined, t));
                }
                Type::list(joined.unwrap_or_else(|| self.fresh()))
            }
            Kind::Map(entries) => {
                let (mut key, mut value) = (None, None);
                for entry in entries {
                    let t = self.check(&mut entry.key);
                    key = Some(self.join(entry.key.id, key, t));
                    let t = self.check(&mut entry.value);
                    let t = self.unwrapped(entry.value.id, t, entry.optional);
                    value = Some(self.join(entry.value.id, value, t));
                }
                let key = key.unwrap_or_else(|| self.fresh());
                Type::map(key, value.unwrap_or_else(|| self.fresh()))
            }
            Kind::Struct { .. } => self.check_struct(e),
            Kind::Fold(fold) => self.check_fold(fold),
        };
        self.types[e.id] = ty.clone();
        ty
    }

    /// What an optional element contributes.
    fn unwrapped(&mut self, id: Id, t: Type, optional: bool) -> Type {
        if !optional {
            return t;
        }
        match t {
            Type::Optional(inner) => (*inner).clone(),
            Type::Dyn => Type::Dyn,
            other => {
                self.mismatch(id, &Type::optional(other.clone()), &other);
                other
            }
        }
    }

    /// Elements of one aggregate have one type.
    fn join(&mut self, id: Id, previous: Option<Type>, current: Type) -> Type {
        let Some(previous) = previous else { return current };
        if self.assignable(&previous, &current) {
            return if matches!(current, Type::Dyn | Type::Param(_)) { current } else { previous };
        }
        self.mismatch(id, &previous, &current);
        Type::Error
    }

    fn check_select(&mut self, e: &mut Expr) -> Type {
        if let Some(name) = e.qualified_name()
            && let Some(root) = name.split('.').next()
            && self.locals.iter().all(|(n, _)| n != root)
            && let Some(t) = self.ident(&name)
        {
            e.kind = Kind::Ident(name);
            return t;
        }
        let id = e.id;
        let Kind::Select { operand, field, test } = &mut e.kind else { return Type::Error };
        let on = self.check(operand);
        let (field, test) = (field.clone(), *test);
        let found = self.field(id, &on, &field, false);
        if test { Type::Bool } else { found }
    }

    fn field(&mut self, id: Id, on: &Type, field: &str, optional: bool) -> Type {
        let on = self.mapping.substitute(on, false);
        let (target, was_optional) = match &on {
            Type::Optional(inner) => ((**inner).clone(), true),
            other => (other.clone(), false),
        };
        let found = match &target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match object.fields.field(field) {
                Some(t) => t,
                None => {
                    self.mistake(id, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Param(_) => {
                self.assignable(&Type::Dyn, &target);
                Type::Dyn
            }
            t if t.is_loose() => Type::Dyn,
            other => {
                self.mistake(id, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        let found = self.mapping.substitute(&found, false);
        if was_optional || optional { Type::optional(found) } else { found }
    }

    fn check_call(&mut self, e: &mut Expr) -> Type {
        let id = e.id;
        let Kind::Call { function, target, args } = &mut e.kind else { return Type::Error };
        if function == "_?._"
            && let [operand, field] = &mut args[..]
            && let Kind::Literal(Literal::String(name)) = &field.kind
        {
            let name = name.clone();
            let on = self.check(operand);
            self.overloads[id] = vec!["select_optional_field"];
            return self.field(id, &on, &name, true);
        }
        let mut types: Vec<Type> = args.iter_mut().map(|a| self.check(a)).collect();
        if let Some(prefix) = target.as_ref().and_then(|t| t.qualified_name()) {
            let qualified = format!("{prefix}.{function}");
            if !decls::overloads(&qualified).is_empty() {
                *function = qualified;
                *target = None;
            }
        }
        let member = target.is_some();
        if let Some(target) = target {
            let t = self.check(target);
            types.insert(0, t);
        }
        let function = function.clone();
        let overloads = decls::overloads(&function);
        if overloads.is_empty() {
            return self.undeclared(id, &function);
        }
        if matches!(function.as_str(), "_&&_" | "_||_") {
            let ids: Vec<Id> = args.iter().map(|a| a.id).collect();
            return self.logic(id, overloads, &types, &ids);
        }
        self.resolve(id, &function, overloads, member, &types)
    }

    fn resolve(
        &mut self,
        id: Id,
        function: &str,
        overloads: &'static [Overload],
        member: bool,
        types: &[Type],
    ) -> Type {
        let mut result: Option<Type> = None;
        for overload in overloads.iter().filter(|o| o.member == member) {
            let fresh = self.instance(overload);
            if !self.mapping.assign_all(types, &fresh.0) {
                continue;
            }
            self.overloads[id].push(overload.id);
            let found = self.mapping.substitute(&fresh.1, false);
            result = Some(match result {
                None => found,
                Some(before) if before == Type::Dyn || before == found => before,
                Some(_) => Type::Dyn,
            });
        }
        if let Some(result) = result {
            return result;
        }
        let shown: Vec<String> = types.iter().map(|t| self.mapping.substitute(t, true).to_string()).collect();
        let signature = match (member, shown.split_first()) {
            (true, Some((target, rest))) => format!("{target}.({})", rest.join(", ")),
            _ => format!("({})", shown.join(", ")),
        };
        self.mistake(id, format!("found no matching overload for '{function}' applied to '{signature}'"));
        Type::Error
    }

    /// Each side of `&&` and `||` is reported on its own.
    fn logic(&mut self, id: Id, overloads: &'static [Overload], types: &[Type], args: &[Id]) -> Type {
        let mut ty = Type::Bool;
        for (t, arg) in types.iter().zip(args) {
            if !self.assignable(t, &Type::Bool) {
                self.mismatch(*arg, &Type::Bool, t);
                ty = Type::Error;
            }
        }
        self.overloads[id] = overloads.iter().map(|o| o.id).collect();
        ty
    }

    /// The overload's signature with variables of its own.
    fn instance(&mut self, overload: &Overload) -> (Vec<Type>, Type) {
        let base = self.next_var + 1;
        self.next_var += 128;
        fn shift(t: &Type, base: u32) -> Type {
            match t {
                Type::Param(n) => Type::Param(base + n),
                other => other.with_params(&mut |p| shift(p, base)),
            }
        }
        (overload.args.iter().map(|t| shift(t, base)).collect(), shift(&overload.result, base))
    }

    fn check_struct(&mut self, e: &mut Expr) -> Type {
        let id = e.id;
        let Kind::Struct { name, fields } = &mut e.kind else { return Type::Error };
        let (ty, object) = match self.scope.structure(name) {
            Some(Type::Object(object)) => (Type::Object(object.clone()), Some(object)),
            _ => {
                let name = name.clone();
                if decls::type_named(&name).is_some() {
                    self.mistake(id, format!("'{name}' is not a message type"));
                    (Type::Error, None)
                } else {
                    (self.undeclared(id, &name), None)
                }
            }
        };
        for field in fields {
            let given = self.check(&mut field.value);
            let given = self.unwrapped(field.value.id, given, field.optional);
            let Some(object) = &object else { continue };
            let Some(declared) = object.fields.field(&field.name) else {
                self.mistake(field.id, format!("undefined field '{}'", field.name));
                continue;
            };
            if !self.assignable(&declared, &given) {
                let given = self.mapping.substitute(&given, true);
                let message = format!(
                    "expected type of field '{}' is '{declared}' but provided type is '{given}'",
                    field.name
                );
                self.mistake(field.id, message);
            }
        }
        ty
    }

    fn check_fold(&mut self, fold: &mut Fold) -> Type {
        let range = self.check(&mut fold.range);
        let range = self.mapping.substitute(&range, false);
        let accu = self.check(&mut fold.init);
        let two = fold.var2.is_some();
        let (first, second) = match &range {
            Type::List(item, _) if two => (Type::Int, (**item).clone()),
            Type::List(item, _) => ((**item).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.mistake(fold.range.id, message);
                (Type::Error, Type::Error)
            }
        };
        let depth = self.locals.len();
        self.locals.push((fold.accu.clone(), accu.clone()));
        self.locals.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.locals.push((var2.clone(), second));
        }
        let condition = self.check(&mut fold.condition);
        if !self.assignable(&Type::Bool, &condition) {
            self.mismatch(fold.condition.id, &Type::Bool, &condition);
        }
        let step = self.check(&mut fold.step);
        if !self.assignable(&accu, &step) {
            self.mismatch(fold.step.id, &accu, &step);
        }
        self.locals.truncate(depth + 1);
        let result = self.check(&mut fold.result);
        self.locals.truncate(depth);
        self.mapping.substitute(&result, false)
    }
}

fn type_of_literal(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}
