//! Clock, randomness, back-off and bounded queues: small vocabulary that knows nothing of Kubernetes.
//!
//! Everything that decides takes time and randomness as arguments of these types, so that a test can
//! hold both still. Lowest layer: no IO and no async runtime.

mod backoff;
mod clock;
mod histogram;
mod random;

pub use backoff::{Backoff, KeyedBackoff};
pub use clock::{Clock, FakeClock, SystemClock};
pub use histogram::Histogram;
pub use random::{Random, SeededRandom, ThreadRandom, random_suffix};
