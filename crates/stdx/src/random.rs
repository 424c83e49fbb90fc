//! Randomness as a dependency: names, jitter and tie-breaks come from here.

use std::fmt::Debug;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Source of random numbers.
pub trait Random: Send + Sync + Debug {
    /// A uniformly distributed number below `bound`; 0 when `bound` is 0.
    fn below(&self, bound: u64) -> u64;
}

/// The operating system's randomness, through the thread-local generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadRandom;

impl Random for ThreadRandom {
    fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { rand::rng().random_range(0..bound) }
    }
}

/// Reproducible randomness from a seed.
#[derive(Debug)]
pub struct SeededRandom(Mutex<SmallRng>);

impl SeededRandom {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        SeededRandom(Mutex::new(SmallRng::seed_from_u64(seed)))
    }
}

impl Random for SeededRandom {
    fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.lock().random_range(0..bound) }
    }
}

/// Letters and digits of generated names: no vowels and no look-alikes, so that no word and no misreading
/// comes out. The alphabet that Kubernetes uses for `generateName`.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A random suffix of `len` characters as `generateName` appends it.
pub fn random_suffix(random: &dyn Random, len: usize) -> String {
    (0..len).map(|_| SUFFIX_ALPHABET[random.below(SUFFIX_ALPHABET.len() as u64) as usize] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_suffix() {
        let a = random_suffix(&SeededRandom::new(7), 5);
        assert_eq!(a, random_suffix(&SeededRandom::new(7), 5));
        assert_eq!(a.len(), 5);
        assert!(a.bytes().all(|c| SUFFIX_ALPHABET.contains(&c)));
    }
}
