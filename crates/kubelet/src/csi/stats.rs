//! What drivers say of the volumes that pods have.

use std::path::Path;

use rpc::csi::NodeGetVolumeStatsRequest;
use rpc::csi::node_service_capability::rpc::Type;
use rpc::csi::volume_usage::Unit;

use super::request;
use super::volume::{CsiVolumes, ask};

/// Figures of a volume; what its driver does not say is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Bytes.
    pub bytes: Option<Usage>,
    /// Files.
    pub inodes: Option<Usage>,
    /// Whether something is wrong with it, where the driver tells.
    pub abnormal: Option<bool>,
}

/// How much there is of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Still to be had.
    pub available: u64,
    /// In all.
    pub total: u64,
    /// Taken.
    pub used: u64,
}

impl CsiVolumes {
    /// Asks a driver about a volume of a pod; nothing where it does not tell.
    pub async fn figures(
        &self,
        (driver, handle): (&str, &str),
        path: &Path,
        staging: bool,
    ) -> Option<Figures> {
        let driver_name = driver;
        let driver = self.drivers.get(driver_name).ok()?;
        if !driver.can(Type::GetVolumeStats) {
            return None;
        }
        let staged = staging && driver.can(Type::StageUnstageVolume);
        let staging =
            if staged { request::staging(&self.root, driver_name, handle) } else { Default::default() };
        let asked = NodeGetVolumeStatsRequest {
            volume_id: handle.to_owned(),
            volume_path: path.display().to_string(),
            staging_target_path: staging.display().to_string(),
        };
        let answer = ask(driver.node().node_get_volume_stats(asked)).await;
        let answer = answer
            .inspect_err(|status| tracing::debug!(driver = driver_name, %status, "no figures of a volume"))
            .ok()?;
        let mut figures = Figures::default();
        for usage in answer.usage {
            let number = |n: i64| u64::try_from(n).unwrap_or(0);
            let one = Usage {
                available: number(usage.available),
                total: number(usage.total),
                used: number(usage.used),
            };
            match Unit::try_from(usage.unit) {
                Ok(Unit::Bytes) => figures.bytes = Some(one),
                Ok(Unit::Inodes) => figures.inodes = Some(one),
                _ => {}
            }
        }
        let told = driver.can(Type::VolumeCondition);
        figures.abnormal = answer.volume_condition.filter(|_| told).map(|condition| condition.abnormal);
        Some(figures)
    }
}
