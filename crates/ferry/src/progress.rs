//! Progress of a pull on the terminal: a bar for each layer. Says nothing where standard error is no terminal.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

/// Characters of a digest that name a layer.
const SHORT_LEN: usize = 12;

/// The bars of one pull.
#[derive(Default)]
pub struct Layers {
    screen: MultiProgress,
    bars: HashMap<String, ProgressBar>,
}

impl Layers {
    /// Shows one step, as the instance tells it.
    pub fn show(&mut self, step: &Value) {
        let Some(layer) = step["layer"].as_str() else { return };
        let screen = &self.screen;
        let bar = self.bars.entry(layer.to_owned()).or_insert_with(|| screen.add(bar(layer)));
        if let (Some(bytes), Some(of)) = (step["bytes"].as_u64(), step["of"].as_u64()) {
            bar.set_length(of);
            bar.set_position(bytes);
        } else if step["unpacking"] == true {
            bar.set_message("unpacking");
        } else if step["done"] == true {
            bar.finish_with_message("done");
        }
    }
}

fn bar(layer: &str) -> ProgressBar {
    let short: String = layer.trim_start_matches("sha256:").chars().take(SHORT_LEN).collect();
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {bytes}/{total_bytes} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_prefix(short)
}
