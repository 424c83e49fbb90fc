//! Projected volumes: several sources in one directory.

use api::k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, PodCertificateProjection, ProjectedVolumeSource, VolumeProjection,
};
use api::prelude::*;

use super::atomic::{File, Payload};
use super::job::Job;
use super::message;
use super::payload::{DEFAULT_MODE, of_downward};
use crate::spec;

/// Life of a projected token when the volume names none, in seconds.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

impl Job<'_> {
    pub(super) async fn projected(
        &mut self,
        volume: &str,
        source: &ProjectedVolumeSource,
    ) -> Result<Payload, String> {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let mut payload = Payload::new();
        for (index, part) in source.sources.iter().flatten().enumerate() {
            payload.extend(self.projection(volume, index, part, mode).await?);
        }
        Ok(payload)
    }

    async fn projection(
        &mut self,
        volume: &str,
        index: usize,
        part: &VolumeProjection,
        mode: i32,
    ) -> Result<Payload, String> {
        if let Some(source) = &part.config_map {
            let items = source.items.as_deref().unwrap_or_default();
            return self.config_map(&source.name, items, mode, source.optional == Some(true)).await;
        }
        if let Some(source) = &part.secret {
            let items = source.items.as_deref().unwrap_or_default();
            return self.secret(&source.name, items, mode, source.optional == Some(true)).await;
        }
        if let Some(source) = &part.downward_api {
            return of_downward(self.pod, source.items.as_deref().unwrap_or_default(), mode, self.facts)
                .map_err(message);
        }
        if let Some(source) = &part.service_account_token {
            let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
            let audience = source.audience.as_deref().unwrap_or_default();
            let token = self.volumes.tokens.get(self.pod, audience, seconds).await;
            let token = token.map_err(|error| format!("failed to fetch token: {error}"))?;
            self.look_again(token.refresh_at);
            let file = File { content: token.text.into_bytes(), mode: self.private_mode(mode) };
            return Ok(Payload::from([(source.path.clone(), file)]));
        }
        if let Some(source) = &part.cluster_trust_bundle {
            return self.trust_bundle(source, mode).await;
        }
        if let Some(source) = &part.pod_certificate {
            return self.certificate(&format!("{volume}/{index}"), source, mode).await;
        }
        Err("this kind of projected source is not supported on this node".into())
    }

    async fn trust_bundle(
        &mut self,
        source: &ClusterTrustBundleProjection,
        mode: i32,
    ) -> Result<Payload, String> {
        let content = self.volumes.trust.anchors(self.pod.uid(), source).await?;
        let shared = self.has_group();
        let mode = if shared { 0o600 } else { mode as u32 & 0o777 };
        Ok(Payload::from([(source.path.clone(), File { content: content.into_bytes(), mode })]))
    }

    async fn certificate(
        &mut self,
        slot: &str,
        source: &PodCertificateProjection,
        mode: i32,
    ) -> Result<Payload, String> {
        let held = self.volumes.certificates.get(self.pod, slot, source).await?;
        self.look_again(held.refresh_at);
        let mode = self.private_mode(mode);
        let bundle = format!("{}{}", held.key, held.chain);
        let files = [
            (&source.credential_bundle_path, bundle),
            (&source.key_path, held.key),
            (&source.certificate_chain_path, held.chain),
        ];
        let named = files.into_iter().filter_map(|(path, text)| {
            let path = path.clone().filter(|path| !path.is_empty())?;
            Some((path, File { content: text.into_bytes(), mode }))
        });
        Ok(named.collect())
    }

    fn has_group(&self) -> bool {
        spec::spec(self.pod).security_context.as_ref().is_some_and(|context| context.fs_group.is_some())
    }

    /// Mode of a secret file. It is its owner's only, unless a group or another user has to read it.
    fn private_mode(&self, mode: i32) -> u32 {
        if self.has_group() { 0o600 } else { token_mode(self.pod, mode) }
    }
}

/// Mode of a token without fsGroup: the file is root's, so others may read it only if every container runs
/// as somebody else.
fn token_mode(pod: &Pod, mode: i32) -> u32 {
    let of_pod = spec::spec(pod).security_context.as_ref().and_then(|context| context.run_as_user);
    let as_root = spec::containers(pod).iter().all(|(_, container)| {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        own.or(of_pod) == Some(0)
    });
    if as_root { 0o600 } else { mode as u32 & 0o777 }
}
