//! Each test walks one endpoint through its states, without a clock or a store.

use std::time::Duration;

use super::inbox::Record;
use super::schedule::{Ended, MAX_CLAIM, Schedule, Step, View};
use crate::delivery::testing::START;
use crate::model::ids::DeliveryName;
use crate::model::rate::RateLimit;
use crate::model::time::UnixMillis;
use crate::routes::hold::Hold;
use crate::store::records::DisableReason;

const NOTHING_HELD: View<'static> = View { hold: None, max_in_flight: 4, rate_limit: None, now: START };
const PROBING: View<'static> = View { hold: Some(Hold::EndpointUnhealthy), ..NOTHING_HELD };

fn name(number: u8) -> DeliveryName {
    DeliveryName::from_bytes([number; 16])
}

fn names(numbers: std::ops::Range<u8>) -> Vec<DeliveryName> {
    numbers.map(name).collect()
}

fn at(seconds: u64) -> UnixMillis {
    START + Duration::from_secs(seconds)
}

fn claim(limit: usize) -> Step {
    Step::Claim { limit, only: None }
}

fn only(number: u8) -> Step {
    Step::Claim { limit: 1, only: Some(name(number)) }
}

fn failed(pace: u64, retry: Option<u64>) -> Ended {
    Ended::Failure { pace: at(pace), retry: retry.map(at) }
}

fn record(schedule: &mut Schedule, view: &View<'_>, number: u8, ended: Ended) {
    let had_arrived = ended == Ended::Success;
    schedule.recorded(&Record { name: name(number), ended, had_arrived, bytes: 0, ends_by: 0 }, view);
}

/// One attempt from its claim to its record.
fn attempt(schedule: &mut Schedule, view: &View<'_>, number: u8, ended: Ended) {
    schedule.claimed(view, 1, None, &[name(number)], Some(view.now));
    if ended == Ended::Success {
        schedule.arrived(view);
    }
    record(schedule, view, number, ended);
}

#[test]
fn what_is_due_is_claimed_up_to_the_limit_and_each_end_frees_a_slot() {
    let mut schedule = Schedule::default();
    assert_eq!(schedule.step(&NOTHING_HELD), claim(4));
    schedule.claimed(&NOTHING_HELD, 4, None, &names(0..4), Some(START));
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Rest);
    schedule.arrived(&NOTHING_HELD);
    assert_eq!(schedule.step(&NOTHING_HELD), claim(1), "before the outcome is recorded");
    record(&mut schedule, &NOTHING_HELD, 1, failed(10, Some(10)));
    assert_eq!(schedule.step(&NOTHING_HELD), claim(2));
    let wider = View { max_in_flight: 1000, ..NOTHING_HELD };
    assert_eq!(schedule.step(&wider), claim(MAX_CLAIM));
    let narrower = View { max_in_flight: 1, ..NOTHING_HELD };
    assert_eq!(schedule.step(&narrower), Step::Rest);
}

#[test]
fn what_is_due_later_is_waited_for_and_what_comes_meanwhile_is_not_missed() {
    let mut schedule = Schedule::default();
    schedule.claimed(&NOTHING_HELD, 4, None, &[], Some(at(10)));
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Wait(at(10)));
    assert_eq!(schedule.step(&View { now: at(10), ..NOTHING_HELD }), claim(4));
    schedule.woken();
    assert_eq!(schedule.step(&NOTHING_HELD), claim(4));
    schedule.claimed(&NOTHING_HELD, 4, None, &[], None);
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Done);
    attempt(&mut schedule, &NOTHING_HELD, 1, Ended::Success);
    schedule.claimed(&NOTHING_HELD, 4, None, &names(2..3), None);
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Rest);
    record(&mut schedule, &NOTHING_HELD, 2, failed(10, Some(20)));
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Wait(at(20)));
}

#[test]
fn unrecorded_outcomes_are_bounded() {
    let mut schedule = Schedule::default();
    let mut made = 0;
    while let Step::Claim { limit, .. } = schedule.step(&NOTHING_HELD) {
        schedule.claimed(&NOTHING_HELD, limit, None, &vec![name(0); limit], Some(START));
        for _ in 0..limit {
            schedule.arrived(&NOTHING_HELD);
        }
        made += limit;
        assert!(made < 1000, "no end");
    }
    assert_eq!(made, 2 * 4 + 64);
    record(&mut schedule, &NOTHING_HELD, 0, Ended::Success);
    assert_eq!(schedule.step(&NOTHING_HELD), claim(1));
}

#[test]
fn the_rate_is_counted_in_attempts_that_start() {
    let rate = RateLimit { requests: 1, per: Duration::from_secs(10), burst: 2 };
    let view = |seconds| View { rate_limit: Some(&rate), now: at(seconds), ..NOTHING_HELD };
    let mut schedule = Schedule::default();
    assert_eq!(schedule.step(&view(0)), claim(2));
    schedule.claimed(&view(0), 2, None, &names(0..1), None);
    schedule.arrived(&view(0));
    record(&mut schedule, &view(0), 0, Ended::Success);
    assert_eq!(schedule.step(&view(0)), Step::Wait(at(10)), "forgetting would allow a new burst");
    schedule.woken();
    assert_eq!(schedule.step(&view(1)), claim(1), "one of the burst was given back");
    schedule.claimed(&view(1), 1, None, &names(1..2), Some(at(0)));
    assert_eq!(schedule.step(&view(2)), Step::Wait(at(10)));
    assert_eq!(schedule.step(&view(10)), claim(1));
    schedule.claimed(&view(10), 1, None, &[], None);
    schedule.arrived(&view(10));
    record(&mut schedule, &view(10), 1, Ended::Success);
    assert_eq!(schedule.step(&view(20)), Step::Done);
}

#[test]
fn a_held_webhook_claims_nothing_and_goes_on_when_the_cause_is_gone() {
    for hold in [Hold::Paused, Hold::NotReady, Hold::Disabled(DisableReason::Gone)] {
        let held = View { hold: Some(hold), ..NOTHING_HELD };
        let mut schedule = Schedule::default();
        schedule.claimed(&NOTHING_HELD, 4, None, &names(0..1), None);
        assert_eq!(schedule.step(&held), Step::Rest, "the attempt under way ends");
        schedule.arrived(&held);
        record(&mut schedule, &held, 0, Ended::Success);
        assert_eq!(schedule.step(&held), Step::Done);
        schedule.woken();
        assert_eq!(schedule.step(&held), Step::Done);
        assert_eq!(schedule.step(&NOTHING_HELD), claim(4), "without another wake");
    }
}

#[test]
fn one_delivery_probes_on_its_own_retries_until_it_ends_and_then_the_next() {
    let mut schedule = Schedule::default();
    schedule.claimed(&NOTHING_HELD, 4, None, &names(1..3), Some(START));
    assert_eq!(schedule.step(&PROBING), Step::Rest, "those under way when it opened");
    for number in 1..3 {
        assert_eq!(schedule.step(&PROBING), Step::Rest);
        record(&mut schedule, &PROBING, number, failed(10, Some(3600)));
    }
    let later = |seconds| View { now: at(seconds), ..PROBING };
    assert_eq!(schedule.step(&later(0)), Step::Wait(at(10)));
    schedule.woken();
    assert_eq!(schedule.step(&later(1)), Step::Wait(at(10)), "new events do not hurry it");
    assert_eq!(schedule.step(&later(10)), claim(1));
    schedule.claimed(&later(10), 1, None, &names(7..8), Some(at(0)));
    assert_eq!(schedule.step(&later(11)), Step::Rest, "one at a time");
    record(&mut schedule, &later(12), 7, failed(72, Some(72)));
    assert_eq!(schedule.step(&later(12)), Step::Wait(at(72)));
    assert_eq!(schedule.step(&later(72)), only(7));
    schedule.claimed(&later(72), 1, Some(name(7)), &names(7..8), None);
    record(&mut schedule, &later(73), 7, failed(133, None));
    assert_eq!(schedule.step(&later(100)), Step::Wait(at(133)), "the next one waits as long");
    assert_eq!(schedule.step(&later(133)), claim(1));
}

#[test]
fn a_probe_that_is_gone_makes_room_for_the_next_and_none_left_is_the_end() {
    let mut schedule = Schedule::default();
    assert_eq!(schedule.step(&PROBING), claim(1), "after a restart the longest due one probes at once");
    attempt(&mut schedule, &PROBING, 7, failed(60, Some(60)));
    let later = View { now: at(60), ..PROBING };
    assert_eq!(schedule.step(&later), only(7));
    schedule.claimed(&later, 1, Some(name(7)), &[], None);
    assert_eq!(schedule.step(&later), claim(1));
    schedule.claimed(&later, 1, None, &[], Some(at(90)));
    assert_eq!(schedule.step(&later), Step::Wait(at(90)));
    schedule.claimed(&later, 1, None, &[], None);
    assert_eq!(schedule.step(&later), Step::Done);
}

#[test]
fn the_pace_of_probes_outlives_the_last_delivery() {
    let mut schedule = Schedule::default();
    schedule.step(&PROBING);
    attempt(&mut schedule, &PROBING, 1, failed(60, None));
    schedule.claimed(&PROBING, 1, None, &[], None);
    assert_eq!(schedule.step(&PROBING), Step::Wait(at(60)));
}

#[test]
fn a_changed_spec_is_probed_at_once_by_the_same_delivery() {
    let mut schedule = Schedule::default();
    schedule.step(&PROBING);
    attempt(&mut schedule, &PROBING, 1, failed(60, Some(60)));
    assert_eq!(schedule.step(&PROBING), Step::Wait(at(60)));
    schedule.spec_changed();
    assert_eq!(schedule.step(&PROBING), only(1));
}

#[test]
fn after_a_probe_arrived_the_load_rises_by_rounds_of_success() {
    let view = View { max_in_flight: 10, ..NOTHING_HELD };
    let mut schedule = Schedule::default();
    schedule.step(&PROBING);
    attempt(&mut schedule, &PROBING, 0, Ended::Success);
    let mut rounds = Vec::new();
    for _ in 0..6 {
        let Step::Claim { limit, only: None } = schedule.step(&view) else { panic!("no claim") };
        rounds.push(limit);
        schedule.claimed(&view, limit, None, &vec![name(0); limit], Some(START));
        assert_eq!(schedule.step(&view), Step::Rest);
        for _ in 0..limit {
            schedule.arrived(&view);
            record(&mut schedule, &view, 0, Ended::Success);
        }
    }
    assert_eq!(rounds, [1, 2, 4, 8, 10, 10]);
}

#[test]
fn a_failure_halves_the_rise_and_a_minute_of_silence_ends_it() {
    let view = View { max_in_flight: 64, ..NOTHING_HELD };
    let mut schedule = Schedule::default();
    schedule.step(&PROBING);
    attempt(&mut schedule, &PROBING, 0, Ended::Success);
    for (success, next) in [(true, 2), (true, 2), (true, 4), (false, 2), (false, 1), (false, 1), (true, 2)] {
        schedule.step(&view);
        attempt(&mut schedule, &view, 0, if success { Ended::Success } else { failed(1, None) });
        assert_eq!(schedule.step(&view), claim(next));
    }
    schedule.claimed(&view, 2, None, &[], None);
    assert_eq!(schedule.step(&view), Step::Wait(at(60)));
    assert_eq!(schedule.step(&View { now: at(60), ..view }), Step::Done);
}

#[test]
fn an_attempt_that_was_lost_frees_its_slot_and_is_looked_for_again() {
    let mut schedule = Schedule::default();
    schedule.claimed(&NOTHING_HELD, 4, None, &names(0..1), None);
    record(&mut schedule, &NOTHING_HELD, 0, Ended::Unknown);
    assert_eq!((schedule.under_way(), schedule.step(&NOTHING_HELD)), (0, claim(4)));
    schedule.claimed(&NOTHING_HELD, 4, None, &names(0..1), None);
    schedule.arrived(&NOTHING_HELD);
    schedule.recorded(
        &Record { name: name(0), ended: Ended::Unknown, had_arrived: true, bytes: 0, ends_by: 0 },
        &NOTHING_HELD,
    );
    assert_eq!((schedule.under_way(), schedule.step(&NOTHING_HELD)), (0, claim(4)));
}
