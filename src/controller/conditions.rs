//! Conditions: made new, but with the time of their last transition kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::model::legible::legible;
use crate::model::time::UnixMillis;

/// Longest message, in bytes.
pub(super) const MAX_MESSAGE: usize = 1024;

/// Makes conditions of one generation at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maker<'a> {
    /// What is in the status now.
    pub(super) before: &'a [Condition],
    /// The generation that the conditions speak of.
    pub(super) generation: i64,
    /// The time of a transition that happens now.
    pub(super) now: UnixMillis,
}

impl Maker<'_> {
    /// A condition. Its transition time is that of before, unless its status changes.
    pub(super) fn make(&self, kind: &str, status: Status, reason: &str, message: &str) -> Condition {
        let status = status.as_str();
        let same = find(self.before, kind).filter(|before| before.status == status);
        let at = same.map_or_else(|| whole_second(self.now), |before| before.last_transition_time.clone());
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: cut_bytes(&legible(message, MAX_MESSAGE), MAX_MESSAGE).to_owned(),
            observed_generation: Some(self.generation),
            last_transition_time: at,
        }
    }
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    True,
    False,
    Unknown,
}

impl Status {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The condition of a type.
pub(super) fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a condition is there and True.
pub(super) fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// Kubernetes keeps these times in whole seconds.
fn whole_second(at: UnixMillis) -> Time {
    Time(UnixMillis::from_millis(at.as_secs() * 1000).to_jiff())
}

/// As much of a text as has at most so many bytes.
pub(super) fn cut_bytes(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// As much of a text as has at most so many characters, with an ellipsis for what was cut.
pub(super) fn cut_chars(text: &str, chars: usize) -> String {
    if text.chars().nth(chars).is_none() {
        return text.to_owned();
    }
    text.chars().take(chars.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_is_kept_until_the_status_changes() {
        let at = |secs: i64| UnixMillis::from_millis(1_700_000_000_000 + secs * 1000 + 7);
        let first = Maker { before: &[], generation: 1, now: at(0) }.make("Ready", Status::True, "A", "a");
        let before = [first.clone()];
        let second = Maker { before: &before, generation: 2, now: at(9) };
        let same = second.make("Ready", Status::True, "B", "b");
        assert_eq!(same.last_transition_time, first.last_transition_time);
        assert_eq!((same.reason.as_str(), same.observed_generation), ("B", Some(2)));
        let changed = second.make("Ready", Status::False, "B", "b");
        assert_eq!(changed.last_transition_time.0.as_second() - first.last_transition_time.0.as_second(), 9);
        assert_eq!(changed.last_transition_time.0.subsec_nanosecond(), 0);
    }

    #[test]
    fn a_message_is_legible_whoever_wrote_a_part_of_it() {
        let maker = Maker { before: &[], generation: 1, now: UnixMillis::default() };
        let condition = maker.make("Ready", Status::False, "A", "Secret \"a\u{202e}b\" said\n\u{1b}[2J");
        assert_eq!(condition.message, r#"Secret "a\u{202e}b" said\n\u{1b}[2J"#);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut_bytes("aö", 2), "a");
        assert_eq!(cut_bytes("aö", 3), "aö");
        assert_eq!(cut_chars("aöü", 3), "aöü");
        assert_eq!(cut_chars("aöüb", 3), "aö…");
    }
}
