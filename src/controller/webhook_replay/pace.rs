//! How many deliveries a replay puts among those that wait, and when each is due. Pure.
//!
//! What waits is bounded, so that a deletion has little to take back, and the Webhooks of one replay do not wait for
//! each other: one that holds its deliveries gets a few, and no more until those have ended.

use std::time::Duration;

use crate::model::ids::WebhookUid;
use crate::model::rate::{Meter, RateLimit};
use crate::model::time::UnixMillis;

/// Deliveries of one Webhook that wait at most, while it takes them.
const WINDOW: usize = 256;
/// Deliveries of one Webhook that wait at most, while it holds them.
const HELD_WINDOW: usize = 16;
/// More are put once there is room for so many (or nothing waits), so that each commit is worth it.
const ROOM: usize = 64;
/// Deliveries of one replay that wait at most at Webhooks that take them.
const TOTAL: usize = 1024;
/// What a rate limit lets start within this time is put at once, each due at its own time.
const AHEAD: Duration = Duration::from_millis(500);

/// One Webhook of a replay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub(super) webhook: WebhookUid,
    /// Deliveries that wait.
    pub(super) waiting: usize,
    /// Whether the Webhook holds them.
    pub(super) is_held: bool,
    /// Whether there are more to put.
    pub(super) has_more: bool,
}

/// How a replay is paced, from one look to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    meter: Meter,
    /// How far it is planned.
    until: UnixMillis,
    turn: usize,
}

impl Pace {
    /// What to put now: when the deliveries of each Webhook are due.
    pub(super) fn plan(
        &mut self,
        lanes: &[Lane],
        rate: Option<&RateLimit>,
        now: UnixMillis,
    ) -> Vec<(WebhookUid, Vec<UnixMillis>)> {
        let mut rooms = rooms(lanes);
        let wanted = rooms.iter().map(|(_, room)| room).sum();
        let mut plan: Vec<_> = rooms.iter().map(|(webhook, _)| (*webhook, Vec::new())).collect();
        for due in self.dues(rate, now, wanted) {
            // In turn, so that a slow rate is shared by all.
            let count = rooms.len();
            let free = (0..count).map(|step| (self.turn + step) % count);
            let Some(next) =
                free.into_iter().find(|lane| rooms.get(*lane).is_some_and(|(_, room)| *room > 0))
            else {
                break;
            };
            self.turn = next + 1;
            if let (Some((_, room)), Some((_, dues))) = (rooms.get_mut(next), plan.get_mut(next)) {
                *room -= 1;
                dues.push(due);
            }
        }
        plan.retain(|(_, dues)| !dues.is_empty());
        plan
    }

    fn dues(&mut self, rate: Option<&RateLimit>, now: UnixMillis, wanted: usize) -> Vec<UnixMillis> {
        let Some(rate) = rate else { return vec![now; wanted] };
        let end = now + AHEAD;
        // A clock that was set back holds nothing up.
        let mut at = if self.until <= end { self.until.max(now) } else { now };
        let mut dues = Vec::new();
        while dues.len() < wanted {
            let (taken, next) = self.meter.take(rate, at, wanted - dues.len());
            dues.extend(std::iter::repeat_n(at, taken));
            match next.filter(|next| *next <= end) {
                Some(next) => at = next.max(at),
                None => break,
            }
        }
        self.until = at;
        dues
    }

    /// Some of what was planned were not put.
    pub(super) fn give_back(&mut self, rate: Option<&RateLimit>, unused: usize) {
        if let Some(rate) = rate {
            self.meter.give_back(rate, unused);
        }
    }
}

fn rooms(lanes: &[Lane]) -> Vec<(WebhookUid, usize)> {
    let waiting: usize = lanes.iter().filter(|lane| !lane.is_held).map(|lane| lane.waiting).sum();
    let mut total = TOTAL.saturating_sub(waiting);
    let mut rooms = Vec::new();
    for lane in lanes.iter().filter(|lane| lane.has_more) {
        let window = if lane.is_held { HELD_WINDOW } else { WINDOW };
        let mut room = window.saturating_sub(lane.waiting);
        if lane.waiting > 0 && room < ROOM.min(window) {
            continue;
        }
        if !lane.is_held {
            room = room.min(total);
            total -= room;
        }
        if room > 0 {
            rooms.push((lane.webhook, room));
        }
    }
    rooms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fixtures::at;

    fn webhook(number: u8) -> WebhookUid {
        WebhookUid::from_bytes([number; 16])
    }

    fn lane(number: u8, waiting: usize, is_held: bool) -> Lane {
        Lane { webhook: webhook(number), waiting, is_held, has_more: true }
    }

    fn planned(pace: &mut Pace, lanes: &[Lane], rate: Option<&RateLimit>) -> Vec<(u8, usize)> {
        let plan = pace.plan(lanes, rate, at(0));
        plan.iter().map(|(webhook, dues)| (webhook.as_bytes()[0], dues.len())).collect()
    }

    #[test]
    fn what_waits_is_bounded_and_more_comes_when_it_is_worth_it() {
        for (sentence, lanes, expected) in [
            ("nothing waits", vec![lane(1, 0, false)], vec![(1, 256)]),
            ("nearly all wait", vec![lane(1, 200, false)], vec![]),
            ("a quarter is free", vec![lane(1, 192, false)], vec![(1, 64)]),
            ("nothing is left", vec![Lane { has_more: false, ..lane(1, 0, false) }], vec![]),
            ("held", vec![lane(1, 0, true)], vec![(1, 16)]),
            ("held, and some wait", vec![lane(1, 3, true)], vec![]),
            ("held since more were put", vec![lane(1, 200, true)], vec![]),
            ("one holds, another does not", vec![lane(1, 16, true), lane(2, 0, false)], vec![(2, 256)]),
            (
                "many",
                (1..=6).map(|number| lane(number, 0, false)).collect(),
                vec![(1, 256), (2, 256), (3, 256), (4, 256)],
            ),
        ] {
            assert_eq!(planned(&mut Pace::default(), &lanes, None), expected, "{sentence}");
        }
    }

    #[test]
    fn a_rate_spreads_what_is_due() {
        let rate = RateLimit { requests: 10, per: Duration::from_secs(1), burst: 2 };
        let mut pace = Pace::default();
        let mut dues = |now, back| {
            pace.give_back(Some(&rate), back);
            let plan = pace.plan(&[lane(1, 0, false)], Some(&rate), now);
            let dues = plan.into_iter().flat_map(|(_, dues)| dues);
            dues.map(|due| due.as_millis() - now.as_millis()).collect::<Vec<_>>()
        };
        let spread = [0, 0, 100, 200, 300, 400, 500];
        assert_eq!(dues(at(0), 0), spread);
        assert_eq!(dues(at(0), 0), [0_i64; 0]);
        assert_eq!(dues(at(0) + Duration::from_millis(250), 0), [350, 450]);
        assert_eq!(
            dues(at(0) + Duration::from_millis(250), 1),
            [450],
            "what was not put can be planned again"
        );
        assert_eq!(dues(at(9), 0), spread, "after a pause");
        assert_eq!(dues(at(1), 0), [100, 200, 300, 400, 500], "a clock that is set back holds nothing up");
    }

    #[test]
    fn a_slow_rate_is_shared_in_turn() {
        let rate = RateLimit { requests: 1, per: Duration::from_secs(1), burst: 1 };
        let lanes = [lane(1, 0, false), lane(2, 0, false), lane(3, 0, false)];
        let mut pace = Pace::default();
        let mut turns = Vec::new();
        for second in 0..4 {
            turns.extend(
                pace.plan(&lanes, Some(&rate), at(second)).iter().map(|(webhook, _)| webhook.as_bytes()[0]),
            );
        }
        assert_eq!(turns, [1, 2, 3, 1]);
    }
}
