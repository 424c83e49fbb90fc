//! The image half.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cri::{FsInfo, Image, ImageService, ImageStatus, PullRequest, PullResult, Result};
use jiff::Timestamp;
use rpc::cri as pb;

use super::{CALL_MAX, Remote, answer};
use crate::convert::container::image_spec;
use crate::convert::error::{self, Call};
use crate::convert::image::{auth_to, config_of_info, fs_used, image_from};

#[async_trait]
impl ImageService for Remote {
    async fn pull(&self, request: PullRequest) -> Result<PullResult> {
        let about = Call::Pull(&request.image);
        let message = pb::PullImageRequest {
            image: Some(image_spec(&request.image)),
            auth: request.auth.as_ref().map(auth_to),
            sandbox_config: None,
        };
        // No limit of ours: the runtime gives up when nothing arrives.
        let pulled = self.images.clone().pull_image(message).await.map_err(|e| error::from(&e, about))?;
        let reference = pulled.into_inner().image_ref;
        let found = match self.status(&reference).await? {
            Some(found) => Some(found),
            None => self.status(&request.image).await?,
        };
        let image = found.map(|found| found.image);
        Ok(PullResult {
            image_id: image.as_ref().map_or(reference, |image| image.id.clone()),
            repo_digest: image
                .iter()
                .flat_map(|image| image.repo_digests.first())
                .next()
                .cloned()
                .unwrap_or_default(),
            size_bytes: image.map_or(0, |image| image.size_bytes),
        })
    }

    async fn status(&self, image: &str) -> Result<Option<ImageStatus>> {
        let message = pb::ImageStatusRequest { image: Some(image_spec(image)), verbose: true };
        let call = async { self.images.clone().image_status(message).await };
        let answer = answer(CALL_MAX, Call::Pull(image), call).await?;
        let config = answer.info.get("info").map(|info| config_of_info(info)).unwrap_or_default();
        Ok(answer.image.map(|image| ImageStatus { image: image_from(image), config }))
    }

    async fn list(&self) -> Result<Vec<Image>> {
        let call = async { self.images.clone().list_images(pb::ListImagesRequest::default()).await };
        Ok(answer(CALL_MAX, Call::Other, call).await?.images.into_iter().map(image_from).collect())
    }

    async fn remove(&self, image: &str) -> Result<()> {
        let message = pb::RemoveImageRequest { image: Some(image_spec(image)) };
        let call = async { self.images.clone().remove_image(message).await };
        answer(CALL_MAX, Call::Other, call).await?;
        Ok(())
    }

    async fn fs_info(&self) -> Result<FsInfo> {
        let call = async { self.images.clone().image_fs_info(pb::ImageFsInfoRequest {}).await };
        let answer = answer(CALL_MAX, Call::Other, call).await?;
        let usage = answer.image_filesystems.into_iter().next().unwrap_or_default();
        let (used_bytes, inodes_used) = fs_used(&usage);
        let mountpoint: PathBuf = usage.fs_id.unwrap_or_default().mountpoint.into();
        let size = size_of(&mountpoint)?;
        Ok(FsInfo { timestamp: Timestamp::now(), mountpoint, used_bytes, inodes_used, ..size })
    }
}

/// Size and room of the file system that holds a path, or what is left of it.
fn size_of(path: &Path) -> Result<FsInfo> {
    let present = path.ancestors().find(|path| super::exists(path)).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(present).map_err(|error| {
        cri::Error::io(format!("look at the file system of {}", path.display()), error.into())
    })?;
    Ok(FsInfo {
        timestamp: Timestamp::UNIX_EPOCH,
        mountpoint: PathBuf::new(),
        used_bytes: 0,
        inodes_used: 0,
        capacity_bytes: stat.f_blocks * stat.f_frsize,
        available_bytes: stat.f_bavail * stat.f_frsize,
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}
