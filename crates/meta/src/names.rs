//! Syntax rules for names, labels and annotations, in upstream's words (apimachinery util/validation).

/// Longest DNS subdomain, in bytes.
pub const SUBDOMAIN_MAX: usize = 253;
/// Longest DNS label, in bytes.
pub const LABEL_MAX: usize = 63;

const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_MESSAGE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY_MESSAGE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME_MESSAGE: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn edges_alphanumeric(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphanumeric()) && s.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn is_lower_label(s: &str) -> bool {
    edges_alphanumeric(s) && s.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
}

fn is_qualified_part(s: &str) -> bool {
    edges_alphanumeric(s) && s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// What keeps `name` from being a DNS-1123 subdomain, if anything.
pub fn subdomain_problem(name: &str) -> Option<String> {
    if name.len() > SUBDOMAIN_MAX {
        return Some(too_long(SUBDOMAIN_MAX));
    }
    (!name.split('.').all(is_lower_label)).then(|| SUBDOMAIN_MESSAGE.to_owned())
}

/// What keeps `name` from being a DNS-1123 label.
pub fn label_problem(name: &str) -> Option<String> {
    if name.len() > LABEL_MAX {
        return Some(too_long(LABEL_MAX));
    }
    (!is_lower_label(name)).then(|| LABEL_MESSAGE.to_owned())
}

/// What keeps `name` from being a DNS-1035 label (service names).
pub fn label_1035_problem(name: &str) -> Option<String> {
    if name.len() > LABEL_MAX {
        return Some(too_long(LABEL_MAX));
    }
    let ok = is_lower_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase());
    (!ok).then(|| LABEL_1035_MESSAGE.to_owned())
}

/// What keeps `name` from being one path segment (names of RBAC objects).
pub fn path_segment_problem(name: &str) -> Option<String> {
    match name {
        "." | ".." => Some(format!("may not be '{name}'")),
        n if n.contains('/') => Some("may not contain '/'".into()),
        n if n.contains('%') => Some("may not contain '%'".into()),
        _ => None,
    }
}

/// What keeps `path` from being a path with a domain before it, such as `example.com/name`.
pub fn domain_prefixed_path_problem(path: &str) -> Option<String> {
    match path.split_once('/') {
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => subdomain_problem(domain),
        _ => Some("must be a domain-prefixed path (such as \"acme.io/foo\")".into()),
    }
}

/// What keeps `key` from being a qualified name such as `example.com/name` (keys of labels and annotations).
pub fn qualified_name_problem(key: &str) -> Option<String> {
    let name = match key.split_once('/') {
        Some((_, name)) if name.contains('/') => {
            return Some(
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".into(),
            );
        }
        Some(("", _)) => return Some("prefix part must be non-empty".into()),
        Some((prefix, name)) => {
            if let Some(problem) = subdomain_problem(prefix) {
                return Some(format!("prefix part {problem}"));
            }
            name
        }
        None => key,
    };
    if name.is_empty() {
        return Some("name part must be non-empty".into());
    }
    if name.len() > LABEL_MAX {
        return Some(format!("name part {}", too_long(LABEL_MAX)));
    }
    (!is_qualified_part(name)).then(|| QUALIFIED_MESSAGE.to_owned())
}

/// What keeps `value` from being a label value.
pub fn label_value_problem(value: &str) -> Option<String> {
    if value.len() > LABEL_MAX {
        return Some(too_long(LABEL_MAX));
    }
    (!value.is_empty() && !is_qualified_part(value)).then(|| LABEL_VALUE_MESSAGE.to_owned())
}

/// What keeps `key` from being a key of a ConfigMap or Secret.
pub fn config_key_problem(key: &str) -> Option<String> {
    if key.len() > SUBDOMAIN_MAX {
        return Some(too_long(SUBDOMAIN_MAX));
    }
    if key == "." || key == ".." || key.starts_with("..") {
        return Some(if key.len() <= 2 {
            format!("must not be '{key}'")
        } else {
            "must not start with '..'".into()
        });
    }
    let ok =
        !key.is_empty() && key.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    (!ok).then(|| CONFIG_KEY_MESSAGE.to_owned())
}

/// What keeps `name` from being the name of an environment variable (relaxed rules, KEP-4369).
pub fn env_name_problem(name: &str) -> Option<String> {
    let ok = !name.is_empty() && name.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=');
    (!ok).then(|| ENV_NAME_MESSAGE.to_owned())
}

/// What keeps `name` from being the name of a container port (IANA service name).
pub fn port_name_problem(name: &str) -> Option<&'static str> {
    if name.len() > 15 {
        return Some("must be no more than 15 characters");
    }
    if !name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        return Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|c| c.is_ascii_lowercase()) {
        return Some("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        return Some("must not contain consecutive hyphens");
    }
    (name.starts_with('-') || name.ends_with('-')).then_some("must not begin or end with a hyphen")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(subdomain_problem("a.b-c.1").is_none());
        for bad in ["", "A", "a..b", "-a", "a-", "a_b"] {
            assert!(subdomain_problem(bad).is_some(), "{bad}");
        }
        assert!(label_problem("a.b").is_some());
        assert!(label_1035_problem("1a").is_some());
        assert!(qualified_name_problem("example.com/My_name").is_none());
        for bad in ["", "/x", "a/b/c", "UP/x", "-x"] {
            assert!(qualified_name_problem(bad).is_some(), "{bad}");
        }
        assert!(label_value_problem("").is_none());
        assert!(config_key_problem("..data").is_some());
        assert!(port_name_problem("http-1").is_none());
        assert!(port_name_problem("123").is_some());
    }
}
