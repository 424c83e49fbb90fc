//! Macros: calls that are rewritten into tests of presence and folds over ranges.

use crate::ast::{ACCU, Expr, Fold, Kind, Literal};
use crate::parser::Parser;

/// The call, or what the macro of this name and number of arguments makes of it.
pub(crate) fn expand(
    p: &mut Parser<'_>,
    at: usize,
    name: &str,
    target: Option<Expr>,
    args: Vec<Expr>,
) -> Expr {
    let Some(target) = target else {
        if name == "has" && args.len() == 1 {
            return has(p, at, args);
        }
        return p.node(at, Kind::Call { function: name.into(), target: None, args });
    };
    let fold = match (name, args.len()) {
        ("all" | "exists" | "exists_one" | "existsOne", 2 | 3) => quantifier,
        ("map", 2 | 3) | ("filter", 2) => to_list,
        ("transformList", 3 | 4) => transform_list,
        ("transformMap" | "transformMapEntry", 3 | 4) => transform_map,
        ("optMap" | "optFlatMap", 2) => optional,
        ("bind", 3) if p.bindings && matches!(&target.kind, Kind::Ident(name) if name == "cel") => bind,
        _ => {
            let target = Some(Box::new(target));
            return p.node(at, Kind::Call { function: name.into(), target, args });
        }
    };
    let mut build = Builder { p, at };
    match fold(&mut build, name, target, args) {
        Ok(expr) => expr,
        Err((at, why)) => {
            p.mistake(at, why.into());
            p.node(at, Kind::Literal(Literal::Null))
        }
    }
}

fn has(p: &mut Parser<'_>, at: usize, mut args: Vec<Expr>) -> Expr {
    match args.pop().map(|a| (p.position(&a), a.kind)) {
        Some((_, Kind::Select { operand, field, test: false })) => {
            p.node(at, Kind::Select { operand, field, test: true })
        }
        other => {
            p.mistake(other.map_or(at, |o| o.0), "invalid argument to has() macro".into());
            p.node(at, Kind::Literal(Literal::Null))
        }
    }
}

type Expanded = Result<Expr, (usize, &'static str)>;

/// Makes nodes at the macro's place.
struct Builder<'p, 'a> {
    p: &'p mut Parser<'a>,
    at: usize,
}

impl Builder<'_, '_> {
    fn node(&mut self, kind: Kind) -> Expr {
        self.p.node(self.at, kind)
    }
    fn accu(&mut self) -> Expr {
        self.node(Kind::Ident(ACCU.into()))
    }
    fn bool(&mut self, b: bool) -> Expr {
        self.node(Kind::Literal(Literal::Bool(b)))
    }
    fn int(&mut self, n: i64) -> Expr {
        self.node(Kind::Literal(Literal::Int(n)))
    }
    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        self.node(Kind::Call { function: function.into(), target: None, args })
    }
    fn list(&mut self, items: Vec<Expr>) -> Expr {
        self.node(Kind::List(items.into_iter().map(|i| (i, false)).collect()))
    }

    /// The name of an iteration variable.
    fn variable(&self, expr: &Expr, why: &'static str) -> Result<String, (usize, &'static str)> {
        match &expr.kind {
            Kind::Ident(name) if name == "__result__" => {
                Err((self.p.position(expr), "iteration variable overwrites accumulator variable"))
            }
            Kind::Ident(name) => Ok(name.clone()),
            _ => Err((self.p.position(expr), why)),
        }
    }

    /// Takes one or two variables off the front.
    fn variables(
        &self,
        args: &mut Vec<Expr>,
        two: bool,
    ) -> Result<(String, Option<String>), (usize, &'static str)> {
        let why = "argument must be a simple name";
        let mut taken = args.drain(..if two { 2 } else { 1 });
        let first = match taken.next() {
            Some(e) => self.variable(&e, why)?,
            None => return Err((self.at, why)),
        };
        let second = match taken.next() {
            Some(e) => Some((self.p.position(&e), self.variable(&e, why)?)),
            None => None,
        };
        if let Some((at, name)) = &second
            && *name == first
        {
            return Err((*at, "duplicate variable name"));
        }
        Ok((first, second.map(|s| s.1)))
    }

    fn fold(&mut self, range: Expr, vars: (String, Option<String>), parts: [Expr; 4]) -> Expr {
        let [init, condition, step, result] = parts;
        let (var, var2) = vars;
        self.node(Kind::Fold(Box::new(Fold {
            range,
            var,
            var2,
            accu: ACCU.into(),
            init,
            condition,
            step,
            result,
        })))
    }

    /// `step` where the filter holds, else the accumulator unchanged.
    fn where_(&mut self, filter: Option<Expr>, step: Expr) -> Expr {
        match filter {
            None => step,
            Some(filter) => {
                let same = self.accu();
                self.call("_?_:_", vec![filter, step, same])
            }
        }
    }
}

fn quantifier(b: &mut Builder<'_, '_>, name: &str, range: Expr, mut args: Vec<Expr>) -> Expanded {
    let two = args.len() == 3;
    let vars = b.variables(&mut args, two)?;
    let Some(predicate) = args.pop() else { return Err((b.at, "argument must be a simple name")) };
    let parts = match name {
        "all" => {
            let (init, accu) = (b.bool(true), b.accu());
            let condition = b.call("@not_strictly_false", vec![accu]);
            let accu = b.accu();
            let step = b.call("_&&_", vec![accu, predicate]);
            [init, condition, step, b.accu()]
        }
        "exists" => {
            let (init, accu) = (b.bool(false), b.accu());
            let not = b.call("!_", vec![accu]);
            let condition = b.call("@not_strictly_false", vec![not]);
            let accu = b.accu();
            let step = b.call("_||_", vec![accu, predicate]);
            [init, condition, step, b.accu()]
        }
        _ => {
            let (init, condition, one, accu) = (b.int(0), b.bool(true), b.int(1), b.accu());
            let more = b.call("_+_", vec![accu, one]);
            let step = b.where_(Some(predicate), more);
            let (accu, one) = (b.accu(), b.int(1));
            [init, condition, step, b.call("_==_", vec![accu, one])]
        }
    };
    Ok(b.fold(range, vars, parts))
}

fn to_list(b: &mut Builder<'_, '_>, name: &str, range: Expr, mut args: Vec<Expr>) -> Expanded {
    let at = args.first().map_or(b.at, |a| b.p.position(a));
    if !matches!(args.first().map(|a| &a.kind), Some(Kind::Ident(_))) {
        return Err((at, "argument is not an identifier"));
    }
    let vars = b.variables(&mut args, false)?;
    let (filter, element) = match (name, args.pop(), args.pop()) {
        ("filter", filter, _) => (filter, b.node(Kind::Ident(vars.0.clone()))),
        (_, Some(element), filter) => (filter, element),
        (_, None, _) => return Err((b.at, "argument is not an identifier")),
    };
    append(b, range, vars, filter, element)
}

fn append(
    b: &mut Builder<'_, '_>,
    range: Expr,
    vars: (String, Option<String>),
    filter: Option<Expr>,
    element: Expr,
) -> Expanded {
    let (init, condition, accu, one) = (b.list(Vec::new()), b.bool(true), b.accu(), b.list(vec![element]));
    let more = b.call("_+_", vec![accu, one]);
    let step = b.where_(filter, more);
    let result = b.accu();
    Ok(b.fold(range, vars, [init, condition, step, result]))
}

fn transform_list(b: &mut Builder<'_, '_>, _: &str, range: Expr, mut args: Vec<Expr>) -> Expanded {
    let vars = b.variables(&mut args, true)?;
    let Some(element) = args.pop() else { return Err((b.at, "argument must be a simple name")) };
    let filter = args.pop();
    append(b, range, vars, filter, element)
}

fn transform_map(b: &mut Builder<'_, '_>, name: &str, range: Expr, mut args: Vec<Expr>) -> Expanded {
    let vars = b.variables(&mut args, true)?;
    let Some(value) = args.pop() else { return Err((b.at, "argument must be a simple name")) };
    let filter = args.pop();
    let (init, condition, accu) = (b.node(Kind::Map(Vec::new())), b.bool(true), b.accu());
    let insert = if name == "transformMap" {
        let key = b.node(Kind::Ident(vars.0.clone()));
        b.call("cel.@mapInsert", vec![accu, key, value])
    } else {
        b.call("cel.@mapInsert", vec![accu, value])
    };
    let step = b.where_(filter, insert);
    let result = b.accu();
    Ok(b.fold(range, vars, [init, condition, step, result]))
}

/// `x.optMap(v, f)`: `x.hasValue() ? optional.of(bind v = x.value() in f) : optional.none()`.
fn optional(b: &mut Builder<'_, '_>, name: &str, target: Expr, mut args: Vec<Expr>) -> Expanded {
    let variable = match args.first().map(|a| (&a.kind, b.p.position(a))) {
        Some((Kind::Ident(name), _)) => name.clone(),
        Some((_, at)) if name == "optMap" => {
            return Err((at, "optMap() variable name must be a simple identifier"));
        }
        Some((_, at)) => return Err((at, "optFlatMap() variable name must be a simple identifier")),
        None => return Err((b.at, "optMap() variable name must be a simple identifier")),
    };
    let Some(body) = args.pop() else {
        return Err((b.at, "optMap() variable name must be a simple identifier"));
    };
    let member = |b: &mut Builder<'_, '_>, target: Expr, function: &str| {
        b.node(Kind::Call { function: function.into(), target: Some(Box::new(target)), args: Vec::new() })
    };
    let present = member(b, target.clone(), "hasValue");
    let value = {
        let copy = copy(b, &target);
        member(b, copy, "value")
    };
    let (range, condition, result) = (b.list(Vec::new()), b.bool(false), body);
    let step = b.node(Kind::Ident(variable.clone()));
    let bound = b.node(Kind::Fold(Box::new(Fold {
        range,
        var: "#unused".into(),
        var2: None,
        accu: variable,
        init: value,
        condition,
        step,
        result,
    })));
    let some = if name == "optMap" { b.call("optional.of", vec![bound]) } else { bound };
    let none = b.call("optional.none", Vec::new());
    Ok(b.call("_?_:_", vec![present, some, none]))
}

/// `cel.bind(x, v, f)`: `f` with `x` standing for `v`, which is evaluated once.
fn bind(b: &mut Builder<'_, '_>, _: &str, _: Expr, mut args: Vec<Expr>) -> Expanded {
    let (Some(result), Some(init)) = (args.pop(), args.pop()) else {
        return Err((b.at, "cel.bind() variable names must be simple identifiers"));
    };
    let variable = match args.pop().map(|a| (b.p.position(&a), a.kind)) {
        Some((_, Kind::Ident(name))) => name,
        other => {
            let at = other.map_or(b.at, |o| o.0);
            return Err((at, "cel.bind() variable names must be simple identifiers"));
        }
    };
    let (range, condition) = (b.list(Vec::new()), b.bool(false));
    let step = b.node(Kind::Ident(variable.clone()));
    Ok(b.node(Kind::Fold(Box::new(Fold {
        range,
        var: "#unused".into(),
        var2: None,
        accu: variable,
        init,
        condition,
        step,
        result,
    }))))
}

/// A copy whose nodes have numbers of their own.
fn copy(b: &mut Builder<'_, '_>, expr: &Expr) -> Expr {
    let mut out = expr.clone();
    renumber(b, &mut out);
    out
}

fn renumber(b: &mut Builder<'_, '_>, expr: &mut Expr) {
    expr.id = b.p.node(b.p.position(expr), Kind::Literal(Literal::Null)).id;
    expr.each_child_mut(&mut |child| renumber(b, child));
}
