//! PEM blocks (RFC 7468), read as leniently as Go's decoder: text between the blocks is ignored.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// One block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What it says it is, e.g. `CERTIFICATE`.
    pub label: String,
    /// Whether there are headers before the data.
    pub has_headers: bool,
    /// The data.
    pub der: Vec<u8>,
}

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// Every well-formed block of a text, in order.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        rest = &rest[start + BEGIN.len()..];
        let Some((label, body)) = rest.split_once(DASHES) else { break };
        if label.contains('\n') {
            continue;
        }
        let Some((body, after)) = body.split_once(&format!("-----END {label}-----")) else { continue };
        rest = after;
        let is_header = |line: &&str| line.contains(':');
        let has_headers = body.lines().any(|line| is_header(&line));
        let data: String =
            body.lines().filter(|line| !is_header(line)).flat_map(|line| line.trim().chars()).collect();
        if let Ok(der) = STANDARD.decode(data) {
            found.push(Block { label: label.to_owned(), has_headers, der });
        }
    }
    found
}

/// The data as a block.
pub fn encode(label: &str, der: &[u8]) -> String {
    /// Characters of a line (RFC 7468).
    const LINE: usize = 64;
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_among_other_text() {
        let text =
            format!("junk\n{}between\n{}-----BEGIN X-----\n", encode("A", b"abc"), encode("B", &[7; 100]));
        let found = blocks(&text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].label.as_str(), found[0].der.as_slice()), ("A", &b"abc"[..]));
        assert_eq!((found[1].label.as_str(), found[1].der.len()), ("B", 100));
        let with = "-----BEGIN A-----\nProc-Type: x\n\nYWJj\n-----END A-----";
        assert!(blocks(with)[0].has_headers);
        assert!(blocks("-----BEGIN A-----\n%%\n-----END A-----").is_empty());
    }
}
