//! `ImageLocality`: nodes are better where large images of the pod are present, but not so much that all
//! pods of an image end up where it was first.

use crate::cache::Cache;
use crate::framework::{Changes, CycleState, Plugin, SCORE_MAX};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Images smaller than this, per container, are not worth anything.
const MIN_BYTES: i64 = 23 * 1024 * 1024;
/// Images larger than this, per container, are not worth more.
const MAX_BYTES: i64 = 1000 * 1024 * 1024;

/// The row.
pub const PLUGIN: Plugin =
    Plugin { score: Some(score), weight: 1, ..Plugin::named("ImageLocality", Changes::NONE) };

/// Image names without a tag or digest mean the tag `latest`.
fn normalized(image: &str) -> std::borrow::Cow<'_, str> {
    let tail = image.rfind('/').map_or(image, |slash| &image[slash..]);
    if tail.contains(':') || image.contains('@') { image.into() } else { format!("{image}:latest").into() }
}

fn score(_: &CycleState, pod: &PodInfo, node: &NodeInfo, cache: &Cache) -> i64 {
    let Some(spec) = &pod.pod.spec else { return 0 };
    if node.images.is_empty() {
        return 0;
    }
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let present: i64 = containers()
        .filter_map(|container| {
            let name = normalized(container.image.as_deref()?);
            let size = *node.images.get(&*name)?;
            let spread = cache.image_spread.get(&*name).copied().unwrap_or(0);
            Some((size as f64 * spread as f64 / cache.nodes.len().max(1) as f64) as i64)
        })
        .sum();
    let most = MAX_BYTES * containers().count() as i64;
    SCORE_MAX * (present.clamp(MIN_BYTES, most) - MIN_BYTES) / (most - MIN_BYTES)
}
