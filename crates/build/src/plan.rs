//! From a Dockerfile to stages: which there are, what each needs, which are needed for the target. Pure.

use std::collections::BTreeSet;

use crate::dockerfile::{
    Dockerfile, From, Instruction, Kind, ParseError, RunMountKind, Variables, expand, parse_mount,
};

/// Most stages of one file.
const STAGES_MAX: usize = 500;
/// Build arguments that every build knows without ARG: they reach RUN, but not the image.
pub const PREDEFINED: [&str; 8] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// What a stage begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image.
    Image(String),
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Its name, or its number.
    pub name: String,
    /// Line of its FROM.
    pub line: usize,
    /// Text of its FROM.
    pub text: String,
    /// What it begins with.
    pub base: Base,
    /// The platform asked for, if any.
    pub platform: Option<String>,
    /// What follows FROM.
    pub instructions: Vec<Instruction>,
    /// Earlier stages that it needs.
    pub needs: BTreeSet<usize>,
}

/// A file as stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The file's escape character.
    pub escape: char,
    /// Arguments before the first FROM, and those of the platform.
    pub globals: Variables,
    /// All stages.
    pub stages: Vec<Stage>,
    /// The one to build.
    pub target: usize,
    /// Those needed for it, in order.
    pub needed: Vec<usize>,
    /// Build arguments that no ARG asks for.
    pub unused: Vec<String>,
}

/// Arguments about platforms, as BuildKit names them.
pub fn platform_arguments(os: &str, architecture: &str) -> Variables {
    let mut out = Variables::new();
    for side in ["TARGET", "BUILD"] {
        out.insert(format!("{side}PLATFORM"), format!("{os}/{architecture}"));
        out.insert(format!("{side}OS"), os.to_owned());
        out.insert(format!("{side}ARCH"), architecture.to_owned());
        out.insert(format!("{side}VARIANT"), String::new());
    }
    out
}

/// Makes the plan.
pub fn plan(
    file: &Dockerfile,
    platform: &Variables,
    build_args: &Variables,
    target: Option<&str>,
) -> Result<Plan, ParseError> {
    let mut globals = platform.clone();
    let mut declared: BTreeSet<&str> = PREDEFINED.into_iter().collect();
    let mut stages: Vec<Stage> = Vec::new();
    for instruction in &file.instructions {
        if let Kind::Arg(arguments) = &instruction.kind {
            declared.extend(arguments.iter().map(|(name, _)| name.as_str()));
        }
        match (&instruction.kind, stages.last_mut()) {
            (Kind::From(from), _) => {
                let stage = begin(instruction, from, &stages, &globals, file.escape)?;
                stages.push(stage);
            }
            (Kind::Arg(arguments), None) => {
                for (name, default) in arguments {
                    let value = match (build_args.get(name), default) {
                        (Some(given), _) => Some(given.clone()),
                        (None, Some(text)) => Some(expanded(text, &globals, file.escape, instruction.line)?),
                        (None, None) => None,
                    };
                    if let Some(value) = value {
                        globals.insert(name.clone(), value);
                    }
                }
            }
            (_, Some(stage)) => stage.instructions.push(instruction.clone()),
            (_, None) => {}
        }
    }
    if stages.len() > STAGES_MAX {
        return Err(ParseError::new(1, format!("the Dockerfile has more than {STAGES_MAX} stages")));
    }
    find_needs(&mut stages);
    let target = match target {
        None => stages.len().saturating_sub(1),
        Some(name) => find(&stages, name)
            .ok_or_else(|| ParseError::new(1, format!("target stage {name:?} could not be found")))?,
    };
    let needed = reachable(&stages, target);
    let unused = build_args
        .keys()
        .filter(|name| !declared.contains(name.as_str()) && !platform.contains_key(*name))
        .filter(|name| *name != "SOURCE_DATE_EPOCH" && !name.starts_with("BUILDKIT_"))
        .cloned()
        .collect();
    Ok(Plan { escape: file.escape, globals, stages, target, needed, unused })
}

fn expanded(text: &str, variables: &Variables, escape: char, line: usize) -> Result<String, ParseError> {
    expand(text, variables, escape).map_err(|e| ParseError::new(line, e.to_string()))
}

fn begin(
    instruction: &Instruction,
    from: &From,
    earlier: &[Stage],
    globals: &Variables,
    escape: char,
) -> Result<Stage, ParseError> {
    let line = instruction.line;
    let image = expanded(&from.image, globals, escape, line)?;
    if image.is_empty() {
        return Err(ParseError::new(line, format!("base name ({}) should not be blank", from.image)));
    }
    if let Some(name) = from.name.as_ref().filter(|name| earlier.iter().any(|s| s.name == **name)) {
        return Err(ParseError::new(line, format!("duplicate name {name} of a build stage")));
    }
    let platform = from.platform.as_deref().map(|p| expanded(p, globals, escape, line)).transpose()?;
    let base = match earlier.iter().position(|s| s.name.eq_ignore_ascii_case(&image)) {
        Some(index) => Base::Stage(index),
        None if image == "scratch" => Base::Scratch,
        None => Base::Image(image),
    };
    Ok(Stage {
        name: from.name.clone().unwrap_or_else(|| format!("stage-{}", earlier.len())),
        line,
        text: instruction.text.clone(),
        base,
        platform: platform.filter(|p| !p.is_empty()),
        instructions: Vec::new(),
        needs: BTreeSet::new(),
    })
}

/// The stage of this name or number.
pub fn find(stages: &[Stage], name: &str) -> Option<usize> {
    let by_name = stages.iter().position(|s| s.name.eq_ignore_ascii_case(name));
    by_name.or_else(|| name.parse::<usize>().ok().filter(|n| *n < stages.len()))
}

fn find_needs(stages: &mut [Stage]) {
    for index in 0..stages.len() {
        let (earlier, rest) = stages.split_at_mut(index);
        let Some(stage) = rest.first_mut() else { return };
        if let Base::Stage(base) = stage.base {
            stage.needs.insert(base);
        }
        for instruction in &stage.instructions {
            for name in sources(&instruction.kind) {
                stage.needs.extend(find(earlier, &name));
            }
        }
    }
}

/// Stages or images that an instruction takes files from.
fn sources(kind: &Kind) -> Vec<String> {
    match kind {
        Kind::Copy(copy) => copy.from.iter().cloned().collect(),
        Kind::Run(run) => {
            let mounts = run.mounts.iter().filter_map(|m| parse_mount(m).ok());
            let from = mounts.filter_map(|m| match m.kind {
                RunMountKind::Bind { from, .. } | RunMountKind::Cache { from, .. } => from,
                _ => None,
            });
            from.collect()
        }
        _ => Vec::new(),
    }
}

fn reachable(stages: &[Stage], target: usize) -> Vec<usize> {
    let mut found = BTreeSet::new();
    let mut left = vec![target];
    while let Some(index) = left.pop() {
        if let (true, Some(stage)) = (found.insert(index), stages.get(index)) {
            left.extend(&stage.needs);
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse;

    fn of(text: &str, args: &[(&str, &str)], target: Option<&str>) -> Result<Plan, ParseError> {
        let args = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        plan(&parse(text).unwrap(), &platform_arguments("linux", "amd64"), &args, target)
    }

    const TEXT: &str = "ARG V=1\nARG IMAGE=base:$V\nFROM $IMAGE AS one\nRUN a\nFROM one AS two\nFROM scratch AS lone\n\
        RUN b\nFROM --platform=$TARGETPLATFORM other\nCOPY --from=two a b\nRUN --mount=from=0,target=/x c\n\
        COPY --from=busybox a b\nARG W";

    #[test]
    fn stages_and_what_they_need() {
        let plan = of(TEXT, &[("V", "2"), ("Z", "x"), ("W", "y")], None).unwrap();
        let bases: Vec<_> = plan.stages.iter().map(|s| s.base.clone()).collect();
        let image = |name: &str| Base::Image(name.into());
        assert_eq!(bases, [image("base:2"), Base::Stage(0), Base::Scratch, image("other")]);
        assert_eq!(plan.needed, [0, 1, 3]);
        assert_eq!(plan.stages[3].platform.as_deref(), Some("linux/amd64"));
        assert_eq!(plan.stages[3].name, "stage-3");
        assert_eq!(plan.unused, ["Z"]);
    }

    #[test]
    fn targets() {
        assert_eq!(of(TEXT, &[], Some("lone")).unwrap().needed, [2]);
        assert_eq!(of(TEXT, &[], Some("1")).unwrap().needed, [0, 1]);
        assert_eq!(of(TEXT, &[], Some("x")).unwrap_err().message, "target stage \"x\" could not be found");
        assert_eq!(of("FROM $NONE", &[], None).unwrap_err().message, "base name ($NONE) should not be blank");
        assert!(of("FROM a AS x\nFROM b AS x", &[], None).is_err());
    }
}
