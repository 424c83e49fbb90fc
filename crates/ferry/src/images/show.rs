//! What `ferry image` prints.

use serde_json::{Value, json};

use super::{ImageCommand, Output};

/// Digits of an id that people see.
const SHORT_LEN: usize = 12;
/// Characters of an instruction in a table.
const TEXT_LEN: usize = 70;

/// Bytes for people.
pub(super) fn size(bytes: f64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0}B") } else { format!("{value:.1}{}", UNITS[unit]) }
}

/// Prints for programs.
pub(super) fn document(form: Output, value: &Value) -> anyhow::Result<()> {
    match form {
        Output::Yaml => print!("{}", serde_saphyr::to_string(value)?),
        _ => println!("{value:#}"),
    }
    Ok(())
}

fn strings<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    value[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn short(id: &Value) -> String {
    id.as_str().unwrap_or_default().trim_start_matches("sha256:").chars().take(SHORT_LEN).collect()
}

/// Prints for people.
pub(super) fn table(command: &ImageCommand, value: &Value) {
    match command {
        ImageCommand::Import { .. } => value.as_array().into_iter().flatten().for_each(|i| {
            let names = strings(i, "names");
            println!("imported {}", if names.is_empty() { i["id"].to_string() } else { names.join(", ") });
        }),
        ImageCommand::Pull { image } => println!("pulled {image}"),
        ImageCommand::Push { .. } => {
            let text = |key: &str| value[key].as_str().unwrap_or_default();
            println!("pushed {}\n{}", text("reference"), text("digest"));
        }
        ImageCommand::Tag { .. } => println!("tagged {}", value["name"].as_str().unwrap_or_default()),
        ImageCommand::Inspect { .. } => println!("{value:#}"),
        ImageCommand::History { .. } => print_history(value),
        ImageCommand::Ls => list(value),
        ImageCommand::Rm { images } => images.iter().for_each(|image| println!("removed {image}")),
        ImageCommand::Prune { .. } => {
            strings(value, "removed").iter().for_each(|name| println!("removed {name}"));
            println!("freed {}", size(value["bytes"].as_f64().unwrap_or(0.0)));
        }
        ImageCommand::Build(_) | ImageCommand::Save { .. } => {}
    }
}

fn list(images: &Value) {
    println!("{:<60} {:<14} {:>10}", "NAME", "ID", "SIZE");
    for image in images.as_array().into_iter().flatten() {
        let id = short(&image["id"]);
        let size = size(image["size"].as_f64().unwrap_or(0.0));
        let names = strings(image, "names");
        for name in if names.is_empty() { vec!["<none>"] } else { names } {
            println!("{name:<60} {id:<14} {size:>10}");
        }
    }
}

/// The history of an inspected image, newest first, with the sizes of its layers.
pub(super) fn history(image: &Value) -> Value {
    let mut layers = image["layers"].as_array().into_iter().flatten();
    let mut steps: Vec<Value> = Vec::new();
    for step in image["config"]["history"].as_array().into_iter().flatten() {
        let empty = step["empty_layer"] == true;
        let layer = if empty { None } else { layers.next() };
        steps.push(json!({
            "created": step["created"],
            "createdBy": step["created_by"],
            "comment": step["comment"],
            "size": layer.map_or(json!(0), |l| if l["unpackedSize"].is_null() { l["size"].clone() } else { l["unpackedSize"].clone() }),
            "layer": layer.map(|l| l["diffId"].clone()),
        }));
    }
    // Layers that the history does not tell of.
    steps.extend(layers.map(|l| json!({"size": l["size"], "layer": l["diffId"]})));
    steps.reverse();
    Value::Array(steps)
}

fn print_history(steps: &Value) {
    println!("{:<21} {:<TEXT_LEN$} {:>10}", "CREATED", "CREATED BY", "SIZE");
    for step in steps.as_array().into_iter().flatten() {
        let created: String = step["created"].as_str().unwrap_or("<missing>").chars().take(19).collect();
        let text = step["createdBy"].as_str().unwrap_or("<missing>").replace(['\n', '\t'], " ");
        let text: String = match text.chars().count() > TEXT_LEN {
            true => text.chars().take(TEXT_LEN - 1).chain(['…']).collect(),
            false => text,
        };
        println!("{created:<21} {text:<TEXT_LEN$} {:>10}", size(step["size"].as_f64().unwrap_or(0.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, want) in [(0.0, "0B"), (1023.0, "1023B"), (1536.0, "1.5KiB"), (3e9, "2.8GiB")] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn histories_take_their_sizes_from_the_layers() {
        let image = json!({
            "layers": [{"diffId": "a", "size": 1, "unpackedSize": 10}, {"diffId": "b", "size": 2, "unpackedSize": null}],
            "config": {"history": [{"created_by": "one"}, {"created_by": "env", "empty_layer": true}, {"created_by": "two"}]},
        });
        let steps = history(&image);
        let got: Vec<_> =
            steps.as_array().unwrap().iter().map(|s| (s["createdBy"].as_str(), s["size"].as_u64())).collect();
        assert_eq!(got, [(Some("two"), Some(2)), (Some("env"), Some(0)), (Some("one"), Some(10))]);
    }
}
