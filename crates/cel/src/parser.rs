//! Tokens to a tree: operators by precedence, members, literals. Macros are expanded as they are met.

use crate::ast::{Entry, Expr, Field, Id, Kind, Literal};
use crate::error::Mistake;
use crate::lexer::{Token, TokenKind, tokens};
use crate::macros;

/// Deepest nesting of parentheses, against the stack's end (upstream's limit on recursion).
const DEPTH_MAX: usize = 250;
/// Deepest tree, for the same reason: a chain of operators nests without parentheses.
const TREE_DEPTH_MAX: u16 = 400;
/// Longest source in code points (upstream's limit).
const SOURCE_MAX: usize = 100_000;
/// What may begin an operand, as the reference parser lists it.
const OPERAND: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
/// Words that may not be used as names.
const RESERVED: [&str; 19] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A parsed source.
#[derive(Debug, Clone)]
pub(crate) struct Parsed {
    pub root: Expr,
    /// Byte offset of each node by its number.
    pub positions: Vec<usize>,
}

/// Parses a source.
pub(crate) fn parse(source: &str, bindings: bool) -> Result<Parsed, Vec<Mistake>> {
    if source.chars().count() > SOURCE_MAX {
        let message = format!(
            "expression code point size exceeds limit: size: {}, limit {SOURCE_MAX}",
            source.chars().count()
        );
        return Err(vec![Mistake { at: 0, message }]);
    }
    let (tokens, mistakes) = tokens(source);
    let mut parser = Parser {
        source,
        tokens,
        next: 0,
        positions: Vec::new(),
        heights: Vec::new(),
        mistakes,
        depth: 0,
        bindings,
    };
    let root = parser.expr();
    if let Ok(root) = root {
        let left = parser.peek().clone();
        if left.kind != TokenKind::End {
            let shown = parser.shown(&left);
            parser.mistake(left.at, format!("Syntax error: extraneous input {shown} expecting <EOF>"));
        }
        if parser.mistakes.is_empty() {
            return Ok(Parsed { root, positions: parser.positions });
        }
    }
    Err(parser.mistakes)
}

/// Parsing cannot go on; the mistake is in the list.
pub(crate) struct Stop;

pub(crate) struct Parser<'a> {
    source: &'a str,
    tokens: Vec<Token>,
    next: usize,
    positions: Vec<usize>,
    /// Height of the tree below each node.
    heights: Vec<u16>,
    mistakes: Vec<Mistake>,
    depth: usize,
    /// Whether `cel.bind` is a macro here.
    pub(crate) bindings: bool,
}

/// Binary operators from the loosest to the tightest, with the functions they call.
const LEVELS: [&[(&str, &str)]; 5] = [
    &[("||", "_||_")],
    &[("&&", "_&&_")],
    &[
        ("==", "_==_"),
        ("!=", "_!=_"),
        ("<=", "_<=_"),
        (">=", "_>=_"),
        ("<", "_<_"),
        (">", "_>_"),
        ("in", "@in"),
    ],
    &[("+", "_+_"), ("-", "_-_")],
    &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
];

/// How many of the levels are logic.
const LOGIC_LEVELS: usize = 2;

impl Parser<'_> {
    /// A new node at a place.
    pub fn node(&mut self, at: usize, kind: Kind) -> Expr {
        let id: Id = self.positions.len();
        let mut expr = Expr { id, kind };
        let mut height = 0;
        expr.each_child(&mut |child| height = height.max(self.heights.get(child.id).copied().unwrap_or(0)));
        if height >= TREE_DEPTH_MAX {
            if self.mistakes.is_empty() {
                self.mistake(at, format!("expression recursion limit exceeded: {TREE_DEPTH_MAX}"));
            }
            // What is dropped here is no deeper than the limit.
            expr.kind = Kind::Literal(Literal::Null);
            height = 0;
        }
        self.positions.push(at);
        self.heights.push(height + 1);
        expr
    }

    /// Where a node is.
    pub fn position(&self, expr: &Expr) -> usize {
        self.positions.get(expr.id).copied().unwrap_or(0)
    }

    /// Notes a mistake.
    pub fn mistake(&mut self, at: usize, message: String) {
        self.mistakes.push(Mistake { at, message });
    }

    fn peek(&self) -> &Token {
        // The last token is the end, and nothing moves past it.
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn advance(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(&self.peek().kind, TokenKind::Symbol(s) if *s == symbol)
    }

    fn take(&mut self, symbol: &str) -> Option<usize> {
        let at = self.peek().at;
        self.is(symbol).then(|| {
            self.next += 1;
            at
        })
    }

    fn shown(&self, token: &Token) -> String {
        match token.kind {
            TokenKind::End => "'<EOF>'".into(),
            _ => format!("'{}'", self.source.get(token.at..token.end).unwrap_or_default()),
        }
    }

    fn unexpected<T>(&mut self, expecting: &str) -> Result<T, Stop> {
        let token = self.peek().clone();
        let shown = self.shown(&token);
        self.mistake(token.at, format!("Syntax error: mismatched input {shown} expecting {expecting}"));
        Err(Stop)
    }

    fn expect(&mut self, symbol: &'static str) -> Result<usize, Stop> {
        match self.take(symbol) {
            Some(at) => Ok(at),
            None => self.unexpected(&format!("'{symbol}'")),
        }
    }

    fn expr(&mut self) -> Result<Expr, Stop> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let at = self.peek().at;
            self.mistake(at, format!("expression recursion limit exceeded: {DEPTH_MAX}"));
            return Err(Stop);
        }
        let condition = self.binary(0)?;
        let result = match self.take("?") {
            None => condition,
            Some(at) => {
                let yes = self.binary(0)?;
                self.expect(":")?;
                let no = self.expr()?;
                self.call(at, "_?_:_", None, vec![condition, yes, no])
            }
        };
        self.depth -= 1;
        Ok(result)
    }

    fn call(&mut self, at: usize, function: &str, target: Option<Expr>, args: Vec<Expr>) -> Expr {
        self.node(at, Kind::Call { function: function.into(), target: target.map(Box::new), args })
    }

    /// Operators of this level and tighter ones, by climbing: one frame of the stack, not one per level.
    fn binary(&mut self, loosest: usize) -> Result<Expr, Stop> {
        let mut left = self.unary()?;
        while let Some((level, symbol, function)) = self.operator().filter(|o| o.0 >= loosest) {
            let at = self.take(symbol).unwrap_or_default();
            if level < LOGIC_LEVELS {
                left = self.logic(level, symbol, function, left, at)?;
                continue;
            }
            let right = self.binary(level + 1)?;
            left = self.call(at, function, None, vec![left, right]);
        }
        Ok(left)
    }

    fn operator(&self) -> Option<(usize, &'static str, &'static str)> {
        let TokenKind::Symbol(symbol) = self.peek().kind else { return None };
        LEVELS.iter().enumerate().find_map(|(level, operators)| {
            operators.iter().find(|(s, _)| *s == symbol).map(|(s, f)| (level, *s, *f))
        })
    }

    /// A chain of `||` or `&&` as a balanced tree, so that long chains stay shallow.
    fn logic(
        &mut self,
        level: usize,
        symbol: &'static str,
        function: &str,
        first: Expr,
        at: usize,
    ) -> Result<Expr, Stop> {
        let (mut terms, mut places) = (vec![first, self.binary(level + 1)?], vec![at]);
        while let Some(at) = self.take(symbol) {
            places.push(at);
            terms.push(self.binary(level + 1)?);
        }
        Ok(self.balanced(function, terms, &places))
    }

    fn balanced(&mut self, function: &str, mut terms: Vec<Expr>, places: &[usize]) -> Expr {
        let middle = places.len() / 2;
        let right = terms.split_off(middle + 1);
        let left = self.half(function, terms, &places[..middle]);
        let right = self.half(function, right, &places[middle + 1..]);
        self.call(places[middle], function, None, vec![left, right])
    }

    fn half(&mut self, function: &str, mut terms: Vec<Expr>, places: &[usize]) -> Expr {
        match terms.pop() {
            Some(only) if terms.is_empty() => only,
            Some(last) => {
                terms.push(last);
                self.balanced(function, terms, places)
            }
            None => self.node(0, Kind::Literal(Literal::Null)),
        }
    }

    fn unary(&mut self) -> Result<Expr, Stop> {
        let symbol = if self.is("!") { "!" } else { "-" };
        let at = self.peek().at;
        let mut count = 0;
        while self.take(symbol).is_some() {
            count += 1;
        }
        if count == 0 {
            return self.member();
        }
        let numeric = matches!(self.peek().kind, TokenKind::Literal(Literal::Int(_) | Literal::Double(_)));
        let mut operand = self.member()?;
        if symbol == "-" && numeric {
            match &mut operand.kind {
                Kind::Literal(Literal::Int(n)) => {
                    *n = n.wrapping_neg();
                    count -= 1;
                }
                Kind::Literal(Literal::Double(n)) => {
                    *n = -*n;
                    count -= 1;
                }
                _ => {}
            }
        }
        if count % 2 == 0 {
            return Ok(operand);
        }
        let function = if symbol == "!" { "!_" } else { "-_" };
        Ok(self.call(at, function, None, vec![operand]))
    }

    fn member(&mut self) -> Result<Expr, Stop> {
        let mut left = self.primary()?;
        loop {
            if let Some(at) = self.take(".") {
                let optional = self.take("?").is_some();
                let field = self.name()?;
                left = if optional {
                    let field = self.node(at, Kind::Literal(Literal::String(field.into())));
                    self.call(at, "_?._", None, vec![left, field])
                } else if let Some(open) = self.take("(") {
                    let args = self.arguments(")")?;
                    macros::expand(self, open, &field, Some(left), args)
                } else {
                    self.node(at, Kind::Select { operand: Box::new(left), field, test: false })
                };
            } else if let Some(at) = self.take("[") {
                let function = if self.take("?").is_some() { "_[?_]" } else { "_[_]" };
                let index = self.expr()?;
                self.expect("]")?;
                left = self.call(at, function, None, vec![left, index]);
            } else if self.is("{")
                && let Some(name) = left.qualified_name()
            {
                let at = self.expect("{")?;
                left = self.fields(at, name)?;
            } else {
                return Ok(left);
            }
        }
    }

    fn name(&mut self) -> Result<String, Stop> {
        match self.advance().kind {
            TokenKind::Ident(name) => Ok(name),
            _ => {
                self.next -= 1;
                self.unexpected("IDENTIFIER")
            }
        }
    }

    fn primary(&mut self) -> Result<Expr, Stop> {
        let token = self.peek().clone();
        match token.kind {
            TokenKind::Literal(literal) => {
                self.next += 1;
                Ok(self.node(token.at, Kind::Literal(literal)))
            }
            TokenKind::Ident(name) => {
                self.next += 1;
                self.ident(token.at, name)
            }
            TokenKind::Symbol(".") => {
                self.next += 1;
                let name = self.name()?;
                self.ident(token.at, name)
            }
            TokenKind::Symbol("(") => {
                self.next += 1;
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            TokenKind::Symbol("[") => {
                self.next += 1;
                let mut items = Vec::new();
                while !self.is("]") {
                    let optional = self.take("?").is_some();
                    items.push((self.expr()?, optional));
                    if self.take(",").is_none() {
                        break;
                    }
                }
                self.expect("]")?;
                Ok(self.node(token.at, Kind::List(items)))
            }
            TokenKind::Symbol("{") => {
                self.next += 1;
                self.entries(token.at)
            }
            _ => self.unexpected(OPERAND),
        }
    }

    fn ident(&mut self, at: usize, name: String) -> Result<Expr, Stop> {
        if RESERVED.contains(&name.as_str()) {
            self.mistake(at, format!("reserved identifier: {name}"));
        }
        match self.take("(") {
            Some(open) => {
                let args = self.arguments(")")?;
                Ok(macros::expand(self, open, &name, None, args))
            }
            None => Ok(self.node(at, Kind::Ident(name))),
        }
    }

    fn arguments(&mut self, close: &'static str) -> Result<Vec<Expr>, Stop> {
        let mut args = Vec::new();
        if self.take(close).is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.take(",").is_none() {
                self.expect(close)?;
                return Ok(args);
            }
        }
    }

    fn entries(&mut self, at: usize) -> Result<Expr, Stop> {
        let mut entries = Vec::new();
        while !self.is("}") {
            let optional = self.take("?").is_some();
            let key = self.expr()?;
            self.expect(":")?;
            let value = self.expr()?;
            entries.push(Entry { key, value, optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("}")?;
        Ok(self.node(at, Kind::Map(entries)))
    }

    fn fields(&mut self, at: usize, name: String) -> Result<Expr, Stop> {
        let mut fields = Vec::new();
        while !self.is("}") {
            let optional = self.take("?").is_some();
            let field = self.name()?;
            let colon = self.expect(":")?;
            let id = self.node(colon, Kind::Ident(String::new())).id;
            let value = self.expr()?;
            fields.push(Field { id, name: field, value, optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("}")?;
        Ok(self.node(at, Kind::Struct { name, fields }))
    }
}
