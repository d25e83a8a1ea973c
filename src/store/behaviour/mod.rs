//! What every engine does, in sentences. An engine runs them with [`suite`], giving what opens it.

pub(super) mod counting;
pub(super) mod duplicates;
pub(super) mod expunging;
pub(super) mod model;
pub(super) mod purging;
pub(super) mod queueing;
pub(super) mod reading;
pub(super) mod redating;
pub(super) mod redelivering;
pub(super) mod replaying;
pub(super) mod retaining;
pub(super) mod succeeding;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::records::{Attempt, DedupKey, EndReason, NewDelivery, NewEvent, Next, Outcome, Retention};
use super::{Appended, ClaimRequest, Claims, Order, Query, Store, Tried};
use crate::model::event::Attributes;
use crate::model::ids::{DeliveryName, Minter, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;

/// Opens an engine on the same data each time. The one before must be closed.
pub(super) trait Engine: Send + Sync {
    fn open(&self) -> Arc<dyn Store>;
}

/// An engine whose data can be looked at as a crash leaves it.
pub(super) trait Crashing: Engine {
    /// How many bytes its commits have written.
    fn written(&self) -> u64;

    /// The data as it is after a crash now, or when only so many bytes of commits had reached the disk.
    fn crash(&self, written: Option<u64>) -> Box<dyn Engine>;
}

/// How long the same `source` and `id` are a duplicate, in these sentences.
pub(super) const WINDOW: Duration = Duration::from_hours(1);
/// What of the log is kept, in these sentences.
pub(super) const RETENTION: Retention = Retention { max_age: Duration::from_hours(2), max_bytes: 256 << 10 };
/// How much may wait in a namespace, in these sentences.
pub(super) const QUOTA: u64 = 32 << 20;
const LEASE: Duration = Duration::from_mins(1);
/// The shortest time that is kept.
const TICK: Duration = Duration::from_millis(1);

/// An engine, the one store that is open on it, and a time that only the sentence moves.
pub(super) struct World<'a> {
    engine: &'a dyn Engine,
    store: Arc<dyn Store>,
    minter: Minter,
    now: UnixMillis,
}

impl<'a> World<'a> {
    pub(super) fn new(engine: &'a dyn Engine) -> Self {
        let now = UnixMillis::from_millis(1_800_000_000_000);
        Self { engine, store: engine.open(), minter: Minter::default(), now }
    }

    async fn reopen(&mut self) {
        self.store.close().await.unwrap();
        self.store = self.engine.open();
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn event(&self, webhooks: &[&WebhookRef]) -> NewEvent {
        let deliveries = webhooks.iter().map(|webhook| NewDelivery {
            name: self.minter.delivery(self.now),
            webhook: (*webhook).clone(),
            test: false,
        });
        let uid = self.minter.event(self.now);
        NewEvent {
            uid,
            namespace: webhooks
                .first()
                .map_or_else(|| "team-a".into(), |webhook| Arc::clone(&webhook.namespace)),
            attributes: Arc::new(Attributes {
                id: uid.to_string().into(),
                source: "/shop".into(),
                event_type: "order.created".into(),
                data_content_type: Some("application/json".into()),
                data_schema: None,
                subject: None,
                time: None,
                extensions: vec![],
            }),
            data: Bytes::from(format!("{{\"order\":\"{uid}\"}}")),
            accepted_at: self.now,
            dedup: None,
            deliveries: deliveries.collect(),
        }
    }

    fn test(&self, webhook: &WebhookRef) -> NewEvent {
        let mut event = self.event(&[webhook]);
        event.deliveries[0].test = true;
        event
    }

    fn keyed(&self, key: u8, webhooks: &[&WebhookRef]) -> NewEvent {
        NewEvent { dedup: Some(DedupKey([key; 16])), ..self.event(webhooks) }
    }

    /// Appends one event with one delivery a Webhook; their names in that order.
    async fn accept(&self, webhooks: &[&WebhookRef]) -> Vec<DeliveryName> {
        let event = self.event(webhooks);
        let names = event.deliveries.iter().map(|delivery| delivery.name).collect();
        assert_eq!(self.store.append(vec![event]).await.unwrap(), [Appended::New]);
        names
    }

    async fn accept_test(&self, webhook: &WebhookRef) -> DeliveryName {
        let event = self.test(webhook);
        let name = event.deliveries[0].name;
        self.store.append(vec![event]).await.unwrap();
        name
    }

    fn request(&self, webhook: &WebhookRef, limit: usize) -> ClaimRequest {
        ClaimRequest { webhook: webhook.uid, now: self.now, limit, order: Order::LongestDue, lease: LEASE }
    }

    async fn claims(&self, webhook: &WebhookRef, limit: usize) -> Claims {
        self.store.claim(self.request(webhook, limit)).await.unwrap()
    }

    async fn claim(&self, webhook: &WebhookRef, limit: usize) -> Vec<DeliveryName> {
        names(&self.claims(webhook, limit).await)
    }

    async fn ordered(&self, webhook: &WebhookRef, limit: usize, order: Order) -> Vec<DeliveryName> {
        names(&self.store.claim(ClaimRequest { order, ..self.request(webhook, limit) }).await.unwrap())
    }

    async fn look(&self, webhook: &WebhookRef, first: Tried) -> Vec<DeliveryName> {
        self.ordered(webhook, 1, Order::Look { first }).await
    }

    fn outcome(&self, webhook: &WebhookRef, name: DeliveryName, next: Next) -> Outcome {
        let failed = next != Next::Success;
        let attempt = Attempt {
            at: self.now,
            duration: Duration::from_millis(12),
            status: Some(if failed { 503 } else { 200 }),
            body: failed.then(|| "busy".to_owned()),
            content_type: None,
            body_length: 4,
            error: None,
            asked_by: None,
            probe: false,
            retry_after: None,
        };
        Outcome {
            name,
            webhook: webhook.uid,
            attempt: Some(attempt),
            next,
            disable: None,
            failing: None,
            at: self.now,
        }
    }

    async fn record(&self, webhook: &WebhookRef, name: DeliveryName, next: Next) {
        self.store.record(vec![self.outcome(webhook, name, next)]).await.unwrap();
    }

    async fn succeed(&self, webhook: &WebhookRef, name: DeliveryName) {
        self.record(webhook, name, Next::Success).await;
    }

    async fn fail(&self, webhook: &WebhookRef, name: DeliveryName) {
        self.record(webhook, name, Next::Failed(EndReason::RetriesExhausted)).await;
    }

    async fn retry(&self, webhook: &WebhookRef, name: DeliveryName, after: Duration) {
        self.record(webhook, name, Next::Retry(self.now + after)).await;
    }

    /// All names that a query finds, page by page.
    async fn find(&self, mut query: Query) -> Vec<DeliveryName> {
        let mut found = Vec::new();
        loop {
            let page = self.store.query(query.clone()).await.unwrap();
            assert!(page.deliveries.len() <= query.limit);
            found.extend(page.deliveries.iter().map(|delivery| delivery.name));
            match page.next {
                Some(next) => query.before = Some(next),
                None => return found,
            }
        }
    }
}

fn names(claims: &Claims) -> Vec<DeliveryName> {
    claims.deliveries.iter().map(|claimed| claimed.delivery.name).collect()
}

/// A Webhook of `namespace`, the same for the same number.
pub(super) fn webhook(namespace: &str, number: u8) -> WebhookRef {
    let uid = WebhookUid::from_bytes([number; 16]);
    WebhookRef { uid, namespace: namespace.into(), name: format!("hook-{number}").into() }
}

/// Runs every sentence on an engine.
macro_rules! suite {
    ($engine:expr) => {
        #[test]
        fn a_plain_model_agrees() {
            $crate::store::behaviour::model::a_plain_model_agrees(|| $engine);
        }
        #[test]
        fn no_jump_of_the_clock_lengthens_a_wait() {
            $crate::store::behaviour::redating::no_jump_of_the_clock_lengthens_a_wait(|| $engine);
        }
        $crate::store::behaviour::suite! { $engine;
            queueing: what_is_appended_is_claimed_oldest_first,
            queueing: an_event_goes_to_each_of_its_webhooks_and_to_no_other,
            queueing: a_delivery_is_claimed_by_one_only,
            queueing: what_is_claimed_or_tested_is_under_way,
            queueing: concurrent_claimants_never_share_a_delivery,
            queueing: a_claim_that_expires_is_free_again,
            queueing: a_claim_that_is_released_is_free_again_and_wakes,
            queueing: opening_releases_earlier_claims,
            queueing: a_retry_is_claimed_when_it_is_due_and_not_before,
            queueing: what_is_due_longest_goes_first_retries_and_first_attempts_alike,
            queueing: more_than_memory_holds_is_claimed_in_order_all_the_same,
            queueing: first_attempts_and_retries_are_claimed_in_turn,
            queueing: a_look_takes_one_before_its_time_when_none_is_due,
            queueing: what_failed_between_two_times_is_claimed_early_once,
            queueing: the_oldest_due_is_known_whether_claimed_or_not,
            queueing: work_names_the_webhooks_that_may_have_something_to_claim,
            queueing: a_clock_that_is_set_back_hides_no_first_attempt,
            queueing: tests_are_never_claimed,
            queueing: a_closed_store_refuses_and_an_opened_one_has_everything,
            duplicates: a_duplicate_is_answered_with_the_first_id_and_stores_nothing,
            duplicates: a_duplicate_in_the_same_call_is_one_of_the_first_in_it,
            duplicates: of_many_at_once_one_is_new,
            duplicates: a_duplicate_is_known_after_reopening,
            duplicates: the_same_key_after_the_window_is_new,
            duplicates: an_event_that_nobody_wants_leaves_nothing,
            counting: numbers_follow_outcomes_and_survive_reopening,
            counting: an_outcome_recorded_twice_counts_once,
            counting: the_same_outcome_twice_in_one_call_counts_once,
            counting: an_outcome_of_an_unknown_delivery_or_webhook_is_dropped,
            counting: a_claim_that_expired_can_still_be_recorded,
            counting: tests_are_not_counted_but_seen,
            counting: a_test_interrupted_by_the_end_of_the_process_is_failed_at_opening,
            counting: a_webhook_is_adopted_with_its_numbers_once,
            counting: a_webhook_is_disabled_and_enabled,
            counting: what_only_ever_retried_is_not_well_once_enabled,
            counting: an_outcome_can_disable,
            counting: the_last_fifty_attempts_are_kept,
            reading: a_delivery_and_its_event_are_read_as_they_were_written,
            reading: pages_go_from_the_newest_to_the_oldest,
            reading: deliveries_are_found_by_the_id_of_their_event,
            reading: a_query_of_something_unknown_is_an_empty_page,
            reading: every_call_that_returned_is_seen,
            redelivering: a_finished_delivery_is_attempted_once_more_under_its_name,
            redelivering: a_redelivery_is_due_when_asked_for_and_is_never_retried,
            redelivering: a_redelivery_counts_no_failure_again_and_a_success_once,
            redelivering: what_cannot_be_redelivered_is_told_apart,
            redelivering: a_redelivery_survives_reopening_with_who_asked,
            redelivering: a_redelivery_is_found_as_pending,
            redelivering: nothing_that_somebody_asked_for_is_claimed_early,
            replaying: a_replay_sends_what_had_ended_before_it_once_more_and_counts,
            replaying: a_replay_takes_by_time_state_type_and_webhook,
            replaying: a_replay_goes_on_after_reopening_and_repeats_nothing,
            replaying: what_ended_after_the_start_or_waits_already_is_skipped,
            replaying: a_cancelled_replay_leaves_what_was_not_sent_as_it_was,
            replaying: an_attempt_under_way_outlives_the_cancellation,
            replaying: a_finished_replay_is_remembered_with_its_numbers,
            replaying: what_is_expunged_or_purged_does_not_hold_a_replay_up,
            redating: a_retry_waits_no_longer_than_it_was_to,
            redating: a_retry_of_the_right_clock_stays_where_it_was,
            redating: a_clock_set_back_during_an_attempt_or_ahead_does_not_lengthen_the_wait,
            redating: first_attempts_of_a_clock_that_was_ahead_have_their_turn,
            redating: what_one_that_is_gone_has_left_is_no_later_for_its_successor,
            redating: a_claim_holds_no_longer_than_its_lease_from_then,
            redating: an_attempt_under_way_is_recorded_and_nothing_waits_twice,
            redating: what_ended_by_a_clock_that_was_ahead_is_redelivered_at_once,
            redating: a_replay_goes_on_and_takes_by_the_time_of_acceptance,
            redating: a_duplicate_is_known_for_the_window_from_then,
            redating: what_ended_by_a_clock_that_was_ahead_is_kept_for_its_time_from_then,
            redating: the_numbers_of_a_webhook_have_no_time_in_the_future,
            redating: a_clock_that_is_right_or_goes_forward_changes_nothing,
            redating: more_than_one_step_of_it_is_set_right_while_others_go_on,
            expunging: an_expunged_event_is_gone_with_all_its_answers,
            expunging: what_is_unfinished_ends_and_is_never_sent,
            expunging: only_those_of_the_namespace_can_expunge,
            retaining: what_is_old_goes_and_what_waits_or_ended_late_stays,
            retaining: the_oldest_go_first_while_a_namespace_uses_too_much,
            retaining: a_shared_event_stays_until_its_last_delivery_goes,
            retaining: what_became_old_behind_the_last_look_goes_too,
            retaining: a_duplicate_is_known_after_its_delivery_has_gone,
            retaining: usage_is_known_and_survives_reopening,
            retaining: a_namespace_over_its_quota_is_refused_and_no_other,
            purging: a_purge_leaves_nothing_and_others_untouched,
            purging: a_shared_event_lives_until_its_last_delivery_is_purged,
            purging: a_claimed_delivery_that_is_purged_is_not_recorded,
            purging: a_purge_of_many_lets_others_go_between,
            purging: a_purged_webhook_can_come_back_and_starts_from_nothing,
            succeeding: what_is_gone_is_shown_sent_and_counted_for_nobody,
            succeeding: what_waits_for_the_gone_takes_nobodys_quota,
            succeeding: a_namespace_made_anew_knows_nothing_of_the_former,
            succeeding: a_webhook_made_anew_goes_on_with_what_the_former_left,
            succeeding: what_began_before_several_replacements_still_counts,
            succeeding: an_event_for_two_owners_is_a_duplicate_for_each,
            succeeding: nobody_else_takes_over_what_is_gone,
            succeeding: a_replay_goes_on_at_the_webhook_that_was_made_anew,
            succeeding: what_a_purge_has_begun_to_erase_is_nobodys,
        }
    };
    ($engine:expr; $($room:ident: $sentence:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sentence() {
                let engine = $engine;
                $crate::store::behaviour::$room::$sentence($crate::store::behaviour::World::new(&engine)).await;
            }
        )*
    };
}
pub(super) use suite;
