use super::*;

const START: UnixMillis = UnixMillis::from_millis(1_700_000_000_000);

fn at(millis: u64) -> UnixMillis {
    START + Duration::from_millis(millis)
}

const SAYS: Failing = Failing {
    kind: Kind::ServerErrors,
    generation: 4,
    window: 1,
    is_look: false,
    is_usual: false,
    retry_after: None,
    initial: Duration::from_secs(10),
    dice: 0,
};

const LOOK: Failing = Failing { is_look: true, ..SAYS };

fn failure(name: u8, began: u64, ended: u64, says: &Failing) -> Failure<'_> {
    let (began, ended) = (at(began), at(ended));
    Failure { name: DeliveryName::from_bytes([name; 16]), began, ended, last_success: None, says }
}

/// So many failures, one each second, of so many deliveries in turn.
fn failures(count: u64, deliveries: u8, says: &Failing) -> Option<Trouble> {
    let mut trouble = None;
    for number in 0..count {
        let name = u8::try_from(number).unwrap() % deliveries;
        trouble = Trouble::after_failure(trouble, &failure(name, number * 1000, number * 1000 + 1, says));
    }
    trouble
}

fn spaced(trouble: Option<&Trouble>) -> Option<&Spaced> {
    trouble.and_then(|trouble| trouble.spaced.as_ref())
}

#[test]
fn attempts_are_spaced_only_if_all_of_it_holds() {
    let wide = Failing { window: 2, ..SAYS };
    let refused = Failing { kind: Kind::Rejects, ..SAYS };
    let usual = Failing { is_usual: true, ..SAYS };
    for (what, trouble, expected) in [
        ("eight failures of three deliveries", failures(8, 3, &SAYS), true),
        ("of many", failures(8, 8, &SAYS), true),
        ("of two", failures(200, 2, &SAYS), false),
        ("seven", failures(7, 3, &SAYS), false),
        ("at a larger window", failures(100, 9, &wide), false),
        ("of the events", failures(100, 9, &refused), false),
        ("of first attempts, which always fail", failures(100, 9, &usual), false),
    ] {
        assert_eq!(spaced(trouble.as_ref()).is_some(), expected, "{what}");
    }
    let mut quick = None;
    for number in 0..100 {
        quick = Trouble::after_failure(quick, &failure(number, 10 * u64::from(number), 5000, &SAYS));
    }
    assert!(spaced(quick.as_ref()).is_some(), "five seconds after the first");
    let at_once = (0..100)
        .fold(None, |trouble, number| Trouble::after_failure(trouble, &failure(number, 4000, 4999, &SAYS)));
    assert!(spaced(at_once.as_ref()).is_none());
}

#[test]
fn a_look_that_fails_doubles_the_wait_to_a_minute() {
    let mut trouble = failures(8, 3, &SAYS);
    let mut now = at(7001);
    let mut waits = Vec::new();
    for number in 0..6 {
        let next = spaced(trouble.as_ref()).unwrap().next(now);
        waits.push(next.since(now).as_secs());
        now = next;
        let look = Failure { began: now, ended: now, ..failure(number, 0, 0, &LOOK) };
        let late = Failure { began: at(6000), ended: now, ..failure(number, 0, 0, &SAYS) };
        trouble = Trouble::after_failure(trouble, &late);
        trouble = Trouble::after_failure(trouble, &look);
    }
    assert_eq!(waits, [10, 20, 40, 60, 60, 60]);
}

#[test]
fn who_answers_again_is_looked_after_sooner() {
    let down = Failing { kind: Kind::Unreachable, ..SAYS };
    let mut trouble = failures(8, 3, &down);
    let mut waits = Vec::new();
    for (kind, began) in [
        (Kind::Unreachable, 20_000),
        (Kind::TimesOut, 40_000),
        (Kind::ServerErrors, 90_000),
        (Kind::ServerErrors, 110_000),
        (Kind::Unreachable, 130_000),
    ] {
        let says = Failing { kind, ..LOOK };
        trouble = Trouble::after_failure(trouble, &failure(1, began, began, &says));
        waits.push(spaced(trouble.as_ref()).unwrap().wait().as_secs());
    }
    assert_eq!(waits, [20, 40, 10, 20, 40]);
}

#[test]
fn jitter_only_shortens_and_initial_has_bounds() {
    for (initial, dice, millis) in
        [(10, 0, 10_000), (10, 255, 9000), (3600, 0, 60_000), (3600, 255, 54_000), (0, 0, 1000)]
    {
        let says = Failing { dice, initial: Duration::from_secs(initial), ..SAYS };
        let wait = spaced(failures(8, 3, &says).as_ref()).unwrap().wait();
        assert_eq!(wait, Duration::from_millis(millis), "{initial} {dice}");
    }
}

#[test]
fn a_success_ends_it_and_it_comes_again_sooner_until_there_are_eight() {
    let trouble = failures(9, 3, &SAYS).unwrap().after_success(at(90_000), at(90_001));
    assert!(spaced(trouble.as_ref()).is_none() && trouble.as_ref().unwrap().is_grave());
    let again = |mut trouble: Option<Trouble>, count: u8| {
        for name in 0..count {
            trouble = Trouble::after_failure(trouble, &failure(name, 60_000, 60_001, &SAYS));
        }
        trouble
    };
    assert!(spaced(again(trouble.clone(), 7).as_ref()).is_none());
    let relapse = again(trouble.clone(), 8);
    assert_eq!(spaced(relapse.as_ref()).unwrap().wait(), Duration::from_secs(20), "it goes on where it was");
    let mut well = trouble;
    for _ in 0..7 {
        well = well.and_then(|well| well.after_success(at(90_000), at(90_001)));
    }
    assert_eq!(well, None);
    assert_eq!(
        failures(7, 3, &SAYS).unwrap().after_success(at(90_000), at(90_001)),
        None,
        "attempts were never spaced"
    );
}

#[test]
fn a_rejection_makes_the_next_look_wait_for_nothing() {
    let refused = Failing { kind: Kind::Rejects, ..LOOK };
    let before = failures(8, 3, &SAYS);
    let trouble = Trouble::after_failure(before.clone(), &failure(9, 9000, 9001, &refused));
    assert_eq!(spaced(trouble.as_ref()).unwrap().next(at(9001)), at(9001));
    assert_eq!(trouble.as_ref().unwrap().failures, 8);
    let next = Trouble::after_failure(trouble, &failure(9, 9002, 9003, &LOOK));
    assert_eq!(
        spaced(next.as_ref()).unwrap().next(at(9003)),
        at(9003 + 20_000),
        "the others' wait is not forgotten"
    );
    let aside = Failing { kind: Kind::Rejects, ..SAYS };
    assert_eq!(Trouble::after_failure(before.clone(), &failure(9, 9000, 9001, &aside)), before);
}

#[test]
fn a_receiver_that_asks_for_time_gets_it_up_to_a_minute() {
    for (asked, secs) in [(5, 5), (60, 60), (86_400, 60)] {
        let says = Failing { retry_after: Some(Duration::from_secs(asked)), window: 64, ..SAYS };
        let mut trouble = None;
        for number in 0..64 {
            assert!(number < 8 || spaced(trouble.as_ref()).is_some(), "{number}");
            trouble = Trouble::after_failure(trouble, &failure(number, 0, 100, &says));
        }
        assert_eq!(spaced(trouble.as_ref()).unwrap().next(at(100)), at(100 + secs * 1000));
        let look = Failing { is_look: true, ..says };
        let again = Trouble::after_failure(trouble.clone(), &failure(1, 9000, 9000, &look));
        assert_eq!(
            spaced(again.as_ref()).unwrap().next(at(9000)),
            at(9000 + secs * 1000),
            "and not longer each time"
        );
        let trouble = trouble.unwrap();
        assert_eq!(trouble.clone().after_success(at(90), at(110)), Some(trouble.clone()), "it began before");
        assert_eq!(trouble.clone().after_success(at(100), at(110)), None, "then as before");
        let set_back = START - Duration::from_hours(1);
        assert_eq!(trouble.after_success(set_back, set_back), None, "a clock that was set back keeps nobody");
    }
}

#[test]
fn who_asks_for_time_while_others_arrive_gets_it_for_that_event_only() {
    let says = Failing { retry_after: Some(Duration::from_secs(5)), ..SAYS };
    for (success, expected) in [(None, true), (Some(0), true), (Some(1000), false), (Some(99_000), true)] {
        let mut failure = failure(1, 1000, 2000, &says);
        failure.last_success = success.map(at);
        let trouble = Trouble::after_failure(None, &failure);
        assert_eq!(spaced(trouble.as_ref()).is_some(), expected, "{success:?}");
    }
}

#[test]
fn another_spec_starts_afresh_and_an_old_one_says_nothing() {
    let before = failures(8, 3, &SAYS);
    let new = Failing { generation: 5, ..SAYS };
    let trouble = Trouble::after_failure(before, &failure(1, 9000, 9001, &new));
    let Some(Trouble { generation: 5, failures: 1, spaced: None, .. }) = trouble else {
        panic!("{trouble:?}")
    };
    assert_eq!(Trouble::after_failure(trouble.clone(), &failure(2, 9000, 9001, &SAYS)), trouble);
}

#[test]
fn a_clock_that_was_set_back_keeps_nobody() {
    let trouble = failures(8, 3, &SAYS);
    let spaced = spaced(trouble.as_ref()).unwrap();
    let (next, day) = (at(17_001), Duration::from_hours(24));
    assert_eq!(spaced.next(at(8000)), next);
    assert_eq!(spaced.next(next - day), next - day, "nobody decided to wait for a day");
    assert_eq!(spaced.next(next + day), next);
    let mut set_back = Trouble::after_failure(None, &failure(0, 0, 1, &SAYS));
    for number in 0..10_u8 {
        let began = START - day + Duration::from_secs(u64::from(number));
        let failure = Failure { began, ended: began, ..failure(number, 0, 0, &SAYS) };
        set_back = Trouble::after_failure(set_back, &failure);
    }
    assert!(set_back.unwrap().spaced.is_some());
}
