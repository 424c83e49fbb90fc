//! How full the volumes of claims are: as their drivers say, or as their file systems do.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use api::prelude::*;
use futures_util::future::join_all;

use super::{Source, Volumes};
use crate::csi::stats::{Figures, Usage};

/// A claim's volume in a pod, and how full it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfClaim {
    /// The pod's name for it.
    pub volume: String,
    /// The claim.
    pub claim: String,
    /// How full it is.
    pub figures: Figures,
}

/// What the file system at a path says.
fn of_file_system(path: &Path) -> Option<Figures> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    Some(Figures {
        bytes: Some(Usage {
            available: bytes(stat.f_bavail),
            total: bytes(stat.f_blocks),
            used: bytes(used),
        }),
        inodes: Some(Usage {
            available: stat.f_ffree,
            total: stat.f_files,
            used: stat.f_files.saturating_sub(stat.f_ffree),
        }),
        abnormal: None,
    })
}

/// The size of a device.
fn of_device(path: &Path) -> Option<Figures> {
    use std::io::{Seek, SeekFrom};
    let is_device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    let total = std::fs::File::open(path).ok().filter(|_| is_device)?.seek(SeekFrom::End(0)).ok()?;
    Some(Figures { bytes: Some(Usage { total, ..Usage::default() }), ..Figures::default() })
}

impl Volumes {
    /// The volumes of a pod that claims stand behind.
    pub async fn figures(&self, pod: &Pod) -> Vec<OfClaim> {
        let Some(mounted) = self.of(pod.uid()) else { return Vec::new() };
        let mounted = &mounted;
        let one = |(volume, claimed): (&String, &super::Claimed)| {
            let (volume, claimed) = (volume.clone(), claimed.clone());
            async move {
                let source = mounted.sources.get(&volume)?;
                let figures = match (source, &claimed.driver) {
                    (Source::Path(path), Some((driver, handle))) => {
                        self.csi.figures((driver, handle), path, true).await?
                    }
                    (Source::Device { path, .. }, Some((driver, handle))) => {
                        let target = std::fs::read_link(path).ok()?;
                        self.csi.figures((driver, handle), &target, false).await?
                    }
                    (Source::Path(path), None) => of_file_system(path)?,
                    (Source::Device { path, .. }, None) => of_device(path)?,
                    (Source::Image { .. }, _) => return None,
                };
                Some(OfClaim { volume, claim: claimed.claim, figures })
            }
        };
        let mut all: Vec<OfClaim> =
            join_all(mounted.claims.iter().map(one)).await.into_iter().flatten().collect();
        all.sort_by(|a, b| a.volume.cmp(&b.volume));
        all
    }
}
