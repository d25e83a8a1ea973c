//! Whose turn it is: at most 5 tests a minute are sent to one Webhook, the oldest first.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::ids::WebhookUid;
use crate::model::time::UnixMillis;
use crate::model::window::Window;

/// At most so many tests of one Webhook.
const WINDOW: Window = Window { limit: 5, per: Duration::from_mins(1) };

/// Starts of tests by Webhook and by the test's uid.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<WebhookUid, HashMap<String, UnixMillis>>>);

impl Turns {
    /// Takes a turn for `test`, if there is one. `started` are starts that the statuses tell (of an earlier process,
    /// too), `older` is how many older tests of this Webhook wait. Otherwise: when to ask again.
    pub(super) fn take(
        &self,
        webhook: WebhookUid,
        test: &str,
        started: impl IntoIterator<Item = (String, UnixMillis)>,
        older: usize,
        now: UnixMillis,
    ) -> Result<(), UnixMillis> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, known| {
            known.retain(|_, start| now.since(*start) < WINDOW.per);
            !known.is_empty()
        });
        let known = all.entry(webhook).or_default();
        for (test, start) in started {
            known.entry(test).or_insert(start);
        }
        let starts: Vec<UnixMillis> = known.values().copied().collect();
        if older < WINDOW.free(&starts, now) {
            known.insert(test.to_owned(), now);
            return Ok(());
        }
        Err(WINDOW.next(&starts, now).max(now + Duration::from_secs(1)))
    }

    /// The turn was not used.
    pub(super) fn give_back(&self, webhook: WebhookUid, test: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get_mut(&webhook) {
            known.remove(test);
            if known.is_empty() {
                all.remove(&webhook);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fixtures::{at, uid};

    fn none() -> [(String, UnixMillis); 0] {
        []
    }

    #[test]
    fn five_a_minute_and_the_sixth_waits_its_turn() {
        let turns = Turns::default();
        for number in 0..5 {
            assert_eq!(turns.take(uid(), &number.to_string(), none(), 0, at(number)), Ok(()));
        }
        assert_eq!(turns.take(uid(), "5", none(), 0, at(5)), Err(at(60)));
        let other = WebhookUid::from_bytes([9; 16]);
        assert_eq!(turns.take(other, "5", none(), 0, at(5)), Ok(()), "another Webhook has its own turns");
        assert_eq!(turns.take(uid(), "5", none(), 0, at(60)), Ok(()));
        assert_eq!(turns.take(uid(), "6", none(), 0, at(60)), Err(at(61)));
    }

    #[test]
    fn the_oldest_go_first() {
        let turns = Turns::default();
        assert_eq!(
            turns.take(uid(), "young", none(), 5, at(0)),
            Err(at(1)),
            "five older ones take the five turns"
        );
        assert_eq!(turns.take(uid(), "old", none(), 4, at(0)), Ok(()));
    }

    #[test]
    fn webhooks_without_a_test_in_the_last_minute_are_forgotten() {
        let turns = Turns::default();
        for number in 0..100 {
            let webhook = WebhookUid::from_bytes([number; 16]);
            assert_eq!(turns.take(webhook, "0", none(), 0, at(0)), Ok(()));
        }
        assert_eq!(turns.take(uid(), "0", none(), 0, at(60)), Ok(()));
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn starts_before_a_restart_count_once() {
        let turns = Turns::default();
        let told = || (0..4).map(|number| (number.to_string(), at(number)));
        assert_eq!(turns.take(uid(), "4", told(), 0, at(5)), Ok(()));
        assert_eq!(turns.take(uid(), "5", told(), 0, at(6)), Err(at(60)));
    }

    #[test]
    fn a_turn_that_was_not_used_is_given_back() {
        let turns = Turns::default();
        for number in 0..5 {
            assert_eq!(turns.take(uid(), &number.to_string(), none(), 0, at(0)), Ok(()));
        }
        turns.give_back(uid(), "3");
        assert_eq!(turns.take(uid(), "6", none(), 0, at(0)), Ok(()));
    }
}
