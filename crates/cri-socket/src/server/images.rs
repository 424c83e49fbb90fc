//! The image half.

use std::pin::Pin;

use cri::PullRequest;
use futures_util::{Stream, StreamExt, stream};
use rpc::cri as pb;
use rpc::cri::image_service_server::ImageService;
use rpc::tonic::{Request, Response, Status, async_trait};

use super::{Answer, Server, ok, told};
use crate::convert::image::{auth_from, config_info, fs_to, image_to};

/// Items in one message of a streamed list: far below the size that clients take.
pub(super) const CHUNK: usize = 256;

/// A streamed list.
pub(super) type Chunks<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Cuts a list into messages; an empty one is a single empty message.
pub(super) fn chunks<I: Clone + Send + 'static, T: Send + 'static>(
    items: &[I],
    message: impl Fn(Vec<I>) -> T,
) -> Response<Chunks<T>> {
    let mut messages: Vec<Result<T, Status>> =
        items.chunks(CHUNK).map(|chunk| Ok(message(chunk.to_vec()))).collect();
    if messages.is_empty() {
        messages.push(Ok(message(Vec::new())));
    }
    Response::new(stream::iter(messages).boxed())
}

fn reference(image: Option<pb::ImageSpec>) -> Result<String, Status> {
    let name = image.map(|image| image.image).unwrap_or_default();
    match name.is_empty() {
        true => Err(Status::invalid_argument("image reference is empty")),
        false => Ok(name),
    }
}

impl Server {
    async fn listed_images(&self, filter: Option<pb::ImageFilter>) -> Result<Vec<pb::Image>, Status> {
        let wanted = filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
        if wanted.is_empty() {
            return Ok(told(self.images.list().await)?.iter().map(image_to).collect());
        }
        let found = told(self.images.status(&wanted).await)?;
        Ok(found.iter().map(|status| image_to(&status.image)).collect())
    }
}

#[async_trait]
impl ImageService for Server {
    async fn list_images(&self, request: Request<pb::ListImagesRequest>) -> Answer<pb::ListImagesResponse> {
        ok(pb::ListImagesResponse { images: self.listed_images(request.into_inner().filter).await? })
    }

    type StreamImagesStream = Chunks<pb::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<pb::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = self.listed_images(request.into_inner().filter).await?;
        Ok(chunks(&images, |images| pb::StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<pb::ImageStatusRequest>,
    ) -> Answer<pb::ImageStatusResponse> {
        let request = request.into_inner();
        let found = told(self.images.status(&reference(request.image)?).await)?;
        let info = found
            .iter()
            .filter(|_| request.verbose)
            .map(|status| ("info".to_owned(), config_info(&status.config).to_string()));
        let info = info.collect();
        ok(pb::ImageStatusResponse { image: found.map(|status| image_to(&status.image)), info })
    }

    async fn pull_image(&self, request: Request<pb::PullImageRequest>) -> Answer<pb::PullImageResponse> {
        let request = request.into_inner();
        let image = reference(request.image)?;
        let auth = match request.auth {
            Some(auth) => auth_from(&auth).map_err(Status::invalid_argument)?,
            None => None,
        };
        let pulled = told(self.images.pull(PullRequest { image, auth, progress: None }).await)?;
        ok(pb::PullImageResponse { image_ref: pulled.image_id })
    }

    async fn remove_image(
        &self,
        request: Request<pb::RemoveImageRequest>,
    ) -> Answer<pb::RemoveImageResponse> {
        told(self.images.remove(&reference(request.into_inner().image)?).await)?;
        ok(pb::RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _: Request<pb::ImageFsInfoRequest>) -> Answer<pb::ImageFsInfoResponse> {
        let usage = fs_to(&told(self.images.fs_info().await)?);
        ok(pb::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        })
    }
}
