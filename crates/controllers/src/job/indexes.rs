//! Sets of completion indexes, as statuses and success policies write them: `0-2,5`.
//!
//! A set is kept as ranges: a Job may have two thousand million indexes, and its status is written by others.

use std::fmt;

/// A set of indexes: ranges in order that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads a set; what is not an index below `completions` is left out.
    pub fn parse(text: &str, completions: i32) -> Indexes {
        let parts = text.split(',').filter_map(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (from.parse::<i32>().ok()?, to.parse::<i32>().ok()?.min(completions - 1));
            (from >= 0 && from <= to).then_some((from, to))
        });
        Indexes::of_ranges(parts.collect())
    }

    fn of_ranges(mut ranges: Vec<(i32, i32)>) -> Indexes {
        ranges.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match merged.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Indexes(merged)
    }

    /// Puts more indexes in.
    pub fn extend(&mut self, more: impl IntoIterator<Item = i32>) {
        let more: Vec<_> = more.into_iter().map(|index| (index, index)).collect();
        if !more.is_empty() {
            *self = Indexes::of_ranges([std::mem::take(&mut self.0), more].concat());
        }
    }

    /// The indexes of both sets.
    pub fn merged(&self, other: &Indexes) -> Indexes {
        Indexes::of_ranges([self.0.as_slice(), &other.0].concat())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> i32 {
        self.0.iter().map(|(from, to)| to - from + 1).fold(0, i32::saturating_add)
    }

    /// Whether an index is among them.
    pub fn contains(&self, index: i32) -> bool {
        let place = self.0.partition_point(|(_, to)| *to < index);
        self.0.get(place).is_some_and(|(from, _)| *from <= index)
    }

    /// How many are in both sets.
    pub fn overlap(&self, other: &Indexes) -> i32 {
        let with = |a: (i32, i32)| {
            let place = other.0.partition_point(|b| b.1 < a.0);
            let near = other.0.iter().skip(place).take_while(move |b| b.0 <= a.1);
            near.map(move |b| a.1.min(b.1) - a.0.max(b.0) + 1).sum::<i32>()
        };
        self.0.iter().map(|range| with(*range)).fold(0, i32::saturating_add)
    }

    /// The first `count` indexes below `completions` that are not in the set.
    pub fn first_missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|(_, to)| to.saturating_add(1)));
        let ends = self.0.iter().map(|(from, _)| *from).chain([completions]);
        starts.zip(ends).flat_map(|(from, to)| from..to.min(completions)).take(count).collect()
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (from, to)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match to - from {
                0 => write!(f, "{comma}{from}")?,
                1 => write!(f, "{comma}{from},{to}")?,
                _ => write!(f, "{comma}{from}-{to}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_both_ways() {
        for (text, completions, written, len) in [
            ("", 10, "", 0),
            ("0-2,5,7,8", 10, "0-2,5,7,8", 6),
            ("8,7,5,0-2", 10, "0-2,5,7,8", 6),
            ("1,2,3", 10, "1-3", 3),
            ("0-2000000000", 4, "0-3", 4),
            ("x,3-1,-4,2,12", 10, "2", 1),
            ("0-2147483647", i32::MAX, "0-2147483646", i32::MAX),
        ] {
            let set = Indexes::parse(text, completions);
            assert_eq!((set.to_string(), set.len()), (written.to_owned(), len), "{text}");
        }
    }

    #[test]
    fn members() {
        let mut set = Indexes::parse("1-3,7", 10);
        assert_eq!([0, 1, 3, 4, 7, 8].map(|i| set.contains(i)), [false, true, true, false, true, false]);
        assert_eq!(set.first_missing(9, 10), [0, 4, 5, 6, 8, 9]);
        assert_eq!(set.first_missing(2, 10), [0, 4]);
        assert_eq!(set.overlap(&Indexes::parse("0,2-9", 10)), 3);
        set.extend([0, 4, 6]);
        assert_eq!(set.to_string(), "0-4,6,7");
        assert_eq!(Indexes::default().first_missing(3, 2), [0, 1]);
    }
}
