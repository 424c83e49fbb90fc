//! What a stage has come to: configuration, arguments, history; and what the next instruction makes of it. Pure.

use serde_json::{Map, Value, json};

use crate::dockerfile::{
    Command, Copy, Healthcheck, Instruction, Kind, ParseError, Run, RunMount, Source, Variables, expand,
    expand_text, parse_mount, words,
};
use crate::pattern::clean;
use crate::plan::PREDEFINED;

/// The shell of images that name none.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// `PATH` of images that have none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One line of the image's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The instruction.
    pub created_by: String,
    /// Whether it made no layer.
    pub empty: bool,
    /// RFC 3339; of the layer, where it made one.
    pub created: Option<String>,
}

/// What is to be done in the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing: only the configuration has changed.
    Configure,
    /// The directory has to be there.
    Directory(String),
    /// Run a command.
    Run(Box<RunStep>),
    /// Bring files in.
    Copy(Box<CopyStep>),
}

/// The network of a RUN step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// That of a pod.
    Default,
    /// Loopback alone.
    None,
    /// The node's.
    Host,
}

/// A command and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStep {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment that counts for the cache.
    pub env: Vec<String>,
    /// Proxies and the like, which do not.
    pub hidden_env: Vec<String>,
    /// User, as the configuration has it.
    pub user: String,
    /// Working directory.
    pub directory: String,
    /// Mounts.
    pub mounts: Vec<RunMount>,
    /// Network.
    pub network: Network,
    /// `--security=insecure`.
    pub insecure: bool,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopySource {
    /// A path or pattern.
    Path(String),
    /// A URL.
    Url(String),
    /// A text and the name of its file.
    Text {
        /// File name where the destination is a directory.
        name: String,
        /// The text.
        content: String,
    },
}

/// Files to bring in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    /// Whether local archives are unpacked.
    pub unpack: bool,
    /// Whether archives from URLs are, too.
    pub unpack_urls: bool,
    /// What.
    pub sources: Vec<CopySource>,
    /// Absolute.
    pub destination: String,
    /// Whether it can only be a directory.
    pub into_directory: bool,
    /// Stage or image.
    pub from: Option<String>,
    /// Owner.
    pub chown: Option<String>,
    /// Mode.
    pub chmod: Option<u32>,
    /// Independent of what is below.
    pub link: bool,
    /// Keep directories of sources.
    pub parents: bool,
    /// Left out.
    pub exclude: Vec<String>,
    /// Digest of a URL's content.
    pub checksum: Option<String>,
}

/// What a stage has come to.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// `config` of the image's document.
    pub config: Map<String, Value>,
    /// Author.
    pub author: Option<String>,
    /// History.
    pub history: Vec<History>,
    args: Vec<(String, Option<String>)>,
    cmd_set: bool,
    escape: char,
}

impl State {
    /// Begins with an image's configuration.
    pub fn new(config: Map<String, Value>, history: Vec<History>, escape: char) -> State {
        State { config, author: None, history, args: Vec::new(), cmd_set: false, escape }
    }

    /// Begins a stage from another; its arguments are in force here too.
    pub fn child(&self) -> State {
        State { cmd_set: false, ..self.clone() }
    }

    /// Takes the triggers that the base image holds.
    pub fn take_triggers(&mut self) -> Vec<String> {
        match self.config.remove("OnBuild") {
            Some(Value::Array(list)) => list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        }
    }

    fn strings(&self, key: &str) -> Vec<String> {
        let list = self.config.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    }

    fn text(&self, key: &str) -> String {
        self.config.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Variables in force: arguments, and the environment above them.
    fn variables(&self) -> Variables {
        let mut out: Variables =
            self.args.iter().filter_map(|(k, v)| Some((k.clone(), v.clone()?))).collect();
        for line in self.strings("Env") {
            let (name, value) = line.split_once('=').unwrap_or((&line, ""));
            out.insert(name.to_owned(), value.to_owned());
        }
        out
    }

    fn set_env(&mut self, name: &str, value: &str) {
        let mut env = self.strings("Env");
        let line = format!("{name}={value}");
        let prefix = format!("{name}=");
        match env.iter_mut().find(|l| l.starts_with(&prefix)) {
            Some(old) => *old = line,
            None => env.push(line),
        }
        self.config.insert("Env".into(), json!(env));
    }

    fn insert_key(&mut self, map: &str, key: &str, value: Value) {
        let entry = self.config.entry(map).or_insert_with(|| json!({}));
        if !entry.is_object() {
            *entry = json!({});
        }
        if let Some(map) = entry.as_object_mut() {
            map.insert(key.to_owned(), value);
        }
    }

    fn shell(&self) -> Vec<String> {
        let shell = self.strings("Shell");
        if shell.is_empty() { SHELL.map(str::to_owned).to_vec() } else { shell }
    }

    fn command(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(argv) => argv.clone(),
            Command::Shell(text) => {
                let mut argv = self.shell();
                argv.push(text.clone());
                argv
            }
        }
    }

    fn directory(&self) -> String {
        let directory = self.text("WorkingDir");
        if directory.is_empty() { "/".into() } else { directory }
    }

    fn absolute(&self, path: &str) -> String {
        let joined =
            if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.directory()) };
        format!("/{}", clean(&joined))
    }

    /// Applies one instruction: changes the configuration and says what is left to do and how history tells it.
    pub fn apply(
        &mut self,
        instruction: &Instruction,
        globals: &Variables,
        build_args: &Variables,
    ) -> Result<(Action, String), ParseError> {
        let line = instruction.line;
        let variables = self.variables();
        let escape = self.escape;
        let x =
            |text: &str| expand(text, &variables, escape).map_err(|e| ParseError::new(line, e.to_string()));
        let all = |list: &[String]| list.iter().map(|t| x(t)).collect::<Result<Vec<_>, _>>();
        let created_by = match &instruction.kind {
            Kind::From(_) => return Err(ParseError::new(line, "FROM isn't allowed here")),
            Kind::Arg(arguments) => {
                for (name, default) in arguments {
                    let default = default.as_deref().map(&x).transpose()?;
                    let value =
                        build_args.get(name).cloned().or(default).or_else(|| globals.get(name).cloned());
                    self.args.retain(|(old, _)| old != name);
                    self.args.push((name.clone(), value));
                }
                instruction.text.clone()
            }
            Kind::Env(list) => {
                for (name, value) in list {
                    let (name, value) = (x(name)?, x(value)?);
                    self.set_env(&name, &value);
                }
                instruction.text.clone()
            }
            Kind::Label(list) => {
                for (key, value) in list {
                    let (key, value) = (x(key)?, x(value)?);
                    self.insert_key("Labels", &key, Value::String(value));
                }
                instruction.text.clone()
            }
            Kind::Run(run) => {
                let (step, told) = self.run(run, build_args, &variables, line)?;
                return Ok((Action::Run(Box::new(step)), told));
            }
            Kind::Copy(copy) => {
                let step = self.copy(copy, &variables, line)?;
                return Ok((Action::Copy(Box::new(step)), instruction.text.clone()));
            }
            Kind::Workdir(path) => {
                let directory = self.absolute(&x(path)?);
                self.config.insert("WorkingDir".into(), json!(directory));
                return Ok((Action::Directory(directory.clone()), format!("WORKDIR {directory}")));
            }
            Kind::User(user) => {
                self.config.insert("User".into(), json!(x(user)?));
                instruction.text.clone()
            }
            Kind::Expose(ports) => {
                for port in all(ports)?.iter().flat_map(|p| words(p, escape)) {
                    for key in exposed(&port).map_err(|m| ParseError::new(line, m))? {
                        self.insert_key("ExposedPorts", &key, json!({}));
                    }
                }
                instruction.text.clone()
            }
            Kind::Volume(paths) => {
                for path in all(paths)? {
                    if path.trim().is_empty() {
                        return Err(ParseError::new(line, "VOLUME specified can not be an empty string"));
                    }
                    self.insert_key("Volumes", &path, json!({}));
                }
                instruction.text.clone()
            }
            Kind::Stopsignal(signal) => {
                self.config.insert("StopSignal".into(), json!(x(signal)?));
                instruction.text.clone()
            }
            other => self.set_program(other, instruction),
        };
        Ok((Action::Configure, created_by))
    }

    /// The instructions that take no variables.
    fn set_program(&mut self, kind: &Kind, instruction: &Instruction) -> String {
        match kind {
            Kind::Cmd(command) => {
                let argv = self.command(command);
                self.config.insert("Cmd".into(), json!(argv));
                self.cmd_set = true;
                format!("CMD {}", json!(argv))
            }
            Kind::Entrypoint(command) => {
                let argv = self.command(command);
                self.config.insert("Entrypoint".into(), json!(argv));
                if !self.cmd_set {
                    // The base's arguments were meant for the base's program.
                    self.config.remove("Cmd");
                }
                format!("ENTRYPOINT {}", json!(argv))
            }
            Kind::Shell(shell) => {
                self.config.insert("Shell".into(), json!(shell));
                instruction.text.clone()
            }
            Kind::Healthcheck(check) => {
                let value = self.healthcheck(check.as_ref());
                self.config.insert("Healthcheck".into(), value);
                instruction.text.clone()
            }
            Kind::Onbuild(trigger) => {
                let mut list = self.strings("OnBuild");
                list.push(trigger.clone());
                self.config.insert("OnBuild".into(), json!(list));
                instruction.text.clone()
            }
            Kind::Maintainer(author) => {
                self.author = Some(author.clone());
                instruction.text.clone()
            }
            _ => instruction.text.clone(),
        }
    }

    fn healthcheck(&self, check: Option<&Healthcheck>) -> Value {
        let Some(check) = check else { return json!({"Test": ["NONE"]}) };
        let test: Vec<String> = match &check.command {
            Command::Exec(argv) => ["CMD".to_owned()].into_iter().chain(argv.iter().cloned()).collect(),
            Command::Shell(text) => vec!["CMD-SHELL".into(), text.clone()],
        };
        let mut value = json!({"Test": test});
        let times = [
            ("Interval", check.interval),
            ("Timeout", check.timeout),
            ("StartPeriod", check.start_period),
            ("StartInterval", check.start_interval),
        ];
        if let Some(map) = value.as_object_mut() {
            for (key, time) in times.into_iter().filter(|(_, t)| !t.is_zero()) {
                map.insert(key.into(), json!(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)));
            }
            if check.retries > 0 {
                map.insert("Retries".into(), json!(check.retries));
            }
        }
        value
    }

    fn run(
        &self,
        run: &Run,
        build_args: &Variables,
        variables: &Variables,
        line: usize,
    ) -> Result<(RunStep, String), ParseError> {
        let error = |message: String| ParseError::new(line, message);
        let command = match (&run.command, run.heredocs.as_slice()) {
            // The text alone is the script.
            (Command::Shell(text), [script])
                if text.trim_start().starts_with("<<") && !text.trim().contains(' ') =>
            {
                Command::Shell(script.content.clone())
            }
            (Command::Shell(text), _) => Command::Shell(format!("{text}{}", run.raw_heredocs)),
            (exec, _) => exec.clone(),
        };
        let argv = self.command(&command);
        if argv.is_empty() {
            return Err(error("RUN with an empty command".into()));
        }
        let mut env = self.strings("Env");
        let has = |env: &[String], name: &str| env.iter().any(|l| l.split('=').next() == Some(name));
        let mut told = Vec::new();
        for (name, value) in &self.args {
            if let (Some(value), false) = (value, has(&env, name)) {
                env.push(format!("{name}={value}"));
                told.push(format!("{name}={value}"));
            }
        }
        if !has(&env, "PATH") {
            env.push(DEFAULT_PATH.into());
        }
        let proxies =
            build_args.iter().filter(|(name, _)| PREDEFINED.contains(&name.as_str()) && !has(&env, name));
        let hidden_env = proxies.map(|(name, value)| format!("{name}={value}")).collect();
        let mounts = run.mounts.iter().map(|text| {
            let text = expand(text, variables, self.escape).map_err(|e| error(e.to_string()))?;
            let mut mount = parse_mount(&text).map_err(error)?;
            if !mount.target.is_empty() {
                mount.target = self.absolute(&mount.target);
            }
            Ok(mount)
        });
        let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
        let network = match run.network.as_deref() {
            None | Some("default") => Network::Default,
            Some("none") => Network::None,
            Some("host") => Network::Host,
            Some(other) => {
                return Err(error(format!("invalid network mode {other:?}: default, none or host")));
            }
        };
        let insecure = match run.security.as_deref() {
            None | Some("sandbox") => false,
            Some("insecure") => true,
            Some(other) => {
                return Err(error(format!("security {other:?} is not valid: sandbox or insecure")));
            }
        };
        let told = match told.is_empty() {
            true => format!("RUN {}", argv.join(" ")),
            false => format!("RUN |{} {} {}", told.len(), told.join(" "), argv.join(" ")),
        };
        let (user, directory) = (self.text("User"), self.directory());
        Ok((RunStep { argv, env, hidden_env, user, directory, mounts, network, insecure }, told))
    }

    fn copy(&self, copy: &Copy, variables: &Variables, line: usize) -> Result<CopyStep, ParseError> {
        let error = |message: String| ParseError::new(line, message);
        let x = |text: &str| expand(text, variables, self.escape).map_err(|e| error(e.to_string()));
        let mut sources = Vec::new();
        for source in &copy.sources {
            sources.push(match source {
                Source::Path(path) => path_source(x(path)?, copy.add).map_err(error)?,
                Source::Heredoc(doc) => {
                    let content = match doc.expand {
                        true => expand_text(&doc.content, variables, self.escape)
                            .map_err(|e| error(e.to_string()))?,
                        false => doc.content.clone(),
                    };
                    CopySource::Text { name: doc.name.clone(), content }
                }
            });
        }
        let destination = x(&copy.destination)?;
        let into_directory = destination.ends_with('/') || destination == "." || destination.ends_with("/.");
        let name = if copy.add { "ADD" } else { "COPY" };
        if sources.len() > 1 && !into_directory {
            return Err(error(format!(
                "When using {name} with more than one source file, the destination must be a directory and end with a /"
            )));
        }
        let chmod = copy.chmod.as_deref().map(|text| {
            let text = x(text)?;
            let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
            mode.ok_or_else(|| {
                error(format!(
                    "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
                ))
            })
        });
        Ok(CopyStep {
            unpack: copy.add && copy.unpack != Some(false),
            unpack_urls: copy.add && copy.unpack == Some(true),
            destination: self.absolute(&destination),
            into_directory,
            from: copy.from.clone(),
            chown: copy.chown.as_deref().map(x).transpose()?.filter(|o| !o.is_empty()),
            chmod: chmod.transpose()?,
            link: copy.link,
            parents: copy.parents,
            exclude: copy.exclude.iter().map(|p| x(p)).collect::<Result<_, _>>()?,
            checksum: copy.checksum.as_deref().map(x).transpose()?,
            sources,
        })
    }
}

fn path_source(path: String, add: bool) -> Result<CopySource, String> {
    if !add {
        return Ok(CopySource::Path(path));
    }
    let git = path.starts_with("git@")
        || path.starts_with("git://")
        || path.starts_with("ssh://")
        || (path.starts_with("http") && path.split('#').next().is_some_and(|p| p.ends_with(".git")));
    if git {
        return Err(format!(
            "ADD {path}: git repositories are not supported; clone it into the build context"
        ));
    }
    if path.starts_with("http://") || path.starts_with("https://") {
        return Ok(CopySource::Url(path));
    }
    Ok(CopySource::Path(path))
}

/// The keys of `ExposedPorts` for one word of EXPOSE: `80`, `80/udp`, `8000-8010/tcp`.
fn exposed(word: &str) -> Result<Vec<String>, String> {
    let (ports, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let bad = || format!("invalid containerPort: {word}");
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(format!("invalid proto: {protocol}"));
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
    if first == 0 || last < first {
        return Err(bad());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse;

    fn run(text: &str, args: &[(&str, &str)]) -> (State, Vec<(Action, String)>) {
        let file = parse(&format!("FROM x\n{text}")).unwrap();
        let base = json!({"Env": ["PATH=/bin", "A=base"], "Cmd": ["sh"], "OnBuild": ["RUN t"]});
        let Value::Object(base) = base else { panic!("no object") };
        let mut state = State::new(base, Vec::new(), file.escape);
        let args: Variables = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let globals = Variables::from([("G".to_owned(), "global".to_owned())]);
        let steps = file.instructions[1..].iter().map(|i| state.apply(i, &globals, &args).unwrap()).collect();
        (state, steps)
    }

    fn fails(text: &str) -> String {
        let file = parse(&format!("FROM x\n{text}")).unwrap();
        let mut state = State::new(Map::new(), Vec::new(), '\\');
        state.apply(&file.instructions[1], &Variables::new(), &Variables::new()).unwrap_err().message
    }

    #[test]
    fn configuration() {
        let text = "ENV B=$A C=\"x y\"\nENV A=mine\nLABEL l=$A\nEXPOSE 80 90-91/UDP\nVOLUME /v\nUSER u\nWORKDIR /a\n\
            WORKDIR ../b\nSTOPSIGNAL KILL\nSHELL [\"/bin/ash\", \"-c\"]\nENTRYPOINT run it\nHEALTHCHECK --interval=1s \
            CMD x\nONBUILD RUN y";
        let (mut state, steps) = run(text, &[]);
        assert_eq!(state.take_triggers(), ["RUN t", "RUN y"]);
        let want = json!({
            "Env": ["PATH=/bin", "A=mine", "B=base", "C=x y"],
            "Labels": {"l": "mine"},
            "ExposedPorts": {"80/tcp": {}, "90/udp": {}, "91/udp": {}},
            "Volumes": {"/v": {}},
            "User": "u",
            "WorkingDir": "/b",
            "StopSignal": "KILL",
            "Shell": ["/bin/ash", "-c"],
            "Entrypoint": ["/bin/ash", "-c", "run it"],
            "Healthcheck": {"Test": ["CMD-SHELL", "x"], "Interval": 1_000_000_000},
        });
        assert_eq!(Value::Object(state.config), want);
        assert_eq!(steps[7], (Action::Directory("/b".into()), "WORKDIR /b".into()));
    }

    #[test]
    fn arguments() {
        let (_, steps) =
            run("ARG P=1\nARG Q\nARG G\nARG A=arg\nRUN x", &[("Q", "given"), ("http_proxy", "p")]);
        let Action::Run(step) = &steps[4].0 else { panic!("no RUN") };
        assert_eq!(step.env, ["PATH=/bin", "A=base", "P=1", "Q=given", "G=global"]);
        assert_eq!(step.hidden_env, ["http_proxy=p"]);
        assert_eq!(steps[4].1, "RUN |3 P=1 Q=given G=global /bin/sh -c x");
    }

    #[test]
    fn heredocs_of_run() {
        let (_, steps) = run("RUN <<EOF\na $b\nEOF\nRUN cat <<EOF\nc\nEOF\n", &[]);
        let argv = |n: usize| match &steps[n].0 {
            Action::Run(step) => step.argv.clone(),
            _ => panic!("no RUN"),
        };
        assert_eq!(argv(0), ["/bin/sh", "-c", "a $b\n"]);
        assert_eq!(argv(1), ["/bin/sh", "-c", "cat <<EOF\nc\nEOF"]);
    }

    #[test]
    fn copies() {
        let (_, steps) = run("WORKDIR /w\nCOPY a$A b/ dst/\nADD https://x.example/f.tar /\nCOPY x .", &[]);
        let step = |n: usize| match &steps[n].0 {
            Action::Copy(step) => (**step).clone(),
            _ => panic!("no COPY"),
        };
        assert_eq!(step(1).sources[0], CopySource::Path("abase".into()));
        assert_eq!((step(1).destination.as_str(), step(1).into_directory), ("/w/dst", true));
        assert!(matches!(&step(2).sources[0], CopySource::Url(_)));
        assert!(step(2).unpack && !step(2).unpack_urls && !step(1).unpack);
        assert_eq!((step(3).destination.as_str(), step(3).into_directory), ("/w", true));
    }

    #[test]
    fn mistakes() {
        let table = [
            (
                "COPY a b c",
                "When using COPY with more than one source file, the destination must be a directory and end with a /",
            ),
            (
                "COPY --chmod=999 a b",
                "invalid chmod parameter: '999'. it should be octal string and between 0 and 07777",
            ),
            ("EXPOSE 80/x", "invalid proto: x"),
            ("EXPOSE 0", "invalid containerPort: 0"),
            ("RUN --network=x a", "invalid network mode \"x\": default, none or host"),
        ];
        for (text, want) in table {
            assert_eq!(fails(text), want);
        }
        assert!(fails("ADD git@github.com:a/b.git /").contains("not supported"));
        assert!(fails("RUN --mount=type=ssh x").contains("ssh"));
    }
}
