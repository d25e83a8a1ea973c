//! What waits for the writer, in the order in which it is committed: small calls before large ones, so that a single
//! event or an outcome waits for the commit under way and for no batch that came before it.

use std::collections::VecDeque;

use super::unflushed::LARGE;

/// A commit takes at most about so many bytes (one call may be larger), so that a single event is not long in
/// one commit with many: some milliseconds of work.
pub(super) const GROUP_BYTES: usize = 512 << 10;
/// A commit takes at most so many calls, and so many wait here; the rest is in the channel.
const CALLS: usize = 4096;

/// Calls with their weights: bytes that they add to a commit, roughly.
#[derive(Debug)]
pub(super) struct Line<T> {
    small: VecDeque<(T, usize)>,
    large: VecDeque<(T, usize)>,
}

impl<T> Line<T> {
    pub(super) const fn new() -> Self {
        Self { small: VecDeque::new(), large: VecDeque::new() }
    }

    pub(super) fn push(&mut self, call: T, weight: usize) {
        let line = if weight < LARGE { &mut self.small } else { &mut self.large };
        line.push_back((call, weight));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.small.len() + self.large.len() >= CALLS
    }

    /// What is committed together next. While large calls wait, they have half of each commit.
    pub(super) fn next_group(&mut self) -> Vec<T> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        let for_small = if self.large.is_empty() { GROUP_BYTES } else { GROUP_BYTES / 2 };
        for (is_small, limit) in [(true, for_small), (false, GROUP_BYTES), (true, GROUP_BYTES)] {
            let line = if is_small { &mut self.small } else { &mut self.large };
            while bytes < limit
                && let Some((call, weight)) = line.pop_front()
            {
                bytes += weight;
                group.push(call);
            }
        }
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: usize = 128 << 10;

    fn line(calls: &[(char, usize, usize)]) -> Line<char> {
        let mut line = Line::new();
        for (call, count, weight) in calls {
            (0..*count).for_each(|_| line.push(*call, *weight));
        }
        line
    }

    fn groups(mut line: Line<char>) -> Vec<(usize, usize)> {
        let mut groups = Vec::new();
        while !line.is_empty() {
            let group = line.next_group();
            let small = group.iter().filter(|call| **call == 's').count();
            groups.push((small, group.len() - small));
        }
        groups
    }

    #[test]
    fn a_small_call_is_in_the_next_commit_however_many_large_ones_came_before() {
        let mut line = line(&[('L', 50, BATCH), ('s', 1, 1500)]);
        assert_eq!(line.next_group(), ['s', 'L', 'L', 'L', 'L']);
        assert_eq!(line.next_group(), ['L'; 4]);
    }

    #[test]
    fn neither_small_calls_nor_large_ones_hold_the_others_up() {
        for (calls, expected) in [
            (vec![('s', 3, 1024)], vec![(3, 0)]),
            (vec![('s', 600, 1024)], vec![(512, 0), (88, 0)]),
            (vec![('s', 600, 1024), ('L', 3, BATCH)], vec![(256, 2), (344, 1)]),
            (vec![('L', 1, 5 << 20), ('L', 1, BATCH)], vec![(0, 1), (0, 1)]),
            (vec![('s', 600, 1024), ('L', 1, BATCH)], vec![(384, 1), (216, 0)]),
        ] {
            assert_eq!(groups(line(&calls)), expected, "{calls:?}");
        }
    }

    #[test]
    fn calls_alike_go_in_their_order_and_none_is_lost() {
        let mut line = Line::new();
        for number in 0..CALLS {
            assert!(!line.is_full());
            line.push(number, if number % 3 == 0 { LARGE } else { LARGE - 1 });
        }
        assert!(line.is_full());
        let mut all = Vec::new();
        while !line.is_empty() {
            all.extend(line.next_group());
        }
        let (large, small): (Vec<_>, Vec<_>) = all.into_iter().partition(|number| number % 3 == 0);
        assert!(large.is_sorted() && small.is_sorted());
        assert_eq!(large.len() + small.len(), CALLS);
    }
}
