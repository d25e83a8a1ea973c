//! Log lines that repeat, limited.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::ids::WebhookUid;
use crate::model::rate::{Meter, RateLimit};
use crate::model::time::UnixMillis;

/// The same line about the same Webhook comes again after so long at first, and at most: the pause doubles as
/// long as it repeats.
const PAUSE: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(10));

/// What nobody wanted to say for so long is new again.
const NEW_AGAIN: Duration = Duration::from_mins(10);

/// Lines of one kind in the whole process, about Webhooks of which it is new, whatever their number.
const NEW: RateLimit = RateLimit { requests: 1, per: Duration::from_mins(1), burst: 20 };

/// And about those of which it was said before: a line that is news does not wait for them.
const REPEATED: RateLimit = RateLimit { requests: 1, per: Duration::from_mins(2), burst: 10 };

/// Lines remembered at most; beyond, the oldest are forgotten.
const MAX_REMEMBERED: usize = 4096;

/// An endpoint of which it was said that it is unhealthy is remembered for so long.
const MAX_OPEN: Duration = Duration::from_hours(24);

/// What a line that may repeat is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Line {
    /// An attempt or a delivery failed.
    Failure,
    /// An endpoint is unhealthy; see [`Quiet::was_unhealthy`].
    Unhealthy,
    /// A Webhook is disabled.
    Disabled,
    /// A disabled Webhook could not be enabled.
    NotEnabled,
    /// The store refused a claim.
    NotClaimed,
    /// The store did not take a claim back.
    NotReleased,
    /// The store did not take an outcome yet.
    NotYetRecorded,
    /// The store never took an outcome.
    NotRecorded,
    /// Our own code failed in an attempt.
    Panicked,
    /// What was held too long has ended.
    Expired,
    /// What was held too long could not be ended.
    NotExpired,
    /// The wall clock was set.
    ClockSet,
    /// Times of a clock that was ahead could not be set right.
    NotRedated,
}

/// Limits lines, each kind by itself, to nine an hour for one Webhook and to about a hundred an hour for all
/// together: whatever is broken for an hour costs tens of lines, not thousands, and one that is new is still said.
#[derive(Debug)]
pub(super) struct Quiet {
    since: Instant,
    spoken: Mutex<Spoken>,
}

/// None: it is about no Webhook in particular.
type Key = (Line, Option<WebhookUid>);

#[derive(Debug, Default)]
struct Spoken {
    lines: HashMap<Key, Said>,
    new: HashMap<Line, Meter>,
    repeated: HashMap<Line, Meter>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    /// When it was said.
    at: Instant,
    /// When it was said, or was to be.
    asked: Instant,
    /// Zero: it was to be said, and was not.
    pause: Duration,
    unlogged: u64,
    is_open: bool,
}

impl Said {
    fn new(at: Instant, pause: Duration) -> Self {
        Self { at, asked: at, pause, unlogged: 0, is_open: false }
    }

    fn is_repeated(&self, now: Instant) -> bool {
        !self.pause.is_zero() && now.duration_since(self.asked) < NEW_AGAIN
    }

    fn is_worth_keeping(&self, now: Instant) -> bool {
        now.duration_since(self.asked) < if self.is_open { MAX_OPEN } else { NEW_AGAIN }
    }
}

impl Default for Quiet {
    fn default() -> Self {
        Self { since: Instant::now(), spoken: Mutex::default() }
    }
}

impl Quiet {
    /// Whether a line may be written now; how many were not written since the last one.
    pub(super) fn may_speak(&self, line: Line, webhook: impl Into<Option<WebhookUid>>) -> Option<u64> {
        let now = Instant::now();
        let millis = i64::try_from(now.duration_since(self.since).as_millis()).unwrap_or(i64::MAX);
        let mut spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        spoken.may_speak((line, webhook.into()), now, UnixMillis::from_millis(millis))
    }

    /// Whether it was said that this endpoint is unhealthy: then, and once, it may be said that it no longer is.
    /// So what was said last is true, or the endpoint changes so often that its failures tell.
    pub(super) fn was_unhealthy(&self, webhook: WebhookUid) -> bool {
        let mut spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        let said = spoken.lines.get_mut(&(Line::Unhealthy, Some(webhook)));
        said.is_some_and(|said| std::mem::take(&mut said.is_open))
    }
}

impl Spoken {
    fn may_speak(&mut self, key: Key, now: Instant, millis: UnixMillis) -> Option<u64> {
        let before = self.lines.get(&key).copied();
        if before.is_some_and(|said| now.duration_since(said.at) < said.pause) {
            self.silence(key, now);
            return None;
        }
        let repeated = before.filter(|said| said.is_repeated(now));
        let (meters, limit) = match repeated {
            Some(_) => (&mut self.repeated, &REPEATED),
            None => (&mut self.new, &NEW),
        };
        let (taken, _) = meters.entry(key.0).or_default().take(limit, millis, 1);
        if taken == 0 {
            if before.is_none() {
                self.remember(key, Said::new(now, Duration::ZERO));
            }
            self.silence(key, now);
            return None;
        }
        let (first, longest) = PAUSE;
        let pause = repeated.map_or(first, |said| (said.pause * 2).min(longest));
        self.remember(key, Said { is_open: key.0 == Line::Unhealthy, ..Said::new(now, pause) });
        Some(before.map_or(0, |said| said.unlogged))
    }

    /// If there is room.
    fn remember(&mut self, key: Key, said: Said) {
        if self.lines.len() >= MAX_REMEMBERED && !self.lines.contains_key(&key) {
            self.lines.retain(|_, other| other.is_worth_keeping(said.at));
        }
        if self.lines.len() < MAX_REMEMBERED || self.lines.contains_key(&key) {
            self.lines.insert(key, said);
        }
    }

    fn silence(&mut self, key: Key, now: Instant) {
        if let Some(said) = self.lines.get_mut(&key) {
            (said.unlogged, said.asked) = (said.unlogged + 1, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn webhook(number: u128) -> WebhookUid {
        WebhookUid::from_bytes(number.to_be_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_repeats_more_and_more_rarely_and_says_how_often_it_was_not_written() {
        let quiet = Quiet::default();
        let mut said = Vec::new();
        for minute in 0..60 {
            if let Some(unlogged) = quiet.may_speak(Line::Failure, webhook(1)) {
                said.push((minute, unlogged));
            }
            tokio::time::advance(MINUTE).await;
        }
        assert_eq!(
            said,
            [(0, 0), (1, 0), (3, 1), (7, 3), (15, 7), (25, 9), (35, 9), (45, 9), (55, 9)],
            "minute, not written before"
        );
        tokio::time::advance(30 * MINUTE).await;
        assert_eq!(quiet.may_speak(Line::Failure, webhook(1)), Some(4));
        tokio::time::advance(MINUTE).await;
        assert_eq!(quiet.may_speak(Line::Failure, webhook(1)), Some(0), "it is new again");
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_of_lines_and_webhooks_do_not_silence_each_other() {
        let quiet = Quiet::default();
        for (line, number) in [(Line::Failure, 1), (Line::Failure, 2), (Line::NotClaimed, 1)] {
            assert_eq!(quiet.may_speak(line, webhook(number)), Some(0));
            assert_eq!(quiet.may_speak(line, webhook(number)), None);
        }
        assert_eq!(
            (quiet.may_speak(Line::ClockSet, None), quiet.may_speak(Line::ClockSet, None)),
            (Some(0), None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_hour_of_a_thousand_webhooks_is_a_hundred_lines_of_each_kind() {
        let quiet = Quiet::default();
        let mut lines = 0;
        for _ in 0..360 {
            for number in 0..1000 {
                lines += usize::from(quiet.may_speak(Line::Failure, webhook(number)).is_some());
            }
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert!((60..=120).contains(&lines), "{lines}");
        assert_eq!(quiet.may_speak(Line::NotClaimed, webhook(7)), Some(0), "another kind");
    }

    #[tokio::test(start_paused = true)]
    async fn what_repeats_leaves_room_for_what_is_new() {
        let quiet = Quiet::default();
        for minute in 0..120 {
            for number in 0..20 {
                quiet.may_speak(Line::Failure, webhook(number));
            }
            if minute == 119 {
                assert_eq!(quiet.may_speak(Line::Failure, webhook(99)), Some(0));
            }
            tokio::time::advance(MINUTE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_is_said_to_be_healthy_again_once_and_only_after_the_opposite_was_said() {
        let quiet = Quiet::default();
        assert!(!quiet.was_unhealthy(webhook(1)));
        assert_eq!(quiet.may_speak(Line::Unhealthy, webhook(1)), Some(0));
        assert!(!quiet.was_unhealthy(webhook(2)));
        assert_eq!((quiet.was_unhealthy(webhook(1)), quiet.was_unhealthy(webhook(1))), (true, false));
        assert_eq!(quiet.may_speak(Line::Unhealthy, webhook(1)), None, "too soon");
        assert!(!quiet.was_unhealthy(webhook(1)));
        tokio::time::advance(MINUTE).await;
        assert_eq!(quiet.may_speak(Line::Unhealthy, webhook(1)), Some(1));
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(quiet.may_speak(Line::Unhealthy, webhook(1)), None, "it was said, and still holds");
        assert!(quiet.was_unhealthy(webhook(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let quiet = Quiet::default();
        for number in 0..(MAX_REMEMBERED as u128 + 10) {
            quiet.may_speak(Line::Failure, webhook(number));
        }
        assert_eq!(quiet.spoken.lock().unwrap().lines.len(), MAX_REMEMBERED);
        tokio::time::advance(30 * MINUTE).await;
        assert_eq!(quiet.may_speak(Line::Failure, webhook(1 << 64)), Some(0));
        assert!(quiet.spoken.lock().unwrap().lines.len() < 100, "what is old makes room");
    }
}
