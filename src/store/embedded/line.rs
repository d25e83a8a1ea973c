//! What waits for the writer, in the order in which it is done: small calls before large ones, so that a single event
//! or an outcome waits for the commit under way and for no batch that came before it.

use std::collections::VecDeque;

/// A commit takes at most about so many bytes (one call may be larger), so that a single event is not long in
/// one commit with many: some milliseconds of work.
const GROUP_BYTES: usize = 512 << 10;
/// So many calls wait here at most; the rest is in the channel.
const CALLS: usize = 4096;

/// How a call goes before the others, and how much it adds to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Shares a commit, and goes before large ones. About so many bytes.
    Small(usize),
    /// Shares a commit.
    Large(usize),
    /// Shares no commit: one step of something long, between two commits.
    Step,
    /// The last: nothing is taken in after it, and it is done after everything that came before.
    Last,
}

/// What is done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<T> {
    /// One commit.
    Group(Vec<T>),
    /// What shares none.
    Apart(T),
}

/// Calls that were taken in.
#[derive(Debug)]
pub(super) struct Line<T> {
    small: VecDeque<(T, usize)>,
    large: VecDeque<(T, usize)>,
    steps: VecDeque<T>,
    last: Option<T>,
    /// The turn after a commit is that of a step.
    is_turn_of_steps: bool,
}

impl<T> Line<T> {
    pub(super) const fn new() -> Self {
        Self {
            small: VecDeque::new(),
            large: VecDeque::new(),
            steps: VecDeque::new(),
            last: None,
            is_turn_of_steps: false,
        }
    }

    pub(super) fn push(&mut self, call: T, kind: Kind) {
        match kind {
            Kind::Small(weight) => self.small.push_back((call, weight)),
            Kind::Large(weight) => self.large.push_back((call, weight)),
            Kind::Step => self.steps.push_back(call),
            Kind::Last => self.last = Some(call),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0 && self.last.is_none()
    }

    /// Whether more may be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.len() < CALLS && self.last.is_none()
    }

    /// Whether something waits that is no commit: nobody gains when it is put off.
    pub(super) fn is_urgent(&self) -> bool {
        !self.steps.is_empty() || self.last.is_some()
    }

    fn len(&self) -> usize {
        self.small.len() + self.large.len() + self.steps.len()
    }

    /// What is done next: commits and steps in turn. None: nothing waits.
    pub(super) fn next(&mut self) -> Option<Turn<T>> {
        let nothing_to_commit = self.small.is_empty() && self.large.is_empty();
        if (nothing_to_commit || self.is_turn_of_steps)
            && let Some(step) = self.steps.pop_front()
        {
            self.is_turn_of_steps = false;
            return Some(Turn::Apart(step));
        }
        if nothing_to_commit {
            return self.last.take().map(Turn::Apart);
        }
        self.is_turn_of_steps = true;
        Some(Turn::Group(self.group()))
    }

    /// What is committed together. While large calls wait, they have half of each commit.
    fn group(&mut self) -> Vec<T> {
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

    const BATCH: Kind = Kind::Large(128 << 10);
    const SINGLE: Kind = Kind::Small(1 << 10);

    fn line(calls: &[(char, usize, Kind)]) -> Line<char> {
        let mut line = Line::new();
        for (call, count, kind) in calls {
            (0..*count).for_each(|_| line.push(*call, *kind));
        }
        line
    }

    /// Small and large calls of each commit; what is apart, as none.
    fn turns(mut line: Line<char>) -> Vec<Option<(usize, usize)>> {
        std::iter::from_fn(|| line.next())
            .map(|turn| match turn {
                Turn::Apart(_) => None,
                Turn::Group(group) => {
                    let small = group.iter().filter(|call| **call == 's').count();
                    Some((small, group.len() - small))
                }
            })
            .collect()
    }

    #[test]
    fn a_small_call_is_in_the_next_commit_however_many_large_ones_came_before() {
        let mut line = line(&[('L', 50, BATCH), ('s', 1, SINGLE)]);
        assert_eq!(line.next(), Some(Turn::Group(vec!['s', 'L', 'L', 'L', 'L'])));
        assert_eq!(line.next(), Some(Turn::Group(vec!['L'; 4])));
    }

    #[test]
    fn neither_small_calls_nor_large_ones_nor_steps_hold_the_others_up() {
        let large = |weight| Kind::Large(weight);
        for (calls, expected) in [
            (vec![('s', 3, SINGLE)], vec![Some((3, 0))]),
            (vec![('s', 600, SINGLE)], vec![Some((512, 0)), Some((88, 0))]),
            (vec![('s', 600, SINGLE), ('L', 3, BATCH)], vec![Some((256, 2)), Some((344, 1))]),
            (vec![('L', 1, large(5 << 20)), ('L', 1, BATCH)], vec![Some((0, 1)), Some((0, 1))]),
            (vec![('s', 600, SINGLE), ('L', 1, BATCH)], vec![Some((384, 1)), Some((216, 0))]),
            (
                vec![('p', 2, Kind::Step), ('L', 8, BATCH), ('s', 1, SINGLE)],
                vec![Some((1, 4)), None, Some((0, 4)), None],
            ),
            (vec![('p', 2, Kind::Step)], vec![None, None]),
        ] {
            assert_eq!(turns(line(&calls)), expected, "{calls:?}");
        }
    }

    #[test]
    fn the_last_is_done_after_all_that_came_before_and_nothing_is_taken_in_after_it() {
        let mut line = line(&[('L', 5, BATCH), ('p', 1, Kind::Step), ('s', 1, SINGLE)]);
        assert!(line.has_room());
        line.push('c', Kind::Last);
        assert!(!line.has_room() && !line.is_empty());
        assert_eq!(turns(line), [Some((1, 4)), None, Some((0, 1)), None]);
    }

    #[test]
    fn calls_alike_go_in_their_order_and_none_is_lost() {
        let mut line = Line::new();
        for number in 0..CALLS {
            assert!(line.has_room());
            line.push(number, if number % 3 == 0 { BATCH } else { SINGLE });
        }
        assert!(!line.has_room());
        let mut all = Vec::new();
        while let Some(Turn::Group(group)) = line.next() {
            all.extend(group);
        }
        let (large, small): (Vec<_>, Vec<_>) = all.into_iter().partition(|number| number % 3 == 0);
        assert!(large.is_sorted() && small.is_sorted() && line.is_empty());
        assert_eq!(large.len() + small.len(), CALLS);
    }
}
