//! How many seats a request takes: lists by what they carry, writes by how many watch.

/// Bytes of a list that are worth one seat (upstream's figure).
const BYTES_PER_SEAT: u64 = 100_000;
/// A list from the cache is streamed: it holds no more than this at once.
const STREAMED_BYTES_MAX: u64 = 1_000_000;
/// Most seats of a list.
pub const LIST_SEATS_MAX: u64 = 100;
/// Most seats of a write.
const WRITE_SEATS_MAX: u64 = 10;
/// Watchers that are worth one seat for [`EVENT_SECONDS`].
const WATCHES_PER_SEAT: u64 = 10;
/// What one seat's worth of watchers is busy with an event.
const EVENT_SECONDS: f64 = 0.005;

/// The work of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Seats while it runs.
    pub initial: u64,
    /// Seats after it, while its event is delivered.
    pub last: u64,
    /// How long that takes.
    pub extra_seconds: f64,
}

impl Work {
    /// The work of most requests.
    pub const ONE: Work = Work { initial: 1, last: 0, extra_seconds: 0.0 };

    /// Seats to hold.
    pub fn seats(&self) -> u64 {
        self.initial.max(self.last)
    }
}

/// The objects that a list is taken from.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    /// How many.
    pub count: u64,
    /// Bytes of one, about.
    pub bytes_each: u64,
}

/// A list (or the beginning of a watch); `limit` is 0 for all.
pub fn list(stored: Stored, limit: u64, one: bool, cached: bool, most: u64) -> Work {
    let loaded = match (one, limit) {
        (true, _) => 1,
        (false, 0) => stored.count,
        (false, limit) => limit.min(stored.count),
    };
    let bytes = loaded.saturating_mul(stored.bytes_each);
    let bytes = if cached { bytes.min(STREAMED_BYTES_MAX) } else { bytes };
    let most = if most == 0 { LIST_SEATS_MAX } else { most.min(LIST_SEATS_MAX) };
    Work { initial: bytes.div_ceil(BYTES_PER_SEAT).clamp(1, most), ..Work::ONE }
}

/// A write that so many watch.
pub fn write(watchers: u64, most: u64) -> Work {
    if watchers < WATCHES_PER_SEAT {
        return Work::ONE;
    }
    let most = if most == 0 { WRITE_SEATS_MAX } else { most.min(WRITE_SEATS_MAX) };
    let wide = watchers.div_ceil(WATCHES_PER_SEAT);
    let last = wide.min(most).max(1);
    // The same work in fewer seats takes longer.
    Work { initial: 1, last, extra_seconds: wide as f64 * EVENT_SECONDS / last as f64 }
}

/// Most seats of one request in a level.
pub fn seats_max(nominal: u64, hand: usize) -> u64 {
    let by_share = (nominal as f64 * 0.15).ceil() as u64;
    by_share.min(nominal / (hand.max(1) as u64)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats() {
        let stored = |count, bytes_each| Stored { count, bytes_each };
        for (stored, limit, one, cached, most, wanted) in [
            (stored(0, 0), 0, false, true, 0, 1),
            (stored(1000, 1000), 0, false, true, 0, 10),
            (stored(50_000, 1000), 0, false, true, 0, 10),
            (stored(50_000, 1000), 0, false, false, 0, 100),
            (stored(50_000, 1000), 500, false, true, 0, 5),
            (stored(50_000, 1000), 0, true, true, 0, 1),
            (stored(50_000, 1000), 0, false, true, 4, 4),
        ] {
            assert_eq!(list(stored, limit, one, cached, most).initial, wanted, "{stored:?} {limit}");
        }
        assert_eq!(write(9, 0), Work::ONE);
        assert_eq!(write(95, 0), Work { initial: 1, last: 10, extra_seconds: 0.005 });
        assert_eq!(write(1000, 0), Work { initial: 1, last: 10, extra_seconds: 0.05 });
        assert_eq!((seats_max(98, 6), seats_max(25, 4), seats_max(13, 1), seats_max(3, 6)), (15, 4, 2, 1));
    }
}
