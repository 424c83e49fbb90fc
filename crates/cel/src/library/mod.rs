//! Implementations of the functions: the language's own, and the libraries of Kubernetes.

mod authorizer;
mod convert;
mod format;
mod formats;
mod lists;
mod net;
mod operators;
mod quantity;
mod semver;
mod strings;
mod times;
mod url;

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::LazyLock;

use crate::eval::Outcome;
use crate::value::Value;

pub use authorizer::{AuthorizationRequest, Authorizer, Check, Decision, authorizer, resource_check};
pub use formats::Format;
pub use net::Cidr;
pub use semver::Semver;
pub use url::Url;

/// What runs a function; the first argument of a member function is its target.
pub(crate) type Impl = for<'a> fn(&[Value<'a>]) -> Outcome<'a>;

/// A value of a library.
#[derive(Debug, Clone)]
pub enum Opaque<'a> {
    /// `quantity('1Gi')`
    Quantity(meta::Quantity),
    /// `semver('1.2.3')`
    Semver(Rc<Semver>),
    /// `ip('::1')`
    Ip(std::net::IpAddr),
    /// `cidr('10.0.0.0/8')`
    Cidr(Cidr),
    /// `url('https://example.com')`
    Url(Rc<Url>),
    /// `format.dns1123Label()`
    Format(&'static Format),
    /// A question to the authorizer as far as it has been put.
    Check(Rc<Check<'a>>),
    /// What the authorizer said.
    Decision(Rc<Decision>),
}

impl PartialEq for Opaque<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a == b,
            (Opaque::Semver(a), Opaque::Semver(b)) => a.cmp(b).is_eq(),
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a), Opaque::Cidr(b)) => a == b,
            (Opaque::Url(a), Opaque::Url(b)) => a == b,
            (Opaque::Format(a), Opaque::Format(b)) => a.name == b.name,
            (Opaque::Check(a), Opaque::Check(b)) => Rc::ptr_eq(a, b),
            (Opaque::Decision(a), Opaque::Decision(b)) => a == b,
            _ => false,
        }
    }
}

impl Opaque<'_> {
    /// The name of its type.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Opaque::Quantity(_) => "kubernetes.Quantity",
            Opaque::Semver(_) => "kubernetes.Semver",
            Opaque::Ip(_) => "net.IP",
            Opaque::Cidr(_) => "net.CIDR",
            Opaque::Url(_) => "kubernetes.URL",
            Opaque::Format(_) => "kubernetes.NamedFormat",
            Opaque::Check(check) => check.type_name(),
            Opaque::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    /// Size for costs: bytes of an address.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Opaque::Ip(ip) => net::size(ip),
            Opaque::Cidr(cidr) => net::size(&cidr.ip),
            _ => 1,
        }
    }
}

static TABLE: LazyLock<HashMap<&'static str, Impl>> = LazyLock::new(|| {
    let tables: [&[(&str, Impl)]; 12] = [
        operators::TABLE,
        convert::TABLE,
        times::TABLE,
        strings::TABLE,
        format::TABLE,
        lists::TABLE,
        net::TABLE,
        quantity::TABLE,
        semver::TABLE,
        url::TABLE,
        formats::TABLE,
        authorizer::TABLE,
    ];
    tables.into_iter().flatten().copied().collect()
});

/// What runs a function of this name.
pub(crate) fn implementation(name: &str) -> Option<Impl> {
    TABLE.get(name).copied().or_else(|| formats::constructor(name))
}

/// Text that was made by a function.
pub(crate) fn text<'a>(s: impl Into<String>) -> Value<'a> {
    Value::owned_text(s.into())
}

/// Quotes as Go's `%q` does for the common characters.
pub(crate) fn quoted(s: &str) -> Cow<'_, str> {
    Cow::Owned(serde_json::Value::from(s).to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_declared_function_runs() {
        /// The evaluator's own.
        const BUILT_IN: [&str; 12] = [
            "_?_:_",
            "_&&_",
            "_||_",
            "@not_strictly_false",
            "_==_",
            "_!=_",
            "_[_]",
            "_[?_]",
            "@in",
            "or",
            "orValue",
            "_?._",
        ];
        for name in crate::decls::names() {
            assert!(super::implementation(name).is_some() || BUILT_IN.contains(&name), "{name}");
        }
    }
}
