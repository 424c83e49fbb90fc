//! Instructions and their arguments.

use std::time::Duration;

use super::ParseError;
use super::lines::{Heredoc, Line, split};
use super::words::{json_list, pairs, take_flags, words};

/// Most instructions of one file; an image takes far fewer layers.
const INSTRUCTIONS_MAX: usize = 10_000;

/// A parsed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The escape character.
    pub escape: char,
    /// What it says, in order.
    pub instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Line, from 1.
    pub line: usize,
    /// As written, on one line.
    pub text: String,
    /// What it says.
    pub kind: Kind,
}

/// What an instruction says. Values are as written: variables are not expanded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Begins a stage.
    From(From),
    /// Build arguments and their defaults.
    Arg(Vec<(String, Option<String>)>),
    /// Variables of the environment.
    Env(Vec<(String, String)>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// Runs a command.
    Run(Run),
    /// Brings files in.
    Copy(Copy),
    /// Default arguments or program.
    Cmd(Command),
    /// Program.
    Entrypoint(Command),
    /// User of what follows.
    User(String),
    /// Working directory of what follows.
    Workdir(String),
    /// Ports.
    Expose(Vec<String>),
    /// Paths meant to be volumes.
    Volume(Vec<String>),
    /// Signal that stops it.
    Stopsignal(String),
    /// Shell of what follows.
    Shell(Vec<String>),
    /// How to tell whether it is well; `None` switches it off.
    Healthcheck(Option<Healthcheck>),
    /// An instruction for images made from this one.
    Onbuild(String),
    /// Who wrote it.
    Maintainer(String),
}

/// `FROM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// Image, earlier stage or `scratch`.
    pub image: String,
    /// Name of the stage.
    pub name: Option<String>,
    /// `--platform`.
    pub platform: Option<String>,
}

/// A command in either form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// For the shell.
    Shell(String),
    /// As it is.
    Exec(Vec<String>),
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: Command,
    /// `--mount`, as written.
    pub mounts: Vec<String>,
    /// `--network`.
    pub network: Option<String>,
    /// `--security`.
    pub security: Option<String>,
    /// Texts below.
    pub heredocs: Vec<Heredoc>,
    /// The same as written.
    pub raw_heredocs: String,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path, pattern or (of ADD) URL.
    Path(String),
    /// A text.
    Heredoc(Heredoc),
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copy {
    /// Whether it is ADD: URLs, and archives are unpacked.
    pub add: bool,
    /// What.
    pub sources: Vec<Source>,
    /// Where to.
    pub destination: String,
    /// Stage or image instead of the context.
    pub from: Option<String>,
    /// Owner.
    pub chown: Option<String>,
    /// Mode.
    pub chmod: Option<String>,
    /// Independent of what is below.
    pub link: bool,
    /// Keep the directories of the sources.
    pub parents: bool,
    /// Patterns left out.
    pub exclude: Vec<String>,
    /// Digest of a URL's content.
    pub checksum: Option<String>,
    /// Whether to unpack, where said.
    pub unpack: Option<bool>,
}

/// `HEALTHCHECK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// The command.
    pub command: Command,
    /// Time between runs; zero is the default.
    pub interval: Duration,
    /// Longest run.
    pub timeout: Duration,
    /// Time to start up.
    pub start_period: Duration,
    /// Time between runs while starting up.
    pub start_interval: Duration,
    /// Failures that count.
    pub retries: u32,
}

/// Parses a file.
pub fn parse(text: &str) -> Result<Dockerfile, ParseError> {
    let lines = split(text)?;
    if lines.lines.is_empty() {
        return Err(ParseError::new(1, "the Dockerfile cannot be empty"));
    }
    if lines.lines.len() > INSTRUCTIONS_MAX {
        return Err(ParseError::new(
            1,
            format!("the Dockerfile has more than {INSTRUCTIONS_MAX} instructions"),
        ));
    }
    let instructions: Vec<Instruction> =
        lines.lines.iter().map(|line| instruction(line, lines.escape)).collect::<Result<_, _>>()?;
    let begins = |i: &Instruction| matches!(i.kind, Kind::From(_));
    if let Some(early) =
        instructions.iter().take_while(|i| !begins(i)).find(|i| !matches!(i.kind, Kind::Arg(_)))
    {
        return Err(ParseError::new(early.line, "no build stage in current context"));
    }
    if !instructions.iter().any(begins) {
        return Err(ParseError::new(1, "file with no instructions"));
    }
    Ok(Dockerfile { escape: lines.escape, instructions })
}

/// Parses an ONBUILD instruction of an image.
pub fn parse_trigger(text: &str, line: usize) -> Result<Instruction, ParseError> {
    let mut lines = split(text).map_err(|e| ParseError::new(line, e.message))?;
    let escape = lines.escape;
    match lines.lines.as_mut_slice() {
        [only] => {
            only.number = line;
            let parsed = instruction(only, escape)?;
            match parsed.kind {
                Kind::Onbuild(_) => {
                    Err(ParseError::new(line, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"))
                }
                Kind::From(_) => Err(ParseError::new(line, "FROM isn't allowed as an ONBUILD trigger")),
                Kind::Maintainer(_) => {
                    Err(ParseError::new(line, "MAINTAINER isn't allowed as an ONBUILD trigger"))
                }
                _ => Ok(parsed),
            }
        }
        _ => Err(ParseError::new(line, format!("not an instruction: {text:?}"))),
    }
}

/// Flags of one instruction, each used up as it is read.
struct Flags {
    line: usize,
    instruction: String,
    flags: Vec<(String, Option<String>)>,
}

impl Flags {
    fn many(&mut self, name: &str) -> Vec<String> {
        let (taken, left) = std::mem::take(&mut self.flags).into_iter().partition(|(n, _)| n == name);
        self.flags = left;
        taken.into_iter().map(|(_, v): (String, Option<String>)| v.unwrap_or_default()).collect()
    }

    fn one(&mut self, name: &str) -> Result<Option<String>, ParseError> {
        let mut all = self.many(name);
        match all.len() {
            0 | 1 => Ok(all.pop()),
            _ => Err(ParseError::new(self.line, format!("duplicate flag specified: {name}"))),
        }
    }

    fn switch(&mut self, name: &str) -> Result<Option<bool>, ParseError> {
        match self.one(name)?.as_deref() {
            None => Ok(None),
            Some("" | "true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(ParseError::new(
                self.line,
                format!("expecting boolean value for flag {name}, not: {other}"),
            )),
        }
    }

    fn done(self) -> Result<(), ParseError> {
        match self.flags.first() {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!("unknown flag: --{name} (of {})", self.instruction);
                Err(ParseError::new(self.line, message))
            }
        }
    }
}

fn instruction(line: &Line, escape: char) -> Result<Instruction, ParseError> {
    let (word, rest) = line.text.split_once(char::is_whitespace).unwrap_or((&line.text, ""));
    let name = word.to_ascii_uppercase();
    let rest = rest.trim();
    let error = |message: String| ParseError::new(line.number, message);
    let (flags, rest) = match name.as_str() {
        "ADD" | "COPY" | "FROM" | "HEALTHCHECK" | "RUN" => take_flags(rest, escape),
        _ => (Vec::new(), rest.to_owned()),
    };
    let mut flags = Flags { line: line.number, instruction: name.clone(), flags };
    if rest.is_empty() && !matches!(name.as_str(), "CMD" | "ENTRYPOINT") {
        return Err(error(match KNOWN.contains(&name.as_str()) {
            true => format!("{name} requires at least one argument"),
            false => format!("unknown instruction: {word}"),
        }));
    }
    let list = || json_list(&rest).unwrap_or_else(|| words(&rest, escape));
    let kind = match name.as_str() {
        "FROM" => Kind::From(from(&rest, &mut flags, escape)?),
        "ARG" => Kind::Arg(
            words(&rest, escape).iter().map(|word| argument(word, line.number)).collect::<Result<_, _>>()?,
        ),
        "ENV" => Kind::Env(pairs("ENV", &rest, escape, line.number)?),
        "LABEL" => Kind::Label(pairs("LABEL", &rest, escape, line.number)?),
        "RUN" => Kind::Run(Run {
            command: command(&rest),
            mounts: flags.many("mount"),
            network: flags.one("network")?,
            security: flags.one("security")?,
            heredocs: line.heredocs.clone(),
            raw_heredocs: line.raw_heredocs.clone(),
        }),
        "COPY" | "ADD" => Kind::Copy(copy(name == "ADD", list(), line, &mut flags)?),
        "CMD" => Kind::Cmd(command(&rest)),
        "ENTRYPOINT" => Kind::Entrypoint(command(&rest)),
        "USER" => Kind::User(rest.clone()),
        "WORKDIR" => Kind::Workdir(rest.clone()),
        "EXPOSE" => Kind::Expose(words(&rest, escape)),
        "VOLUME" => Kind::Volume(list()),
        "STOPSIGNAL" => Kind::Stopsignal(rest.clone()),
        "SHELL" => Kind::Shell(
            json_list(&rest)
                .filter(|l| !l.is_empty())
                .ok_or_else(|| error("SHELL requires the arguments to be in JSON form".to_owned()))?,
        ),
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(&rest, &mut flags)?),
        "ONBUILD" => {
            let whole = format!("{rest}{}", line.raw_heredocs);
            parse_trigger(&whole, line.number)?;
            Kind::Onbuild(whole)
        }
        "MAINTAINER" => Kind::Maintainer(rest.clone()),
        _ => return Err(error(format!("unknown instruction: {word}"))),
    };
    flags.done()?;
    Ok(Instruction { line: line.number, text: line.text.clone(), kind })
}

const KNOWN: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

fn from(rest: &str, flags: &mut Flags, escape: char) -> Result<From, ParseError> {
    let platform = flags.one("platform")?;
    let mut parts = words(rest, escape).into_iter();
    let image = parts.next().unwrap_or_default();
    let name = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => None,
        (Some(word), Some(name), None) if word.eq_ignore_ascii_case("as") => Some(name.to_ascii_lowercase()),
        _ => {
            let message = "FROM requires either one or three arguments";
            return Err(ParseError::new(flags.line, message));
        }
    };
    let valid = |name: &String| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    if let Some(bad) = name.iter().find(|name| !valid(name)) {
        let message = format!(
            "invalid name for build stage: {bad:?}, name can't start with a number or contain symbols"
        );
        return Err(ParseError::new(flags.line, message));
    }
    Ok(From { image, name, platform })
}

fn argument(word: &str, line: usize) -> Result<(String, Option<String>), ParseError> {
    let (name, default) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (word, None),
    };
    if name.is_empty() {
        return Err(ParseError::new(line, "ARG names can not be blank"));
    }
    Ok((name.to_owned(), default))
}

fn command(rest: &str) -> Command {
    match json_list(rest) {
        Some(list) => Command::Exec(list),
        None => Command::Shell(rest.to_owned()),
    }
}

fn copy(add: bool, mut words: Vec<String>, line: &Line, flags: &mut Flags) -> Result<Copy, ParseError> {
    let name = if add { "ADD" } else { "COPY" };
    if words.len() < 2 {
        let message =
            format!("{name} requires at least two arguments, but only {} was provided", words.len());
        return Err(ParseError::new(line.number, message));
    }
    let destination = words.pop().unwrap_or_default();
    let mut heredocs = line.heredocs.iter();
    let source = |word: String| match word.starts_with("<<") && !word.starts_with("<<<") {
        true => heredocs.next().cloned().map_or(Source::Path(word), Source::Heredoc),
        false => Source::Path(word),
    };
    let sources = words.into_iter().map(source).collect();
    let mut copy = Copy { add, sources, destination, ..Copy::default() };
    copy.chown = flags.one("chown")?;
    copy.chmod = flags.one("chmod")?;
    copy.link = flags.switch("link")?.unwrap_or(false);
    copy.exclude = flags.many("exclude");
    if add {
        copy.checksum = flags.one("checksum")?;
        copy.unpack = flags.switch("unpack")?;
        flags.switch("keep-git-dir")?;
    } else {
        copy.from = flags.one("from")?;
        copy.parents = flags.switch("parents")?.unwrap_or(false);
    }
    Ok(copy)
}

fn healthcheck(rest: &str, flags: &mut Flags) -> Result<Option<Healthcheck>, ParseError> {
    let (word, tail) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if word.eq_ignore_ascii_case("none") {
        return match tail.trim() {
            "" => Ok(None),
            _ => Err(ParseError::new(flags.line, "HEALTHCHECK NONE takes no arguments")),
        };
    }
    if !word.eq_ignore_ascii_case("cmd") {
        let message = format!("unknown type {word:?} in HEALTHCHECK (try CMD)");
        return Err(ParseError::new(flags.line, message));
    }
    if tail.trim().is_empty() {
        return Err(ParseError::new(flags.line, "missing command after HEALTHCHECK CMD"));
    }
    let line = flags.line;
    let mut time = |name: &str| match flags.one(name)? {
        None => Ok(Duration::ZERO),
        Some(text) => duration(&text).ok_or_else(|| {
            ParseError::new(line, format!("invalid duration {text:?} for {name} of HEALTHCHECK"))
        }),
    };
    let (interval, timeout) = (time("interval")?, time("timeout")?);
    let (start_period, start_interval) = (time("start-period")?, time("start-interval")?);
    let retries = match flags.one("retries")? {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| ParseError::new(line, format!("--retries of HEALTHCHECK is no number: {text:?}")))?,
    };
    Ok(Some(Healthcheck {
        command: command(tail.trim()),
        interval,
        timeout,
        start_period,
        start_interval,
        retries,
    }))
}

/// Go's durations: `1m30s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = 0f64;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match rest.get(..unit)? {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * seconds;
        rest = rest.get(unit..)?;
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Kind, ParseError> {
        parse(&format!("FROM x\n{text}")).map(|f| f.instructions[1].kind.clone())
    }

    #[test]
    fn every_instruction() {
        let from = |image: &str, name: Option<&str>, platform: Option<&str>| {
            let owned = |s: &str| s.to_owned();
            Kind::From(From { image: image.into(), name: name.map(owned), platform: platform.map(owned) })
        };
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let shell = |text: &str| Command::Shell(text.to_owned());
        let table = [
            (
                "FROM --platform=$BUILDPLATFORM a:1 as Build",
                from("a:1", Some("build"), Some("$BUILDPLATFORM")),
            ),
            ("ARG a b=1", Kind::Arg(vec![("a".into(), None), ("b".into(), Some("1".into()))])),
            ("cmd [\"a\", \"b\"]", Kind::Cmd(Command::Exec(strings(&["a", "b"])))),
            ("CMD a b", Kind::Cmd(shell("a b"))),
            ("ENTRYPOINT [a]", Kind::Entrypoint(shell("[a]"))),
            ("USER u:g", Kind::User("u:g".into())),
            ("WORKDIR /a b", Kind::Workdir("/a b".into())),
            ("EXPOSE 80 90/udp", Kind::Expose(strings(&["80", "90/udp"]))),
            ("VOLUME /a /b", Kind::Volume(strings(&["/a", "/b"]))),
            ("VOLUME [\"/a b\"]", Kind::Volume(strings(&["/a b"]))),
            ("STOPSIGNAL 9", Kind::Stopsignal("9".into())),
            ("SHELL [\"/bin/ash\"]", Kind::Shell(strings(&["/bin/ash"]))),
            ("HEALTHCHECK none", Kind::Healthcheck(None)),
            ("ONBUILD RUN x", Kind::Onbuild("RUN x".into())),
            ("MAINTAINER me", Kind::Maintainer("me".into())),
        ];
        for (text, want) in table {
            assert_eq!(one(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn copies() {
        let Ok(Kind::Copy(copy)) = one("COPY --from=a --chown=1:2 --link --exclude=*.o --exclude=b x y /z/")
        else {
            panic!("no copy")
        };
        assert_eq!(copy.sources, [Source::Path("x".into()), Source::Path("y".into())]);
        assert_eq!((copy.destination.as_str(), copy.from.as_deref()), ("/z/", Some("a")));
        assert!(copy.link && !copy.add && copy.exclude == ["*.o", "b"]);
        let Ok(Kind::Copy(copy)) = one("COPY <<EOF /etc/x\nhello $A\nEOF\n") else { panic!("no copy") };
        let text = Heredoc { name: "EOF".into(), expand: true, content: "hello $A\n".into() };
        assert_eq!(copy.sources, [Source::Heredoc(text)]);
    }

    #[test]
    fn health_checks() {
        let text = "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=2 CMD [\"x\"]";
        let Ok(Kind::Healthcheck(Some(check))) = one(text) else { panic!("no check") };
        assert_eq!((check.interval, check.timeout), (Duration::from_secs(90), Duration::from_millis(500)));
        assert_eq!((check.retries, check.command), (2, Command::Exec(vec!["x".into()])));
        assert!(one("HEALTHCHECK --interval=x CMD a").is_err() && one("HEALTHCHECK CMD").is_err());
    }

    #[test]
    fn mistakes_have_their_line() {
        let table = [
            ("FROM x\nRUM y", 2, "unknown instruction: RUM"),
            ("RUN y", 1, "no build stage in current context"),
            ("ARG a", 1, "file with no instructions"),
            ("", 1, "the Dockerfile cannot be empty"),
            ("FROM x\n\nCOPY a", 3, "COPY requires at least two arguments, but only 1 was provided"),
            ("FROM x\nCOPY --form=a b c", 2, "unknown flag: --form (of COPY)"),
            ("FROM x\nRUN", 2, "RUN requires at least one argument"),
            ("FROM x y", 1, "FROM requires either one or three arguments"),
            ("FROM x\nSHELL sh", 2, "SHELL requires the arguments to be in JSON form"),
            ("FROM x\nONBUILD ONBUILD RUN x", 2, "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
            ("FROM x\nCOPY --link=maybe a b", 2, "expecting boolean value for flag link, not: maybe"),
            (
                "FROM x AS 1a",
                1,
                "invalid name for build stage: \"1a\", name can't start with a number or contain symbols",
            ),
        ];
        for (text, line, message) in table {
            assert_eq!(parse(text), Err(ParseError::new(line, message)), "{text}");
        }
    }
}
