//! How long a cluster takes from the start of the process, fresh and again on existing data.

use std::time::Duration;

use crate::instance::Home;
use crate::report::{Table, Target, median_ms};
use crate::{Options, floors, pods};

/// Measures and prints.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let floor_plain = median_ms(&floors::processes(false)?);
    let floor_spaces = median_ms(&floors::processes(true)?);
    let [mut api, mut node, mut pod, mut again] = [const { Vec::<Duration>::new() }; 4];
    for _ in 0..options.starts {
        let mut home = Home::new(options)?;
        let instance = home.start().await?;
        api.push(instance.ready_after);
        instance.node_ready().await?;
        node.push(instance.started.elapsed());
        instance.import_image().await?;
        pods::start_one(&instance, "demo").await?;
        pod.push(instance.started.elapsed());
        drop(instance);
        let instance = home.start().await?;
        again.push(instance.ready_after);
    }
    let mut table = Table::new(&format!(
        "boot: from process start, median of {} (floor: fork+exec of /bin/true, for pods in five namespaces)",
        options.starts
    ));
    let plain = Some(floor_plain);
    table.row("fresh: /readyz 200", median_ms(&api), "ms", plain, Target::None);
    table.row("fresh: node Ready", median_ms(&node), "ms", plain, Target::AtMost(2000.0));
    let what = "fresh: first pod Running, image import included";
    table.row(what, median_ms(&pod), "ms", Some(floor_spaces), Target::None);
    table.row("restart: /readyz 200", median_ms(&again), "ms", plain, Target::AtMost(2000.0));
    table.print();
    Ok(())
}
