//! A window beside receivers that are simulated here, a thousandth of a second at a time.

use std::collections::VecDeque;
use std::time::Duration;

use super::congestion::{Took, Window};
use crate::delivery::testing::START;
use crate::model::time::UnixMillis;

const MOST: usize = 64;

/// What a receiver does with an attempt: after so many milliseconds, this.
type Receiver<'a> = dyn FnMut(&At) -> (u64, Took) + 'a;

/// An attempt begins.
struct At {
    count: u64,
    /// At the receiver, this one counted.
    busy: usize,
}

#[derive(Debug, Default)]
struct Seen {
    arrived: u64,
    failed: u64,
    peak: usize,
}

struct World {
    window: Window,
    millis: u64,
    count: u64,
    under_way: VecDeque<(u64, u64, Took, bool)>,
}

impl World {
    fn new() -> Self {
        Self { window: Window::default(), millis: 0, count: 0, under_way: VecDeque::new() }
    }

    fn now(&self) -> UnixMillis {
        START + Duration::from_millis(self.millis)
    }

    /// There is always something to send.
    fn run(&mut self, millis: u64, receiver: &mut Receiver<'_>) -> Seen {
        let mut seen = Seen::default();
        for _ in 0..millis {
            self.millis += 1;
            for _ in 0..self.under_way.len() {
                let Some((ends, round, took, busy)) = self.under_way.pop_front() else { break };
                if ends > self.millis {
                    self.under_way.push_back((ends, round, took, busy));
                    continue;
                }
                seen.arrived += u64::from(took == Took::Yes);
                seen.failed += u64::from(took == Took::No);
                let now = self.now();
                self.window.ended(round, took, self.under_way.len(), MOST, now);
            }
            while self.under_way.len() < self.window.size(MOST) {
                self.count += 1;
                let busy = 1 + self.under_way.iter().filter(|(.., busy)| *busy).count();
                let (takes, took) = receiver(&At { count: self.count, busy });
                let round = self.window.began(self.under_way.len() + 1);
                self.under_way.push_back((self.millis + takes.max(1), round, took, took == Took::Yes));
            }
            seen.peak = seen.peak.max(self.under_way.len());
        }
        seen
    }

    fn size(&self) -> usize {
        self.window.size(MOST)
    }
}

/// The same in each run, 0..1000.
fn chance(count: u64) -> u64 {
    let mix = count.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mix ^ (mix >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) % 1000
}

fn fails(per_mille: u64) -> impl FnMut(&At) -> (u64, Took) {
    move |at| (100, if chance(at.count) < per_mille { Took::No } else { Took::Yes })
}

#[test]
fn nothing_is_known_at_first_and_success_changes_nothing() {
    let mut world = World::new();
    let seen = world.run(1000, &mut fails(0));
    assert_eq!((seen.peak, seen.failed), (MOST, 0));
    assert!(!world.window.is_limited());
}

#[test]
fn failures_by_chance_leave_nearly_the_whole_window() {
    for (per_mille, tenths) in [(10, 8), (50, 8), (100, 8), (300, 8), (400, 8), (500, 7)] {
        for begin in [0, 1 << 20, 1 << 30] {
            let mut world = World { count: begin, ..World::new() };
            world.run(3000, &mut fails(per_mille));
            let seen = world.run(60_000, &mut fails(per_mille));
            let most = 60_000 / 100 * MOST as u64 * (1000 - per_mille) / 1000;
            assert!(seen.arrived * 10 >= most * tenths, "{per_mille}: {} of {most}", seen.arrived);
        }
    }
}

#[test]
fn when_nearly_all_fails_the_window_falls_to_one_and_not_to_nothing() {
    for per_mille in [990, 1000] {
        let mut world = World::new();
        let seen = world.run(1000, &mut fails(per_mille));
        assert_eq!(world.size(), 1, "{per_mille}");
        assert!(seen.failed < 200, "{seen:?}");
        world.run(60_000, &mut fails(per_mille));
        assert!(world.size() <= 2, "{per_mille}");
    }
}

#[test]
fn one_cut_for_what_was_under_way_together() {
    let mut window = Window::default();
    let rounds: Vec<_> = (1..=MOST).map(|in_flight| window.began(in_flight)).collect();
    for (ended, round) in rounds.iter().enumerate() {
        window.ended(*round, Took::No, MOST - ended - 1, MOST, START);
        assert!(window.size(MOST) >= MOST / 4, "after {ended}");
    }
    assert_eq!(window.size(MOST), MOST / 4);
}

#[test]
fn an_endpoint_that_takes_eight_gets_eight_however_it_refuses_more() {
    for (what, takes) in [("hangs", 15_000), ("answers 503", 1)] {
        let receiver = |at: &At| if at.busy > 8 { (takes, Took::No) } else { (100, Took::Yes) };
        let mut world = World::new();
        let start = world.run(60_000, &mut |at: &At| receiver(at));
        assert!(start.failed < 200, "{what}: {start:?}");
        let seen = world.run(600_000, &mut |at: &At| receiver(at));
        assert!(seen.arrived >= 48_000 * 8 / 10, "{what}: {seen:?}");
        assert!(seen.failed * 100 <= seen.arrived, "{what}: {seen:?}");
    }
}

#[test]
fn it_finds_more_when_the_endpoint_takes_more() {
    let takes = |most: usize| move |at: &At| if at.busy > most { (1, Took::No) } else { (100, Took::Yes) };
    let mut world = World::new();
    world.run(60_000, &mut takes(8));
    assert!(world.size() <= 10, "{}", world.size());
    world.run(60_000, &mut takes(1000));
    assert_eq!(world.size(), MOST);
}

#[test]
fn after_a_restart_it_doubles_with_each_round_of_success() {
    let mut world = World::new();
    world.window.restart(0);
    let mut sizes = Vec::new();
    world.run(1, &mut fails(0));
    for _ in 0..7 {
        sizes.push(world.size());
        world.run(100, &mut fails(0));
    }
    assert_eq!(sizes, [1, 2, 4, 8, 16, 32, 64]);
}

#[test]
fn what_says_nothing_of_the_endpoint_changes_nothing() {
    let mut world = World::new();
    let refuses = |at: &At| (10, if at.count.is_multiple_of(20) { Took::Unsaid } else { Took::Yes });
    world.run(10_000, &mut |at: &At| refuses(at));
    assert!(!world.window.is_limited());
    world.run(10_000, &mut |_: &At| (10, Took::Unsaid));
    assert!(!world.window.is_limited());
}

#[test]
fn an_outage_between_failures_by_chance_is_noticed_and_its_end_too() {
    let mut world = World::new();
    world.run(10_000, &mut fails(500));
    world.run(2000, &mut fails(1000));
    assert_eq!(world.size(), 1);
    let seen = world.run(10_000, &mut fails(500));
    assert!(seen.peak > MOST / 2, "{seen:?}");
}
