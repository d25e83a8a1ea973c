//! Events: one for each change of state of a Webhook, none for a delivery.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as Stored;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::Client;
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter as Identity};
use tracing::warn;

use super::conditions::{cut_bytes, find, is_true};
use crate::api::WebhookStatus;
use crate::api::conditions::{DISABLED, ENDPOINT_HEALTHY, READY};
use crate::clock::Clock;
use crate::routes::watch::why;

/// What an Event may say at most, in bytes.
const MAX_NOTE: usize = 1000;
/// Longest name of an object that leaves room in the name of its Event for what the recorder adds: a dot and the time in
/// nanoseconds.
const MAX_NAME: usize = 236;
/// Of a longer name, so much is in the name of its Event.
const KEPT_OF_NAME: usize = 50;
/// By whom Events are reported.
const REPORTER: &str = "hookwright";

/// An Event to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    warning: bool,
    reason: &'static str,
    /// The condition's reason: Events that differ in it are not merged.
    action: String,
    text: String,
}

/// The changes of state between two statuses.
pub(super) fn changes(before: &WebhookStatus, after: &WebhookStatus) -> Vec<Note> {
    let mut notes = Vec::new();
    notes.extend(readiness(before, after));
    notes.extend(health(before, after));
    notes.extend(disabling(before, after));
    notes
}

fn readiness(before: &WebhookStatus, after: &WebhookStatus) -> Option<Note> {
    let was = find(&before.conditions, READY);
    let is = find(&after.conditions, READY)?;
    if is.status == "True" {
        let already = was.is_some_and(|was| was.status == "True");
        return (!already).then(|| note(false, "Ready", &is.reason, &is.message));
    }
    let already = was.is_some_and(|was| was.status == is.status && was.reason == is.reason);
    (!already).then(|| note(true, "NotReady", &is.reason, &format!("{}: {}", is.reason, is.message)))
}

fn health(before: &WebhookStatus, after: &WebhookStatus) -> Option<Note> {
    let was = find(&before.conditions, ENDPOINT_HEALTHY).map_or("Unknown", |was| was.status.as_str());
    let is = find(&after.conditions, ENDPOINT_HEALTHY)?;
    match is.status.as_str() {
        status if status == was => None,
        "True" => Some(note(false, "EndpointHealthy", &is.reason, &is.message)),
        "False" => Some(note(true, "EndpointUnhealthy", &is.reason, &is.message)),
        _ => None,
    }
}

fn disabling(before: &WebhookStatus, after: &WebhookStatus) -> Option<Note> {
    match (is_true(&before.conditions, DISABLED), find(&after.conditions, DISABLED)) {
        (false, Some(is)) => Some(note(true, "Disabled", &is.reason, &is.message)),
        (true, None) => Some(note(false, "Enabled", "Enabled", "deliveries are made again")),
        (true, Some(_)) | (false, None) => None,
    }
}

/// That a deleted Webhook's deliveries were discarded.
pub(super) fn discarded(deliveries: u64) -> Note {
    let text = format!(
        "the Webhook was deleted and not made again: {deliveries} deliveries that waited for it were discarded"
    );
    note(true, "DeliveriesDiscarded", "Deleted", &text)
}

fn note(warning: bool, reason: &'static str, action: &str, text: &str) -> Note {
    Note { warning, reason, action: action.to_owned(), text: cut_bytes(text, MAX_NOTE).to_owned() }
}

/// Publishes Events.
#[derive(Clone)]
pub(super) struct Reporter {
    recorder: Recorder,
    client: Client,
    clock: Clock,
}

impl Reporter {
    pub(super) fn new(client: Client, clock: Clock) -> Self {
        Self { recorder: Recorder::new(client.clone(), Identity::from(REPORTER)), client, clock }
    }

    /// Publishes them; one that is refused (as in a namespace that is being deleted) is only logged.
    pub(super) async fn publish(&self, notes: Vec<Note>, about: &ObjectReference) {
        for Note { warning, reason, action, text } in notes {
            let event = Event {
                type_: if warning { EventType::Warning } else { EventType::Normal },
                reason: reason.to_owned(),
                note: Some(text),
                action,
                secondary: None,
            };
            let name = about.name.as_deref().unwrap_or_default();
            let published = if name.len() > MAX_NAME {
                self.publish_under_a_short_name(event, about).await
            } else {
                self.recorder.publish(&event, about).await
            };
            if let Err(error) = published {
                let (namespace, name) = (about.namespace.as_deref(), about.name.as_deref());
                warn!(namespace, name, reason, error = why(&error), "cannot publish an Event");
            }
        }
    }
}

impl Reporter {
    /// The recorder names an Event by the whole name of its object. Such Events are not merged.
    async fn publish_under_a_short_name(
        &self,
        event: Event,
        about: &ObjectReference,
    ) -> Result<(), kube::Error> {
        let Event { type_, reason, note, action, secondary } = event;
        let name = about.name.as_deref().unwrap_or_default();
        let stored = Stored {
            metadata: ObjectMeta { generate_name: Some(beginning(name)), ..ObjectMeta::default() },
            event_time: Some(MicroTime(self.clock.now().to_jiff())),
            type_: Some(if type_ == EventType::Warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(reason),
            action: Some(action),
            note,
            regarding: Some(about.clone()),
            related: secondary,
            reporting_controller: Some(REPORTER.to_owned()),
            reporting_instance: Some(REPORTER.to_owned()),
            ..Stored::default()
        };
        let namespace = about.namespace.as_deref().unwrap_or("default");
        let events: Api<Stored> = Api::namespaced(self.client.clone(), namespace);
        events.create(&PostParams::default(), &stored).await.map(drop)
    }
}

/// What the apiserver completes to a name.
fn beginning(name: &str) -> String {
    format!("{}-", cut_bytes(name, KEPT_OF_NAME).trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(conditions: &[(&str, &str, &str)]) -> WebhookStatus {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status, reason)| {
                json!({ "type": kind, "status": status, "reason": reason, "message": format!("{reason} it is"),
                    "lastTransitionTime": "2026-11-24T10:00:00Z" })
            })
            .collect();
        serde_json::from_value(json!({ "observedGeneration": 1, "conditions": conditions })).unwrap()
    }

    #[test]
    fn only_changes_of_state_speak() {
        let none: &[(&str, &str, &str)] = &[];
        let ready = ("Ready", "True", "RouteLive");
        let missing = ("Ready", "False", "SecretNotFound");
        for (sentence, before, after, expected) in [
            ("born ready", none, &[ready, ("EndpointHealthy", "Unknown", "NoDeliveries")][..], vec!["Ready"]),
            ("nothing new", &[ready], &[ready], vec![]),
            ("paused is ready all the same", &[ready], &[("Ready", "True", "Paused")], vec![]),
            ("born without its Secret", none, &[missing], vec!["NotReady"]),
            ("still without it", &[missing], &[missing], vec![]),
            (
                "now without its label",
                &[missing],
                &[("Ready", "False", "SecretNotLabelled")],
                vec!["NotReady"],
            ),
            ("mended", &[missing], &[ready], vec!["Ready"]),
            (
                "the first success",
                &[ready, ("EndpointHealthy", "Unknown", "NoDeliveries")],
                &[ready, ("EndpointHealthy", "True", "Delivering")],
                vec!["EndpointHealthy"],
            ),
            (
                "unhealthy",
                &[ready, ("EndpointHealthy", "True", "Delivering")],
                &[ready, ("EndpointHealthy", "False", "AttemptsFail")],
                vec!["EndpointUnhealthy"],
            ),
            (
                "unhealthy for another reason",
                &[ready, ("EndpointHealthy", "False", "AttemptsFail")],
                &[ready, ("EndpointHealthy", "False", "DeliveryFailed")],
                vec![],
            ),
            (
                "gone",
                &[ready, ("EndpointHealthy", "True", "Delivering")],
                &[ready, ("EndpointHealthy", "False", "DeliveryFailed"), ("Disabled", "True", "Gone")],
                vec!["EndpointUnhealthy", "Disabled"],
            ),
            ("enabled", &[ready, ("Disabled", "True", "Gone")], &[ready], vec!["Enabled"]),
        ] {
            let notes = changes(&status(before), &status(after));
            let reasons: Vec<_> = notes.iter().map(|note| note.reason).collect();
            assert_eq!(reasons, expected, "{sentence}");
        }
    }

    #[test]
    fn a_long_name_has_a_beginning_that_can_be_completed() {
        for (name, expected) in [
            ("orders".repeat(42), format!("{}or-", "orders".repeat(8))),
            (format!("{}-.a", "a".repeat(48)), format!("{}-", "a".repeat(48))),
        ] {
            assert_eq!(beginning(&name), expected);
        }
    }

    #[test]
    fn a_note_says_why_and_fits() {
        let mut after = status(&[("Ready", "False", "SecretNotFound")]);
        let notes = changes(&status(&[]), &after);
        assert_eq!(notes[0].text, "SecretNotFound: SecretNotFound it is");
        assert_eq!((notes[0].action.as_str(), notes[0].warning), ("SecretNotFound", true));
        after.conditions[0].message = "€".repeat(1000);
        assert!(changes(&status(&[]), &after)[0].text.len() <= 1024);
    }
}
