//! What is next for a WebhookReplay. Pure.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use kube::Resource as _;

use crate::api::webhook_replay::ReplayState;
use crate::api::{WebhookReplay, WebhookReplaySpec, WebhookReplayStatus};
use crate::controller::once::{self, Afterwards, LOOK, PATIENCE, Reason, afterwards, age, time};
use crate::model::filter::is_pattern;
use crate::model::ids::WebhookUid;
use crate::model::time::UnixMillis;
use crate::routes::compile::rate_limit;
use crate::store::{Replay, Selection, State};

/// How often one that waits for another of its name to end is looked at.
const SOON: Duration = Duration::from_millis(250);

/// The Webhooks of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The one that is named does not exist.
    Missing,
    /// It was just seen, and is not in force yet.
    Coming,
    /// They are there.
    Webhooks(Vec<WebhookUid>),
}

/// What is known of a replay.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) replay: &'a WebhookReplay,
    /// For how long this process knows it.
    pub(super) known_for: Duration,
    /// What the store keeps of it.
    pub(super) record: Option<Arc<Replay>>,
    /// What the store keeps of a finished one of the same name and spec.
    pub(super) former: Option<Arc<Replay>>,
    /// Whether an earlier one of the same name has not ended yet.
    pub(super) is_succeeding: bool,
    pub(super) target: Target,
    pub(super) now: UnixMillis,
}

/// What is next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until it changes.
    Rest,
    /// Look again after this time.
    Later(Duration),
    /// Its time after the end is over: delete it.
    Delete,
    /// Its status has a time that is still to come: write it anew.
    Redate,
    /// It is being deleted: stop.
    Cancel,
    /// It waits for its Webhook: say so, and look again.
    Wait(Reason),
    /// It has failed before it began.
    Fail(Reason),
    /// One of the same name and spec was completed: say what came of that.
    Repeat(Arc<Replay>),
    /// Count what it would take.
    Count(Selection, Vec<WebhookUid>),
    /// Begin.
    Begin(Selection, Vec<WebhookUid>),
    /// Put more among those that wait, and say how far it is.
    GoOn(Arc<Replay>),
    /// All have ended: close it in the store.
    Finish,
    /// It is closed: say what came of it.
    Tell(Arc<Replay>),
}

/// What is next for this replay.
pub(super) fn step(view: &View<'_>) -> Step {
    let status = status_of(view.replay);
    if view.replay.meta().deletion_timestamp.is_some() {
        return if view.record.is_some() { Step::Cancel } else { Step::Rest };
    }
    if is_finished(&status) {
        let ttl = view.replay.spec.ttl_seconds_after_finished;
        return match afterwards(ttl, status.completed_at.as_deref(), view.now) {
            Afterwards::Rest => Step::Rest,
            Afterwards::Later(wait) => Step::Later(wait),
            Afterwards::Delete => Step::Delete,
            Afterwards::Redate => Step::Redate,
        };
    }
    if let Some(record) = &view.record {
        return match &**record {
            record if record.cancelled => Step::Later(LOOK),
            Replay { finished_at: Some(_), .. } => Step::Tell(Arc::clone(record)),
            record if record.is_over() => Step::Finish,
            _ => Step::GoOn(Arc::clone(record)),
        };
    }
    not_begun(view, &status)
}

fn not_begun(view: &View<'_>, status: &WebhookReplayStatus) -> Step {
    let spec = &view.replay.spec;
    if status.started_at.is_some() {
        let message = "the data directory that knew how far it was is gone: create another WebhookReplay for what is \
                       left to send";
        return fail("Interrupted", message.to_owned());
    }
    if let Some(former) = &view.former {
        return Step::Repeat(Arc::clone(former));
    }
    if view.is_succeeding {
        return Step::Later(SOON);
    }
    let namespace = view.replay.meta().namespace.as_deref().unwrap_or_default();
    let rate_is_read = spec.rate_limit.as_ref().is_none_or(|limit| rate_limit(limit).is_some());
    let Some(selection) = selection(spec, namespace, view.now).filter(|_| rate_is_read) else {
        return fail(
            "SpecInvalid",
            "the spec has a time, a duration or an event type that cannot be read".to_owned(),
        );
    };
    match &view.target {
        Target::Missing => missing(view, namespace),
        Target::Coming => Step::Later(SOON),
        Target::Webhooks(webhooks) if spec.dry_run => Step::Count(selection, webhooks.clone()),
        Target::Webhooks(webhooks) => Step::Begin(selection, webhooks.clone()),
    }
}

fn missing(view: &View<'_>, namespace: &str) -> Step {
    let name = view.replay.spec.webhook_ref.as_ref().map_or("", |webhook| &webhook.name);
    let message = format!("Webhook {name:?} does not exist in namespace {namespace}");
    let word = "WebhookNotFound";
    if age(view.replay, view.known_for, view.now) < PATIENCE {
        return Step::Wait(Reason { word, message, again: LOOK });
    }
    fail(word, format!("{message} (waited 5 minutes; create another WebhookReplay)"))
}

fn fail(word: &'static str, message: String) -> Step {
    Step::Fail(Reason { word, message, again: LOOK })
}

/// What a spec selects at this moment; none: a time or an event type cannot be read.
fn selection(spec: &WebhookReplaySpec, namespace: &str, now: UnixMillis) -> Option<Selection> {
    let select = &spec.select;
    if !select.event_types.iter().flatten().all(|pattern| is_pattern(pattern)) {
        return None;
    }
    let state = |state: &ReplayState| match state {
        ReplayState::Failed => State::Failed,
        ReplayState::Success => State::Success,
    };
    Some(Selection {
        namespace: namespace.into(),
        states: select.states.iter().map(state).collect(),
        from: time(Some(&select.from))?,
        to: time(Some(&select.to))?,
        event_types: select.event_types.clone().unwrap_or_default(),
        as_of: now,
    })
}

/// What makes two specs the same: all but how long the object stays.
pub(super) fn spec_digest(spec: &WebhookReplaySpec) -> Vec<u8> {
    let what = WebhookReplaySpec { ttl_seconds_after_finished: None, ..spec.clone() };
    digest(&SHA256, &serde_json::to_vec(&what).unwrap_or_default()).as_ref().to_vec()
}

/// The status, or that from birth.
pub(super) fn status_of(replay: &WebhookReplay) -> WebhookReplayStatus {
    replay.status.clone().unwrap_or_default()
}

/// Whether there is a result, which is for good.
pub(super) fn is_finished(status: &WebhookReplayStatus) -> bool {
    once::is_finished(&status.conditions)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::fixtures::{at, replay_record, uid, webhook_replay};
    use crate::store::replays::{Counts, Part};

    fn condition(status: &str) -> Value {
        json!([{ "type": "Succeeded", "status": status, "reason": "R", "message": "m",
            "lastTransitionTime": "2026-11-24T10:00:00Z" }])
    }

    fn next(spec: &Value, status: &Value, change: impl FnOnce(&mut View<'_>)) -> String {
        let replay = webhook_replay("night", spec, status);
        let target = Target::Webhooks(vec![uid()]);
        let (record, former) = (None, None);
        let (known_for, now) = (Duration::ZERO, at(10));
        let mut view = View { replay: &replay, known_for, record, former, is_succeeding: false, target, now };
        change(&mut view);
        match step(&view) {
            Step::Wait(reason) => format!("Wait({})", reason.word),
            Step::Fail(reason) => format!("Fail({})", reason.word),
            Step::Later(wait) => format!("Later({}ms)", wait.as_millis()),
            Step::Repeat(_) => "Repeat".to_owned(),
            Step::Count(..) => "Count".to_owned(),
            Step::Begin(..) => "Begin".to_owned(),
            Step::GoOn(_) => "GoOn".to_owned(),
            Step::Tell(_) => "Tell".to_owned(),
            step @ (Step::Rest | Step::Delete | Step::Redate | Step::Cancel | Step::Finish) => {
                format!("{step:?}")
            }
        }
    }

    fn record(part: Part, change: impl FnOnce(&mut Replay)) -> Arc<Replay> {
        let mut record = replay_record([(uid(), part)]);
        change(&mut record);
        Arc::new(record)
    }

    #[test]
    fn a_replay_waits_for_the_webhook_it_names_for_five_minutes() {
        let (same, born) = (json!({}), json!({ "observedGeneration": -1 }));
        let missing = |now| move |view: &mut View<'_>| (view.target, view.now) = (Target::Missing, at(now));
        assert_eq!(next(&same, &born, missing(299)), "Wait(WebhookNotFound)");
        assert_eq!(next(&same, &born, missing(300)), "Fail(WebhookNotFound)");
        let behind = |view: &mut View<'_>| {
            (view.target, view.now, view.known_for) = (Target::Missing, at(-86_400), PATIENCE);
        };
        assert_eq!(next(&same, &born, behind), "Fail(WebhookNotFound)", "kube-apiserver's clock is ahead");
        assert_eq!(next(&same, &born, |view| view.target = Target::Coming), "Later(250ms)");
    }

    #[test]
    fn a_replay_begins_or_only_counts() {
        let born = json!({ "observedGeneration": -1 });
        assert_eq!(next(&json!({}), &born, |_| ()), "Begin");
        assert_eq!(next(&json!({ "dryRun": true }), &born, |_| ()), "Count");
        assert_eq!(next(&json!({}), &json!({ "conditions": condition("Unknown") }), |_| ()), "Begin");
        assert_eq!(next(&json!({}), &born, |view| view.is_succeeding = true), "Later(250ms)");
        let odd = json!({ "rateLimit": { "requests": 1, "per": "soon", "burst": 1 } });
        assert_eq!(next(&odd, &born, |_| ()), "Fail(SpecInvalid)");
    }

    #[test]
    fn one_that_was_completed_under_its_name_and_spec_is_not_sent_again() {
        let born = json!({ "observedGeneration": -1 });
        let former = record(Part::default(), |record| record.finished_at = Some(at(5)));
        assert_eq!(next(&json!({}), &born, |view| view.former = Some(former)), "Repeat");
    }

    #[test]
    fn a_replay_goes_on_until_all_have_ended() {
        let begun = json!({ "startedAt": "2026-11-24T10:00:00.000Z", "conditions": condition("Unknown") });
        let part = |walked, succeeded| Part {
            cursor: None,
            walked,
            counts: Counts { selected: 2, put: 2, sent: succeeded, succeeded, failed: 0 },
        };
        for (sentence, record, expected) in [
            ("not all are looked at", Some(record(part(false, 2), |_| ())), "GoOn"),
            ("one waits", Some(record(part(true, 1), |_| ())), "GoOn"),
            ("all have ended", Some(record(part(true, 2), |_| ())), "Finish"),
            ("closed", Some(record(part(true, 2), |record| record.finished_at = Some(at(5)))), "Tell"),
            ("cancelled", Some(record(part(true, 1), |record| record.cancelled = true)), "Later(1000ms)"),
            ("the store has lost it", None, "Fail(Interrupted)"),
        ] {
            assert_eq!(next(&json!({}), &begun, |view| view.record = record), expected, "{sentence}");
        }
    }

    #[test]
    fn a_replay_that_is_being_deleted_stops() {
        for (record, expected) in [(Some(record(Part::default(), |_| ())), "Cancel"), (None, "Rest")] {
            let mut replay = webhook_replay("night", &json!({}), &json!({}));
            replay.metadata.deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1).to_jiff()));
            let target = Target::Missing;
            let view = View {
                known_for: Duration::ZERO,
                replay: &replay,
                record,
                former: None,
                is_succeeding: false,
                target,
                now: at(2),
            };
            assert_eq!(format!("{:?}", step(&view)), expected);
        }
    }

    #[test]
    fn a_finished_replay_rests_until_its_time_is_over() {
        let done = json!({ "conditions": condition("False"), "completedAt": "2026-11-24T10:00:00.000Z" });
        let ttl = json!({ "ttlSecondsAfterFinished": 60 });
        assert_eq!(next(&json!({}), &done, |view| view.now = at(9999)), "Rest");
        assert_eq!(next(&ttl, &done, |view| view.now = at(30)), "Later(30000ms)");
        assert_eq!(next(&ttl, &done, |view| view.now = at(60)), "Delete");
        assert_eq!(next(&ttl, &done, |view| view.now = at(-86_400)), "Redate");
    }

    #[test]
    fn two_specs_are_the_same_but_for_how_long_the_object_stays() {
        let digest = |changes| spec_digest(&webhook_replay("night", &changes, &json!({})).spec);
        let plain = digest(json!({}));
        assert_eq!(digest(json!({ "ttlSecondsAfterFinished": 60 })), plain);
        assert_ne!(digest(json!({ "dryRun": true })), plain);
        assert_ne!(digest(json!({ "webhookRef": { "name": "other" } })), plain);
    }

    #[test]
    fn the_times_of_a_selection_may_have_any_offset() {
        let changes = json!({ "select": { "states": ["Failed", "Success"], "eventTypes": ["invoice.*"],
            "from": "2026-11-24T10:00:00+01:00", "to": "2026-11-24T10:00:00.5Z" } });
        let replay = webhook_replay("night", &changes, &json!({}));
        let selection = selection(&replay.spec, "team-a", at(7)).unwrap();
        assert_eq!((selection.from, selection.to.as_millis()), (at(-3600), at(0).as_millis() + 500));
        assert_eq!(selection.states, [State::Failed, State::Success]);
        assert_eq!((selection.event_types, selection.as_of), (vec!["invoice.*".to_owned()], at(7)));
    }
}
