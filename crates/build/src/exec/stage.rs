//! One stage: from its base through its instructions, each step from the cache where it can be.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use image::{Digest, LayerRef};
use serde_json::{Map, Value, json};

use super::job::{Job, check_platform};
use super::{Event, Log, blocking};
use crate::dockerfile::{Instruction, Kind, parse_trigger};
use crate::error::{Error, Result, message};
use crate::plan::Base;
use crate::state::{Action, History, RunStep, State};

/// What a stage has come to.
pub(super) struct StageResult {
    pub(super) state: State,
    pub(super) layers: Vec<LayerRef>,
    /// The base's document: architecture and whatever else it says.
    pub(super) document: Map<String, Value>,
    /// When its last layer was made.
    pub(super) created: Option<String>,
}

/// A stage in the making.
pub(super) struct Making {
    pub(super) index: usize,
    result: StageResult,
    done: usize,
    total: usize,
}

impl Making {
    /// The digests of its layers.
    pub(super) fn layers(&self) -> Vec<Digest> {
        self.result.layers.iter().map(|l| l.diff_id.clone()).collect()
    }

    /// What stands for all layers below in a key.
    pub(super) fn chain(&self) -> Digest {
        chain(&self.layers())
    }
}

/// What stands for a stack of layers.
pub(super) fn chain(layers: &[Digest]) -> Digest {
    let text: Vec<&str> = layers.iter().map(Digest::as_str).collect();
    Digest::of(text.join(" ").as_bytes())
}

/// A key of the cache, from whatever a step depends on.
pub(super) fn key(parts: &Value) -> String {
    format!("step:{}", Digest::of(parts.to_string().as_bytes()).hex())
}

/// What a step gave.
pub(super) struct Made {
    pub(super) layer: Option<Digest>,
    pub(super) cached: bool,
    /// When the layer was made, seconds since 1970.
    pub(super) at: Option<i64>,
}

fn is_step(instruction: &Instruction) -> bool {
    matches!(instruction.kind, Kind::Run(_) | Kind::Copy(_) | Kind::Workdir(_))
}

impl Job {
    /// Makes a stage from beginning to end.
    pub(super) async fn make_stage(self: &Arc<Self>, index: usize) -> Result<StageResult> {
        let stage = self.plan.stages.get(index).ok_or_else(|| message("no such stage"))?;
        let file = &self.request.file_name;
        let result = self.begin(index).await.map_err(|e| e.at(file, stage.line, &stage.text))?;
        let total = 1 + stage.instructions.iter().filter(|i| is_step(i)).count();
        let mut making = Making { index, result, done: 1, total };
        for trigger in making.result.state.take_triggers() {
            let failed = |e: Error| e.at(file, stage.line, &format!("{} (ONBUILD {trigger})", stage.text));
            let parsed = parse_trigger(&trigger, stage.line).map_err(|e| failed(message(e.message)))?;
            making.total += usize::from(is_step(&parsed));
            self.instruction(&mut making, &parsed).await.map_err(failed)?;
        }
        for instruction in &stage.instructions {
            let failed = |e: Error| e.at(file, instruction.line, &instruction.text);
            self.instruction(&mut making, instruction).await.map_err(failed)?;
        }
        Ok(making.result)
    }

    async fn begin(self: &Arc<Self>, index: usize) -> Result<StageResult> {
        let stage = self.plan.stages.get(index).ok_or_else(|| message("no such stage"))?;
        if let Some(platform) = &stage.platform {
            check_platform(platform)?;
        }
        match &stage.base {
            Base::Scratch => Ok(StageResult {
                state: State::new(Map::new(), Vec::new(), self.plan.escape),
                layers: Vec::new(),
                document: Map::new(),
                created: None,
            }),
            Base::Stage(base) => {
                let base = self.stage(*base)?.await?;
                Ok(StageResult {
                    state: base.state.child(),
                    layers: base.layers.clone(),
                    document: base.document.clone(),
                    created: base.created.clone(),
                })
            }
            Base::Image(name) => {
                let log = self.log();
                let started = Instant::now();
                let text = format!("[{} 1/1] {}", stage.name, stage.text);
                log.send(Event::Begin { step: log.step, text }).await;
                let base = match self.base(name).await {
                    Ok(base) => base,
                    Err(error) => {
                        log.send(Event::Failed { step: log.step, error: error.to_string() }).await;
                        return Err(error);
                    }
                };
                let took = started.elapsed();
                log.send(Event::Done { step: log.step, cached: false, took }).await;
                Ok(from_image(&base, self.plan.escape))
            }
        }
    }

    /// The next step's number and where its words go.
    fn log(&self) -> Log {
        let step = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        Log { step, events: self.events.clone() }
    }

    async fn instruction(self: &Arc<Self>, making: &mut Making, instruction: &Instruction) -> Result<()> {
        let (globals, build_args) = self.arguments();
        let applied = making.result.state.apply(instruction, globals, build_args);
        let (action, created_by) = applied.map_err(|e| message(e.message))?;
        if action == Action::Configure {
            making.result.state.history.push(History { created_by, empty: true, created: None });
            return Ok(());
        }
        making.done += 1;
        let log = self.log();
        let name = self.plan.stages.get(making.index).map_or("", |s| s.name.as_str());
        let text = format!("[{name} {}/{}] {}", making.done, making.total, instruction.text);
        log.send(Event::Begin { step: log.step, text }).await;
        let started = Instant::now();
        let outcome = match &action {
            Action::Run(step) => self.run_cached(making, step, instruction, &log).await,
            Action::Copy(step) => self.copy_cached(making, step, instruction).await,
            Action::Directory(path) => self.directory(making, path, instruction).await,
            Action::Configure => return Ok(()),
        };
        let made = match outcome {
            Ok(made) => made,
            Err(error) => {
                log.send(Event::Failed { step: log.step, error: error.to_string() }).await;
                return Err(error);
            }
        };
        self.cached.fetch_add(u64::from(made.cached), Ordering::Relaxed);
        log.send(Event::Done { step: log.step, cached: made.cached, took: started.elapsed() }).await;
        let created = match (self.epoch, made.at) {
            (None, Some(at)) => {
                jiff::Timestamp::from_second(at).map_or_else(|_| self.now(), |t| t.to_string())
            }
            _ => self.now(),
        };
        let empty = made.layer.is_none();
        if let Some(layer) = made.layer {
            making.result.layers.push(LayerRef::made(layer));
            making.result.created = Some(created.clone());
        }
        let created = (!empty).then_some(created);
        making.result.state.history.push(History { created_by, empty, created });
        Ok(())
    }

    /// A result from an earlier build, if its layer is still there.
    pub(super) fn known(&self, key: &str) -> Option<Made> {
        if self.request.no_cache {
            return None;
        }
        let record = self.builder.images.cached(key)?;
        let there = record.layer.as_ref().is_none_or(|l| self.builder.images.hold_layer(&self.hold, l));
        there.then_some(Made { layer: record.layer, cached: true, at: Some(record.created_at) })
    }

    /// Keeps a result for later builds.
    pub(super) fn keep(&self, key: String, layer: Option<Digest>, size: u64, what: &str) -> Made {
        let record = self.builder.images.record(layer.clone(), String::new(), size, what);
        let at = Some(record.created_at);
        self.builder.images.remember(key, record);
        Made { layer, cached: false, at }
    }

    async fn run_cached(
        self: &Arc<Self>,
        making: &Making,
        step: &RunStep,
        instruction: &Instruction,
        log: &Log,
    ) -> Result<Made> {
        if step.insecure && !self.request.allow_insecure {
            return Err(message("security.insecure is not allowed: build with --allow security.insecure"));
        }
        if step.network == crate::state::Network::Host && !self.request.allow_host_network {
            return Err(message("network.host is not allowed: build with --allow network.host"));
        }
        let mounts = self.mounts_key(making.index, &step.mounts).await?;
        let key = key(&json!([
            "run",
            making.chain().as_str(),
            step.argv,
            step.env,
            step.user,
            step.directory,
            format!("{:?}", step.network),
            step.insecure,
            self.epoch,
            mounts
        ]));
        if let Some(made) = self.known(&key) {
            return Ok(made);
        }
        let (layer, size) = self.run(making.index, step, &making.layers(), log).await?;
        Ok(self.keep(key, Some(layer), size, &instruction.text))
    }

    async fn directory(
        self: &Arc<Self>,
        making: &Making,
        path: &str,
        instruction: &Instruction,
    ) -> Result<Made> {
        let key = key(&json!(["workdir", making.chain().as_str(), path, self.epoch]));
        if let Some(made) = self.known(&key) {
            return Ok(made);
        }
        let (job, path, layers) = (self.clone(), path.to_owned(), making.layers());
        let made = blocking(move || job.make_directory(&layers, &path)).await?;
        let (layer, size) = made.map_or((None, 0), |(layer, size)| (Some(layer), size));
        Ok(self.keep(key, layer, size, &instruction.text))
    }
}

fn from_image(base: &image::BaseImage, escape: char) -> StageResult {
    let config = match base.document.get("config") {
        Some(Value::Object(config)) => config.clone(),
        _ => Map::new(),
    };
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let history = base.document.get("history").and_then(Value::as_array).into_iter().flatten();
    let history = history.map(|h| History {
        created_by: text(h, "created_by").unwrap_or_default(),
        empty: h.get("empty_layer").and_then(Value::as_bool).unwrap_or(false),
        created: text(h, "created"),
    });
    let created = base.document.get("created").and_then(Value::as_str).map(str::to_owned);
    StageResult {
        state: State::new(config, history.collect(), escape),
        layers: base.layers.clone(),
        document: base.document.clone(),
        created,
    }
}
