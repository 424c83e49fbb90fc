//! Options about the node's images: pulls and what is collected.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use kubelet::credentials::Providers;
use kubelet::image_gc::Policy;

/// Options of `ferry up` about images; names and meanings are the kubelet's.
#[derive(Debug, Clone, Args)]
pub struct ImageOptions {
    /// Use of the images' file system, in percent, from which unused images are removed.
    #[arg(long, default_value_t = 85, value_name = "PERCENT")]
    pub image_gc_high_threshold: u8,
    /// Use of the images' file system, in percent, down to which they are removed.
    #[arg(long, default_value_t = 80, value_name = "PERCENT")]
    pub image_gc_low_threshold: u8,
    /// Unused images younger than this stay.
    #[arg(long, default_value = "2m", value_name = "DURATION", value_parser = crate::serving::duration)]
    pub minimum_image_ttl_duration: Duration,
    /// Images that nothing has used for this long are removed whatever the disk; 0 keeps them.
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = crate::serving::duration)]
    pub image_maximum_gc_age: Duration,
    /// CredentialProviderConfig of programs that give credentials for registries.
    #[arg(long, value_name = "FILE", requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Directory of those programs.
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// Pull one image at a time.
    #[arg(long)]
    pub serialize_image_pulls: bool,
    /// Images pulled at once.
    #[arg(long, default_value_t = kubelet::images::PULLS_AT_ONCE, value_name = "N")]
    pub max_parallel_image_pulls: usize,
}

impl ImageOptions {
    /// When images go.
    pub fn policy(&self) -> anyhow::Result<Policy> {
        let policy = Policy {
            high_percent: self.image_gc_high_threshold,
            low_percent: self.image_gc_low_threshold,
            minimum_age: self.minimum_image_ttl_duration,
            maximum_age: self.image_maximum_gc_age,
        };
        policy.check().context("--image-gc-high-threshold, --image-gc-low-threshold")?;
        Ok(policy)
    }

    /// Programs that give credentials.
    pub fn providers(&self) -> anyhow::Result<Arc<Providers>> {
        let (Some(file), Some(directory)) =
            (&self.image_credential_provider_config, &self.image_credential_provider_bin_dir)
        else {
            return Ok(Arc::default());
        };
        let unusable = || format!("cannot use {}", file.display());
        let text = std::fs::read_to_string(file).with_context(unusable)?;
        let document = serde_saphyr::from_str(&text).with_context(unusable)?;
        Ok(Arc::new(Providers::new(document, directory).with_context(unusable)?))
    }

    /// Pulls at once.
    pub fn parallel_pulls(&self) -> usize {
        if self.serialize_image_pulls { 1 } else { self.max_parallel_image_pulls.max(1) }
    }
}
