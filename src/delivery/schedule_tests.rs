//! Each test walks one endpoint through its states, without a clock or a store.

use std::time::Duration;

use super::inbox::{Record, Ticket};
use super::schedule::{Claimed, Ended, MAX_CLAIM, Schedule, Step, Trouble, View};
use crate::delivery::testing::START;
use crate::model::rate::RateLimit;
use crate::model::time::UnixMillis;
use crate::routes::hold::Hold;
use crate::store::records::DisableReason;
use crate::store::{Order, Tried};

const NOTHING_HELD: View<'static> =
    View { hold: None, max_in_flight: 4, rate_limit: None, trouble: None, now: START };

/// It fails since START, and may be looked after from this second on.
fn spaced(next: u64, now: u64) -> View<'static> {
    let trouble = Some(Trouble { since: START, is_grave: true, next: at(next), is_asked: false });
    View { hold: Some(Hold::EndpointUnhealthy), trouble, now: at(now), ..NOTHING_HELD }
}

fn at(seconds: u64) -> UnixMillis {
    START + Duration::from_secs(seconds)
}

fn claim(limit: usize) -> Step {
    Step::Claim { limit, order: Order::LongestDue }
}

fn in_turn(limit: usize, first: Tried) -> Step {
    Step::Claim { limit, order: Order::InTurn { first } }
}

fn look(first: Tried) -> Step {
    Step::Claim { limit: 1, order: Order::Look { first } }
}

fn failed(retry: Option<u64>) -> Ended {
    Ended::Failure { is_of_endpoint: true, retry: retry.map(at) }
}

fn claimed(
    schedule: &mut Schedule,
    view: &View<'_>,
    asked: usize,
    started: usize,
    next_due: Option<UnixMillis>,
) -> u64 {
    let (order, last) = (Order::LongestDue, (started > 0).then_some(Tried::Never));
    schedule.claimed(view, Claimed { asked, order, started, last, next_due })
}

fn ticket(round: u64) -> Ticket {
    Ticket { round, tried: Tried::Never }
}

/// The claim of a look, of one of this kind if there is any.
fn looked(
    schedule: &mut Schedule,
    view: &View<'_>,
    last: Option<Tried>,
    next_due: Option<UnixMillis>,
) -> u64 {
    let order = Order::Look { first: Tried::Never };
    let started = usize::from(last.is_some());
    schedule.claimed(view, Claimed { asked: 1, order, started, last, next_due })
}

fn record(schedule: &mut Schedule, view: &View<'_>, round: u64, ended: Ended) {
    let had_arrived = ended == Ended::Success;
    schedule.recorded(&Record { ended, had_arrived, bytes: 0, ticket: ticket(round), ends_by: 0 }, view);
}

/// One attempt from its claim to its record.
fn attempt(schedule: &mut Schedule, view: &View<'_>, ended: Ended) {
    let round = claimed(schedule, view, 1, 1, Some(view.now));
    if ended == Ended::Success {
        schedule.arrived(ticket(round), view);
    }
    record(schedule, view, round, ended);
}

#[test]
fn what_is_due_is_claimed_up_to_the_limit_and_each_end_frees_a_slot() {
    let mut schedule = Schedule::default();
    assert_eq!(schedule.step(&NOTHING_HELD), claim(4));
    claimed(&mut schedule, &NOTHING_HELD, 4, 4, Some(START));
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Rest);
    schedule.arrived(ticket(0), &NOTHING_HELD);
    assert_eq!(schedule.step(&NOTHING_HELD), claim(1), "before the outcome is recorded");
    record(&mut schedule, &NOTHING_HELD, 0, failed(Some(10)));
    assert_eq!(schedule.step(&NOTHING_HELD), claim(2));
    let wider = View { max_in_flight: 1000, ..NOTHING_HELD };
    assert_eq!(schedule.step(&wider), claim(MAX_CLAIM));
    let narrower = View { max_in_flight: 1, ..NOTHING_HELD };
    assert_eq!(schedule.step(&narrower), Step::Rest);
}

#[test]
fn what_is_due_later_is_waited_for_and_what_comes_meanwhile_is_not_missed() {
    let mut schedule = Schedule::default();
    claimed(&mut schedule, &NOTHING_HELD, 4, 0, Some(at(10)));
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Wait(at(10)));
    assert_eq!(schedule.step(&View { now: at(10), ..NOTHING_HELD }), claim(4));
    schedule.woken();
    assert_eq!(schedule.step(&NOTHING_HELD), claim(4));
    claimed(&mut schedule, &NOTHING_HELD, 4, 0, None);
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Done);
    attempt(&mut schedule, &NOTHING_HELD, Ended::Success);
    claimed(&mut schedule, &NOTHING_HELD, 4, 1, None);
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Rest);
    record(&mut schedule, &NOTHING_HELD, 0, failed(Some(20)));
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Wait(at(20)));
}

#[test]
fn unrecorded_outcomes_are_bounded() {
    let mut schedule = Schedule::default();
    let mut made = 0;
    while let Step::Claim { limit, .. } = schedule.step(&NOTHING_HELD) {
        claimed(&mut schedule, &NOTHING_HELD, limit, limit, Some(START));
        for _ in 0..limit {
            schedule.arrived(ticket(0), &NOTHING_HELD);
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
    claimed(&mut schedule, &view(0), 2, 1, None);
    schedule.arrived(ticket(0), &view(0));
    record(&mut schedule, &view(0), 0, Ended::Success);
    assert_eq!(schedule.step(&view(0)), Step::Wait(at(10)), "forgetting would allow a new burst");
    schedule.woken();
    assert_eq!(schedule.step(&view(1)), claim(1), "one of the burst was given back");
    claimed(&mut schedule, &view(1), 1, 1, Some(at(0)));
    assert_eq!(schedule.step(&view(2)), Step::Wait(at(10)));
    assert_eq!(schedule.step(&view(10)), claim(1));
    claimed(&mut schedule, &view(10), 1, 0, None);
    schedule.arrived(ticket(0), &view(10));
    record(&mut schedule, &view(10), 0, Ended::Success);
    assert_eq!(schedule.step(&view(20)), Step::Done);
}

#[test]
fn a_held_webhook_claims_nothing_and_goes_on_when_the_cause_is_gone() {
    for hold in [Hold::Paused, Hold::NotReady, Hold::Disabled(DisableReason::Gone)] {
        let held = View { hold: Some(hold), ..NOTHING_HELD };
        let mut schedule = Schedule::default();
        claimed(&mut schedule, &NOTHING_HELD, 4, 1, None);
        assert_eq!(schedule.step(&held), Step::Rest, "the attempt under way ends");
        schedule.arrived(ticket(0), &held);
        record(&mut schedule, &held, 0, Ended::Success);
        assert_eq!(schedule.step(&held), Step::Done);
        schedule.woken();
        assert_eq!(schedule.step(&held), Step::Done);
        assert_eq!(schedule.step(&NOTHING_HELD), claim(4), "without another wake");
    }
}

#[test]
fn while_attempts_are_spaced_one_at_a_time_looks_in_turn() {
    let mut schedule = Schedule::default();
    claimed(&mut schedule, &NOTHING_HELD, 4, 2, Some(START));
    for _ in 0..2 {
        assert_eq!(schedule.step(&spaced(10, 0)), Step::Rest, "those under way when it began");
        record(&mut schedule, &spaced(10, 0), 0, failed(Some(3600)));
    }
    assert_eq!(schedule.step(&spaced(10, 0)), Step::Wait(at(10)));
    schedule.woken();
    assert_eq!(schedule.step(&spaced(10, 1)), Step::Wait(at(10)), "new events do not hurry it");
    assert_eq!(schedule.step(&spaced(10, 10)), look(Tried::Before), "one that was never tried has failed");
    let round = looked(&mut schedule, &spaced(10, 10), Some(Tried::Before), Some(at(0)));
    assert_eq!(schedule.step(&spaced(10, 11)), Step::Rest, "one at a time");
    record(&mut schedule, &spaced(30, 12), round, failed(Some(3600)));
    assert_eq!(schedule.step(&spaced(30, 12)), Step::Wait(at(30)));
    assert_eq!(schedule.step(&spaced(30, 30)), look(Tried::Never));
}

#[test]
fn a_look_need_not_wait_for_what_is_due_later() {
    let mut schedule = Schedule::default();
    claimed(&mut schedule, &NOTHING_HELD, 4, 0, Some(at(3600)));
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Wait(at(3600)));
    assert_eq!(schedule.step(&spaced(0, 1)), look(Tried::Never));
    looked(&mut schedule, &spaced(0, 1), None, Some(at(90)));
    assert_eq!(schedule.step(&spaced(0, 1)), Step::Wait(at(90)), "all that waits was asked for");
    assert_eq!(schedule.step(&spaced(0, 90)), look(Tried::Never));
    looked(&mut schedule, &spaced(0, 90), None, None);
    assert_eq!(schedule.step(&spaced(0, 90)), Step::Done);
    schedule.woken();
    assert_eq!(schedule.step(&spaced(0, 90)), look(Tried::Never));
}

#[test]
fn a_changed_spec_starts_afresh() {
    let mut schedule = Schedule::new(spaced(0, 0).trouble);
    assert_eq!(schedule.step(&NOTHING_HELD), in_turn(1, Tried::Never));
    let round = claimed(&mut schedule, &NOTHING_HELD, 1, 1, Some(START));
    schedule.spec_changed();
    assert_eq!(schedule.step(&NOTHING_HELD), claim(3));
    record(&mut schedule, &NOTHING_HELD, round, failed(None));
    assert_eq!(schedule.step(&NOTHING_HELD), claim(4), "what began by the old spec says nothing");
}

#[test]
fn who_begins_at_an_endpoint_that_fails_begins_with_one() {
    let trouble = Trouble { since: START, is_grave: true, next: START, is_asked: false };
    let mut schedule = Schedule::new(Some(trouble));
    assert_eq!(schedule.step(&NOTHING_HELD), in_turn(1, Tried::Never));
    let mut schedule = Schedule::new(Some(Trouble { is_grave: false, ..trouble }));
    assert_eq!(schedule.step(&NOTHING_HELD), claim(4));
}

#[test]
fn after_an_attempt_arrived_the_load_rises_by_rounds_of_success() {
    let view = View { max_in_flight: 10, ..NOTHING_HELD };
    let mut schedule = Schedule::default();
    schedule.step(&spaced(0, 0));
    attempt(&mut schedule, &spaced(0, 0), Ended::Success);
    let mut rounds = Vec::new();
    for _ in 0..6 {
        let Step::Claim { limit, .. } = schedule.step(&view) else { panic!("no claim") };
        rounds.push(limit);
        let round = claimed(&mut schedule, &view, limit, limit, Some(START));
        assert_eq!(schedule.step(&view), Step::Rest);
        for _ in 0..limit {
            schedule.arrived(ticket(round), &view);
            record(&mut schedule, &view, round, Ended::Success);
        }
    }
    assert_eq!(rounds, [1, 2, 4, 8, 10, 10]);
}

#[test]
fn a_window_is_remembered_for_a_minute_of_silence() {
    let mut schedule = Schedule::default();
    schedule.step(&spaced(0, 0));
    attempt(&mut schedule, &spaced(0, 0), Ended::Success);
    assert_eq!(schedule.step(&NOTHING_HELD), in_turn(1, Tried::Before));
    claimed(&mut schedule, &NOTHING_HELD, 1, 0, None);
    assert_eq!(schedule.step(&NOTHING_HELD), Step::Wait(at(60)));
    assert_eq!(schedule.step(&View { now: at(60), ..NOTHING_HELD }), Step::Done);
    let set_back = View { now: START - Duration::from_hours(24), ..NOTHING_HELD };
    assert_eq!(schedule.step(&set_back), Step::Done, "a clock that was set keeps nobody");
}

#[test]
fn what_failed_meanwhile_is_tried_early_until_none_is_left() {
    let mut schedule = Schedule::default();
    schedule.step(&spaced(7, 7));
    attempt(&mut schedule, &spaced(7, 7), Ended::Success);
    let view = View { now: at(8), ..NOTHING_HELD };
    assert_eq!(schedule.step(&view), in_turn(1, Tried::Before), "what is due goes first");
    claimed(&mut schedule, &view, 1, 0, Some(at(3600)));
    let order = Order::Early { from: START, to: at(8) };
    let early = Step::Claim { limit: 1, order };
    for _ in 0..3 {
        assert_eq!(schedule.step(&view), early);
        let some =
            Claimed { asked: 1, order, started: 1, last: Some(Tried::Before), next_due: Some(at(3600)) };
        let round = schedule.claimed(&view, some);
        record(&mut schedule, &view, round, Ended::Failure { is_of_endpoint: false, retry: Some(at(3600)) });
    }
    assert_eq!(schedule.step(&view), early);
    schedule.claimed(&view, Claimed { asked: 1, order, started: 0, last: None, next_due: Some(at(3600)) });
    assert_eq!(schedule.step(&view), Step::Wait(at(3600)));
}

#[test]
fn an_attempt_that_was_lost_frees_its_slot_and_is_looked_for_again() {
    let mut schedule = Schedule::default();
    claimed(&mut schedule, &NOTHING_HELD, 4, 1, None);
    record(&mut schedule, &NOTHING_HELD, 0, Ended::Unknown);
    assert_eq!((schedule.under_way(), schedule.step(&NOTHING_HELD)), (0, claim(4)));
    claimed(&mut schedule, &NOTHING_HELD, 4, 1, None);
    schedule.arrived(ticket(0), &NOTHING_HELD);
    let lost = Record { ended: Ended::Unknown, had_arrived: true, bytes: 0, ticket: ticket(0), ends_by: 0 };
    schedule.recorded(&lost, &NOTHING_HELD);
    assert_eq!((schedule.under_way(), schedule.step(&NOTHING_HELD)), (0, claim(4)));
}

#[test]
fn where_first_attempts_always_fail_they_say_nothing() {
    let view = |seconds| View { max_in_flight: 64, now: at(seconds), ..NOTHING_HELD };
    let end = |schedule: &mut Schedule, seconds, tried, ended| {
        let round = claimed(schedule, &view(seconds), 1, 1, Some(view(seconds).now));
        let had_arrived = ended == Ended::Success;
        let ticket = Ticket { round, tried };
        if had_arrived {
            schedule.arrived(ticket, &view(seconds));
        }
        schedule.recorded(&Record { ended, had_arrived, bytes: 0, ticket, ends_by: 0 }, &view(seconds));
    };
    let mut schedule = Schedule::default();
    for _ in 0..100 {
        assert!(!schedule.is_bound_to_fail(Tried::Never, at(0)));
        end(&mut schedule, 0, Tried::Never, failed(Some(10)));
    }
    assert_eq!(schedule.window(&view(0)), 1);
    end(&mut schedule, 10, Tried::Before, Ended::Success);
    for _ in 0..100 {
        assert!(schedule.is_bound_to_fail(Tried::Never, at(20)));
        end(&mut schedule, 20, Tried::Never, failed(Some(30)));
        end(&mut schedule, 20, Tried::Before, Ended::Success);
    }
    assert!(!schedule.is_bound_to_fail(Tried::Before, at(20)));
    assert!(schedule.is_bound_to_fail(Tried::Never, at(619)));
    assert!(!schedule.is_bound_to_fail(Tried::Never, at(620)), "it has an end");
    assert!(!schedule.is_bound_to_fail(Tried::Never, START), "also if the clock was set back");
    for _ in 0..3 {
        assert!(schedule.is_bound_to_fail(Tried::Never, at(20)));
        end(&mut schedule, 20, Tried::Before, failed(Some(30)));
    }
    assert!(!schedule.is_bound_to_fail(Tried::Never, at(20)), "retries fail as well");
    end(&mut schedule, 30, Tried::Before, Ended::Success);
    assert!(schedule.is_bound_to_fail(Tried::Never, at(30)));
    end(&mut schedule, 30, Tried::Never, Ended::Success);
    assert!(!schedule.is_bound_to_fail(Tried::Never, at(30)), "one has arrived");
}

#[test]
fn who_asked_for_time_gets_the_load_of_before() {
    let mut schedule = Schedule::default();
    let trouble = Trouble { since: START, is_grave: true, next: at(5), is_asked: true };
    let asked = |now| View { trouble: Some(trouble), now: at(now), ..spaced(5, now) };
    assert_eq!(schedule.step(&asked(0)), Step::Wait(at(5)));
    assert_eq!(schedule.step(&asked(5)), look(Tried::Never));
    looked(&mut schedule, &asked(5), Some(Tried::Never), Some(at(0)));
    schedule.arrived(ticket(0), &asked(5));
    record(&mut schedule, &asked(5), 0, Ended::Success);
    assert_eq!(schedule.step(&View { now: at(5), ..NOTHING_HELD }), claim(4));
}
