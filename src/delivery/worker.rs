//! The worker of one endpoint: lives while something is to be done for it, or waits for a time.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::attempt::{self, Task};
use super::engine::Shared;
use super::inbox::{Happening, Inbox, Slot, Ticket};
use super::limits::{Busy, Permit};
use super::quiet::Line;
use super::schedule::{self, Schedule, Step, Trouble, View};
use crate::model::causes::chain;
use crate::model::ids::WebhookUid;
use crate::model::time::UnixMillis;
use crate::model::trouble::Spaced;
use crate::routes::hold::{Hold, hold, trouble};
use crate::routes::{Endpoint, Route};
use crate::store::{self, Change, ClaimRequest, Claimed, Order, State, Tried};

/// Between two claims that the store refused, at first and at most.
const CLAIM_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What takes a worker longer than this, beside waiting, takes too long.
const SLACK: Duration = Duration::from_mins(1);

/// Works for one Webhook.
pub(super) struct Worker {
    shared: Arc<Shared>,
    webhook: WebhookUid,
    inbox: Arc<Inbox>,
    schedule: Schedule,
    bytes: usize,
    /// How many attempts under way must have ended by which second since the engine started.
    ends: BTreeMap<u64, usize>,
    busy: Option<Busy>,
    claim_again: Duration,
    generation: Option<i64>,
}

/// The Webhook as it is at this moment.
struct Now {
    route: Arc<Route>,
    hold: Option<Hold>,
    trouble: Option<Trouble>,
}

impl Now {
    fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.route.endpoint.as_ref().ok()
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, webhook: WebhookUid, inbox: Arc<Inbox>) -> Self {
        let (claim_again, _) = CLAIM_AGAIN;
        let ends = BTreeMap::new();
        let schedule = Schedule::default();
        let mut worker = Self {
            shared,
            webhook,
            inbox,
            schedule,
            bytes: 0,
            ends,
            busy: None,
            claim_again,
            generation: None,
        };
        worker.schedule = Schedule::new(worker.look().and_then(|now| now.trouble));
        worker
    }

    /// Runs until there is nothing more to do. While the engine stops, or the Webhook is gone, nothing is
    /// claimed, and what is under way comes to its end.
    pub(super) async fn run(mut self) {
        loop {
            self.enable_by_new_spec().await;
            let now = self.look();
            self.listen(now.as_ref());
            let step = match &now {
                Some(now) => self.step(now),
                None => self.schedule.finish(),
            };
            if !matches!(step, Step::Claim { .. }) {
                // Nothing is asked of the store now, so nothing is refused.
                self.inbox.stuck_since.store(0, Ordering::Relaxed);
            }
            match (step, &now) {
                (Step::Claim { limit, order }, Some(now)) => self.claim(now, limit, order).await,
                (Step::Wait(until), Some(_)) => self.wait(until.since(self.shared.clock.now())).await,
                (Step::Done, _) => {
                    self.shared.expire(self.webhook, || self.expect(SLACK)).await;
                    if self.shared.retire(self.webhook, &self.inbox) {
                        return;
                    }
                }
                (Step::Rest, _) | (Step::Claim { .. } | Step::Wait(_), None) => self.rest(now.as_ref()).await,
            }
        }
    }

    /// What an older spec was disabled for says nothing about this one: its failures in a row are forgotten, or
    /// the first attempt by the new spec would disable it again.
    async fn enable_by_new_spec(&self) {
        let generation = self.shared.table.get(self.webhook).map_or(0, |route| route.generation);
        let summary = self.shared.store.summary(self.webhook);
        let disabled = summary.as_ref().and_then(|summary| summary.disabled.as_ref());
        if disabled.is_none_or(|disabled| disabled.generation >= generation) {
            return;
        }
        self.expect(SLACK);
        if let Err(error) = self.shared.store.update(self.webhook, Change::Enable).await
            && let Some(unlogged) = self.may_speak(Line::NotEnabled)
        {
            warn!(webhook = %self.webhook, error = chain(&error), unlogged, "a new spec could not enable a disabled Webhook");
        }
    }

    /// None: it is gone, or the engine stops.
    fn look(&self) -> Option<Now> {
        if self.shared.stop.is_cancelled() {
            return None;
        }
        let route = self.shared.table.get(self.webhook)?;
        let summary = self.shared.store.summary(self.webhook);
        let hold = hold(&route, summary.as_deref());
        let trouble = trouble(&route, summary.as_deref()).map(|trouble| Trouble {
            since: trouble.ill_since,
            is_grave: trouble.is_grave(),
            next: trouble.spaced.as_ref().map_or_else(UnixMillis::default, |spaced| self.next_look(spaced)),
            is_asked: trouble.spaced.as_ref().is_some_and(Spaced::is_asked),
        });
        Some(Now { route, hold, trouble })
    }

    /// When the endpoint may be looked after. What fell due while the process was away is spread over as long as it
    /// waits between two looks, so that not all endpoints are looked after when it starts.
    fn next_look(&self, spaced: &Spaced) -> UnixMillis {
        let (now, began) = (self.shared.clock.now(), self.shared.began);
        let next = spaced.next(now);
        if next > began || began > now {
            return next;
        }
        let mix = |sum: u16, byte: &u8| sum.wrapping_mul(31).wrapping_add(u16::from(*byte));
        let place = self.webhook.as_bytes().iter().fold(0, mix).wrapping_mul(40_503);
        began + spaced.wait() * u32::from(place) / u32::from(u16::MAX)
    }

    fn view<'a>(&self, now: Option<&'a Now>) -> View<'a> {
        let endpoint = now.and_then(Now::endpoint);
        let share = self.shared.ceiling.share(self.schedule.in_flight(), self.bytes);
        View {
            hold: now.and_then(|now| now.hold),
            max_in_flight: endpoint.map_or(0, |endpoint| endpoint.max_in_flight).min(share),
            rate_limit: endpoint.and_then(|endpoint| endpoint.rate_limit.as_ref()),
            trouble: now.and_then(|now| now.trouble),
            now: self.shared.clock.now(),
        }
    }

    /// Takes in what happened.
    fn listen(&mut self, now: Option<&Now>) {
        for happening in self.inbox.take() {
            match happening {
                Happening::Woken => self.schedule.woken(),
                Happening::Arrived { bytes, ticket } => {
                    let view = self.view(now);
                    self.schedule.arrived(ticket, &view);
                    self.bytes = self.bytes.saturating_sub(bytes);
                }
                Happening::Recorded(record) => {
                    let view = self.view(now);
                    self.schedule.recorded(&record, &view);
                    let bytes = if record.had_arrived { 0 } else { record.bytes };
                    self.bytes = self.bytes.saturating_sub(bytes);
                    self.ended(record.ends_by);
                }
            }
        }
        if self.schedule.in_flight() == 0 {
            self.busy = None;
        }
    }

    fn ended(&mut self, ends_by: u64) {
        if let Entry::Occupied(mut count) = self.ends.entry(ends_by) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn step(&mut self, now: &Now) -> Step {
        let before = self.generation.replace(now.route.generation);
        if before.is_some_and(|before| before != now.route.generation) {
            self.schedule.spec_changed();
        }
        let was_spaced = self.schedule.is_spaced();
        let view = self.view(Some(now));
        let step = self.schedule.step(&view);
        let webhook = &now.route.webhook;
        match (was_spaced, self.schedule.is_spaced()) {
            (false, true) => {
                if let Some(unlogged) = self.may_speak(Line::Unhealthy) {
                    info!(%webhook, unlogged, "unhealthy: one attempt at a time, at growing intervals");
                }
            }
            (true, false) if self.shared.quiet.was_unhealthy(self.webhook) => {
                info!(%webhook, "healthy again: the load rises from one");
            }
            (true, false | true) | (false, false) => {}
        }
        step
    }

    fn may_speak(&self, line: Line) -> Option<u64> {
        self.shared.quiet.may_speak(line, self.webhook)
    }

    async fn claim(&mut self, now: &Now, limit: usize, order: Order) {
        let Some(endpoint) = now.endpoint() else { return };
        let Some(mut reserved) = self.shared.ceiling.reserve(limit, self.schedule.in_flight()) else {
            // Something of its own is under way, whose end comes back here.
            return self.claimed_none(now, limit, order);
        };
        let lease = endpoint.timeout + self.shared.settings.lease_margin;
        let lease_ends = Instant::now() + lease;
        self.expect(SLACK);
        let request = ClaimRequest {
            webhook: self.webhook,
            now: self.shared.clock.now(),
            limit: reserved.count(),
            order,
            lease,
        };
        let claims = match self.shared.store.claim(request).await {
            Ok(claims) => claims,
            Err(error) => {
                drop(reserved);
                return self.refused(now, limit, order, &error).await;
            }
        };
        (self.claim_again, _) = CLAIM_AGAIN;
        self.inbox.stuck_since.store(0, Ordering::Relaxed);
        let deliveries = claims.deliveries;
        // The claim took time: what was paused, disabled, removed or stopped meanwhile is not sent.
        let live = self.look().filter(|live| live.hold == now.hold);
        let Some((live, endpoint)) = live.as_ref().and_then(|live| Some((live, live.endpoint()?))) else {
            drop(reserved);
            self.claimed_none(now, limit, order);
            return self.give_back(now, &deliveries).await;
        };
        let view = self.view(Some(live));
        let last = deliveries.last().map(|claimed| Tried::of(&claimed.delivery));
        let (started, next_due) = (deliveries.len(), claims.next_due);
        let claimed = schedule::Claimed { asked: limit, order, started, last, next_due };
        let round = self.schedule.claimed(&view, claimed);
        let (now, window) = (view.now, self.schedule.window(&view));
        let is_look = matches!(order, Order::Look { .. });
        let may_be_early = is_look || matches!(order, Order::Early { .. });
        for claimed in deliveries {
            let endpoint = Arc::clone(endpoint);
            let permit = reserved.start(claimed.event.data.len());
            let may_be_early = may_be_early && claimed.delivery.state == State::Retrying;
            let own_time = claimed.delivery.due.filter(|due| may_be_early && *due > now);
            let route = Arc::clone(&live.route);
            let ticket = Ticket { round, tried: Tried::of(&claimed.delivery) };
            let is_usual = self.schedule.is_bound_to_fail(ticket.tried, now);
            let task = Task { claimed, route, endpoint, is_look, own_time, is_usual, window, lease_ends };
            self.start(task, ticket, permit);
        }
    }

    /// Nothing of a claim begins; what there is is looked for again.
    fn claimed_none(&mut self, now: &Now, asked: usize, order: Order) {
        let view = self.view(Some(now));
        let none = schedule::Claimed { asked, order, started: 0, last: None, next_due: Some(view.now) };
        self.schedule.claimed(&view, none);
    }

    async fn refused(&mut self, now: &Now, limit: usize, order: Order, error: &store::Error) {
        self.claimed_none(now, limit, order);
        self.shared.is_stuck(&self.inbox);
        if let Some(unlogged) = self.may_speak(Line::NotClaimed) {
            warn!(webhook = %now.route.webhook, error = chain(error), unlogged, "cannot claim; trying again");
        }
        self.pause().await;
    }

    fn start(&mut self, task: Task, ticket: Ticket, permit: Permit) {
        let bytes = task.claimed.event.data.len();
        self.bytes += bytes;
        self.busy.get_or_insert_with(|| self.shared.ceiling.enter());
        let ends_by = self.shared.millis(task.lease_ends) / 1000 + 1;
        *self.ends.entry(ends_by).or_default() += 1;
        let slot = Slot::new(Arc::clone(&self.inbox), ticket, bytes, ends_by, permit);
        let attempt = attempt::run(Arc::clone(&self.shared), task, slot);
        self.shared.tasks.spawn(attempt);
    }

    async fn give_back(&self, now: &Now, deliveries: &[Claimed]) {
        let claims: Vec<_> = deliveries.iter().map(|claimed| (self.webhook, claimed.delivery.name)).collect();
        if claims.is_empty() {
            return;
        }
        if let Err(error) = self.shared.store.release(claims).await
            && let Some(unlogged) = self.may_speak(Line::NotReleased)
        {
            warn!(webhook = %now.route.webhook, error = chain(&error), unlogged, "claims were not given back; they expire");
        }
    }

    /// Waits out a refusal of the store, longer each time.
    async fn pause(&mut self) {
        self.expect(self.claim_again);
        tokio::select! {
            () = sleep(self.claim_again) => {}
            () = self.shared.stop.cancelled() => {}
        }
        let (_, longest) = CLAIM_AGAIN;
        self.claim_again = (self.claim_again * 2).min(longest);
    }

    async fn wait(&self, time: Duration) {
        self.expect(time);
        tokio::select! {
            () = self.inbox.changed() => {}
            () = sleep(time) => {}
            () = self.shared.stop.cancelled() => {}
        }
    }

    async fn rest(&self, now: Option<&Now>) {
        // As long as the claims of what is under way hold.
        self.expect(if self.ends.is_empty() { SLACK } else { Duration::MAX });
        // Once it stops, only the attempts under way are waited for.
        let stopped = async {
            match now {
                Some(_) => self.shared.stop.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.inbox.changed() => {}
            () = stopped => {}
        }
    }

    /// It moves within this time, and sooner when an attempt has to end before: one that never does is noticed
    /// though others come and go.
    fn expect(&self, time: Duration) {
        let now = self.shared.millis(Instant::now());
        let moves_by = now.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let ends_by = self.ends.first_key_value().map_or(u64::MAX, |(second, _)| second.saturating_mul(1000));
        self.inbox.expect(moves_by.min(ends_by));
    }
}
