//! What must not be collected right now: content of pulls in flight and of images in use.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::digest::Digest;

/// Counts of holders per digest, of blobs and of layers alike.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<HashMap<Digest, usize>>);

impl Pins {
    pub(crate) fn is_pinned(&self, digest: &Digest) -> bool {
        self.0.lock().contains_key(digest)
    }

    pub(crate) fn all(&self) -> Vec<Digest> {
        self.0.lock().keys().cloned().collect()
    }

    /// An empty hold, to be extended.
    pub(crate) fn hold(self: &Arc<Self>) -> ImageHold {
        ImageHold { pins: self.clone(), digests: Mutex::new(Vec::new()) }
    }
}

/// Keeps content from being collected until dropped.
#[derive(Debug)]
pub struct ImageHold {
    pins: Arc<Pins>,
    digests: Mutex<Vec<Digest>>,
}

impl ImageHold {
    /// Holds `digest` too.
    pub(crate) fn add(&self, digest: &Digest) {
        *self.pins.0.lock().entry(digest.clone()).or_insert(0) += 1;
        self.digests.lock().push(digest.clone());
    }
}

impl Drop for ImageHold {
    fn drop(&mut self) {
        let mut counts = self.pins.0.lock();
        for digest in self.digests.get_mut() {
            if let Some(count) = counts.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(digest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_until_the_last_holder_lets_go() {
        let pins = Arc::new(Pins::default());
        let digest = Digest::of(b"x");
        let (a, b) = (pins.hold(), pins.hold());
        a.add(&digest);
        b.add(&digest);
        drop(a);
        assert!(pins.is_pinned(&digest));
        drop(b);
        assert!(!pins.is_pinned(&digest));
    }
}
