//! Text to tokens.

use std::sync::Arc;

use crate::ast::Literal;
use crate::error::Mistake;

/// A token and the byte offset it begins at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub at: usize,
    pub end: usize,
    pub kind: TokenKind,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TokenKind {
    Ident(String),
    Literal(Literal),
    Symbol(&'static str),
    End,
}

/// Longest first, so that `<=` is not read as `<`.
const SYMBOLS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}",
];

/// Splits a source into tokens; what is no token is reported and skipped.
pub(crate) fn tokens(source: &str) -> (Vec<Token>, Vec<Mistake>) {
    let mut lexer = Lexer { source, at: 0, mistakes: Vec::new() };
    let mut out = Vec::new();
    loop {
        lexer.skip_blank();
        let at = lexer.at;
        if at >= source.len() {
            out.push(Token { at, end: at, kind: TokenKind::End });
            return (out, lexer.mistakes);
        }
        if let Some(kind) = lexer.token() {
            out.push(Token { at, end: lexer.at, kind });
        }
    }
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    mistakes: Vec<Mistake>,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        self.source.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> char {
        self.rest().chars().next().unwrap_or('\0')
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n', '\u{c}']);
            let mut skipped = rest.len() - trimmed.len();
            if trimmed.starts_with("//") {
                skipped += trimmed.find('\n').unwrap_or(trimmed.len());
            }
            if skipped == 0 {
                return;
            }
            self.at += skipped;
        }
    }

    fn mistake(&mut self, at: usize, text: String) {
        self.mistakes.push(Mistake { at, message: format!("Syntax error: {text}") });
    }

    fn token(&mut self) -> Option<TokenKind> {
        let c = self.peek();
        let next = self.rest().chars().nth(1).unwrap_or('\0');
        if c.is_ascii_digit() || (c == '.' && next.is_ascii_digit()) {
            return self.number();
        }
        if let Some((prefix, raw, bytes)) = string_prefix(self.rest()) {
            return self.string(prefix, raw, bytes);
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let rest = self.rest();
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let word = rest[..end].to_owned();
            self.at += end;
            return Some(match word.as_str() {
                "true" => TokenKind::Literal(Literal::Bool(true)),
                "false" => TokenKind::Literal(Literal::Bool(false)),
                "null" => TokenKind::Literal(Literal::Null),
                "in" => TokenKind::Symbol("in"),
                _ => TokenKind::Ident(word),
            });
        }
        if let Some(symbol) = SYMBOLS.iter().find(|s| self.rest().starts_with(**s)) {
            self.at += symbol.len();
            return Some(TokenKind::Symbol(symbol));
        }
        let at = self.at;
        self.at += c.len_utf8();
        self.mistake(at, format!("token recognition error at: '{c}'"));
        None
    }

    fn number(&mut self) -> Option<TokenKind> {
        let (at, rest) = (self.at, self.rest());
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let len = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
            let digits = hex[..len].to_owned();
            self.at += 2 + len;
            return Some(self.integer(at, &digits, 16));
        }
        let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let mut end = digits(rest);
        let mut float = false;
        if rest[end..].starts_with('.') && rest[end + 1..].starts_with(|c: char| c.is_ascii_digit()) {
            end += 1 + digits(&rest[end + 1..]);
            float = true;
        }
        if rest[end..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
            let exponent = digits(&rest[end + 1 + sign..]);
            if exponent > 0 {
                end += 1 + sign + exponent;
                float = true;
            }
        }
        let text = rest[..end].to_owned();
        self.at += end;
        if !float {
            return Some(self.integer(at, &text, 10));
        }
        Some(TokenKind::Literal(Literal::Double(text.parse().unwrap_or(f64::INFINITY))))
    }

    fn integer(&mut self, at: usize, digits: &str, radix: u32) -> TokenKind {
        let unsigned = self.rest().starts_with(['u', 'U']);
        self.at += usize::from(unsigned);
        let value = u64::from_str_radix(digits, radix);
        // The sign is not part of the number, and the smallest int has no positive twin.
        let literal = match value {
            Ok(n) if unsigned => Some(Literal::Uint(n)),
            Ok(n) if n == 1 << 63 && self.source[..at].trim_end().ends_with('-') => {
                Some(Literal::Int(i64::MIN))
            }
            Ok(n) => i64::try_from(n).ok().map(Literal::Int),
            Err(_) => None,
        };
        match literal {
            Some(literal) => TokenKind::Literal(literal),
            None => {
                self.mistake(at, format!("invalid {} literal", if unsigned { "uint" } else { "int" }));
                TokenKind::Literal(Literal::Int(0))
            }
        }
    }

    fn string(&mut self, prefix: usize, raw: bool, bytes: bool) -> Option<TokenKind> {
        let at = self.at;
        let rest = self.rest().get(prefix..).unwrap_or_default();
        let quote = rest.chars().next().unwrap_or('"');
        let triple: String = std::iter::repeat_n(quote, 3).collect();
        let delimiter = if rest.starts_with(&triple) { triple } else { quote.to_string() };
        let body = &rest[delimiter.len()..];
        let Some(len) = end_of_string(body, &delimiter, raw) else {
            let shown: String = rest.chars().take_while(|c| *c != '\n').collect();
            let shown = format!("{}{shown}", &self.rest()[..prefix]);
            self.mistake(at, format!("token recognition error at: '{shown}'"));
            self.at += shown.len();
            return None;
        };
        let content = body[..len].to_owned();
        self.at += prefix + 2 * delimiter.len() + len;
        let unescaped = if raw { Some(content.into_bytes()) } else { unescape(&content, bytes) };
        let Some(value) = unescaped else {
            self.mistake(at, "invalid string literal: unable to unescape string".into());
            return Some(TokenKind::Literal(Literal::Null));
        };
        Some(TokenKind::Literal(if bytes {
            Literal::Bytes(value.into())
        } else {
            Literal::String(Arc::from(String::from_utf8_lossy(&value).as_ref()))
        }))
    }
}

/// Length of `r`, `b` or both before a quote, and what they mean.
fn string_prefix(rest: &str) -> Option<(usize, bool, bool)> {
    let quote = rest.bytes().take(3).position(|b| matches!(b, b'"' | b'\''))?;
    let prefix = rest.get(..quote)?;
    match prefix.to_ascii_lowercase().as_str() {
        "" => Some((0, false, false)),
        "r" => Some((1, true, false)),
        "b" => Some((1, false, true)),
        "br" | "rb" => Some((2, true, true)),
        _ => None,
    }
}

fn end_of_string(body: &str, delimiter: &str, raw: bool) -> Option<usize> {
    let mut chars = body.char_indices();
    while let Some((i, c)) = chars.next() {
        if body[i..].starts_with(delimiter) {
            return Some(i);
        }
        if c == '\\' && !raw {
            chars.next();
        }
        if c == '\n' && delimiter.len() == 1 {
            return None;
        }
    }
    None
}

fn unescape(text: &str, bytes: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escape = rest.chars().next()?;
        rest = &rest[escape.len_utf8()..];
        // Digits of a code, their base, and whether the code is one byte of a bytes literal.
        let (taken, digits, radix, octet) = match escape {
            'x' | 'X' => (0, 2, 16, true),
            'u' if !bytes => (0, 4, 16, false),
            'U' if !bytes => (0, 8, 16, false),
            '0'..='3' => (1, 3, 8, true),
            _ => {
                out.push(match escape {
                    'a' => 7,
                    'b' => 8,
                    'f' => 12,
                    'n' => b'\n',
                    'r' => b'\r',
                    't' => b'\t',
                    'v' => 11,
                    '\\' | '\'' | '"' | '`' | '?' => escape as u8,
                    _ => return None,
                });
                continue;
            }
        };
        let code = rest.get(..digits - taken)?;
        rest = &rest[digits - taken..];
        let lead = if taken == 1 { escape.to_string() } else { String::new() };
        let code = u32::from_str_radix(&format!("{lead}{code}"), radix).ok()?;
        if bytes && octet {
            out.push(u8::try_from(code).ok()?);
        } else {
            out.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Some(out)
}
