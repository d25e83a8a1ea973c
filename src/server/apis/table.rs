//! Lines of the log as rows, for people: what failed, when, why, and what happens next, in 120 columns.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::object::Line;
use super::options::Include;
use super::selector::state_name;
use crate::model::legible::legible;
use crate::model::time::UnixMillis;
use crate::routes::hold::Hold;

/// Most characters of a Webhook's name, an event type, an event id and an error: a stranger's text must not push the other
/// columns out of sight. An object has them whole.
const WIDTHS: (usize, usize, usize, usize) = (63, 40, 64, 256);

/// A cell of which nothing is known: not empty, so that a line has the same number of words whatever it says.
const NOTHING: &str = "-";

/// Name, type and format, priority (0: always shown; 1: with `-o wide`), and what it says.
const COLUMNS: [(&str, &str, u8, &str); 11] = [
    ("Name", "name", 0, "The delivery, and the webhook-id header of every attempt."),
    ("Webhook", "", 0, "The Webhook that it is for."),
    ("Event Type", "", 0, "What happened."),
    ("State", "", 0, "Pending, Retrying, Held, Success or Failed."),
    ("Code", "", 0, "HTTP status of the last answer."),
    ("Retries", "", 0, "Attempts after the first, without those that somebody asked for."),
    ("Next", "", 0, "In how long it is tried again, sending while it is, or what a Held one waits for."),
    ("Age", "", 0, "Since the event was accepted."),
    ("Event ID", "", 1, "The CloudEvents id."),
    ("Duration", "", 1, "Of the last attempt."),
    ("Error", "", 1, "Why the last attempt failed, or why it is Held or Failed."),
];

/// A table as it is sent.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Table {
    kind: &'static str,
    api_version: &'static str,
    metadata: Value,
    column_definitions: Vec<Value>,
    // The last: what is written row by row begins with a table that has none.
    rows: Vec<Value>,
}

/// A table of these rows. `metadata` is that of the list.
pub(super) fn table(rows: Vec<Value>, metadata: Value) -> Table {
    let columns = COLUMNS.map(|(name, format, priority, description)| {
        let kind = if name == "Retries" { "integer" } else { "string" };
        json!({"name": name, "type": kind, "format": format, "priority": priority, "description": description})
    });
    let (kind, api_version) = ("Table", "meta.k8s.io/v1");
    Table { kind, api_version, metadata, column_definitions: columns.into(), rows }
}

/// A line as a row.
pub(super) fn row(line: &Line, include: Include, now: UnixMillis) -> Value {
    json!({"cells": cells(line, now), "object": beside(line, include)})
}

fn beside(line: &Line, include: Include) -> Value {
    match include {
        Include::None => Value::Null,
        Include::Metadata => partial(line),
        Include::Object => json!(line.object()),
    }
}

/// The metadata of a line alone.
pub(super) fn partial(line: &Line) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": line.metadata()})
}

fn cells(line: &Line, now: UnixMillis) -> [Value; 11] {
    let delivery = &line.delivery;
    let last = delivery.attempts.last();
    let code = last.and_then(|last| last.status).map(|status| status.to_string());
    let error = last.and_then(|last| last.error.as_deref()).or_else(|| line.reason());
    let text = |text: Option<String>| Value::from(text.unwrap_or_else(|| NOTHING.to_owned()));
    let (webhook, event_type, event_id, why) = WIDTHS;
    [
        Value::from(delivery.name.to_string()),
        Value::from(legible(&delivery.webhook.name, webhook)),
        Value::from(legible(&delivery.event_type, event_type)),
        Value::from(state_name(line.state)),
        text(code),
        Value::from(delivery.retry_count()),
        text(next(line, now)),
        Value::from(age(now.since(delivery.accepted_at))),
        Value::from(legible(&delivery.event_id, event_id)),
        text(last.map(|last| took(last.duration))),
        text(error.map(|error| legible(error, why))),
    ]
}

/// What happens next.
fn next(line: &Line, now: UnixMillis) -> Option<String> {
    let waits_for = |hold| match hold {
        Hold::Paused => "on resume",
        Hold::Disabled(_) => "on enable",
        Hold::NotReady => "when ready",
        Hold::EndpointUnhealthy => "after probe",
    };
    if line.is_sending() {
        return Some("sending".to_owned());
    }
    if let Some(hold) = line.held() {
        return Some(waits_for(hold).to_owned());
    }
    let wait = line.due()?.since(now);
    Some(if wait.is_zero() { "now".to_owned() } else { age(wait) })
}

/// How long an attempt took. A receiver nearby may need less than the smallest unit that is shown.
fn took(duration: Duration) -> String {
    if duration < Duration::from_millis(1) {
        "<1ms".to_owned()
    } else {
        crate::model::duration::format(duration)
    }
}

/// A duration in two units at most, of which the larger one counts: as `kubectl` writes ages.
fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{smaller}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        _ => two(days / 365, "y", days % 365, "d"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::object::Standing;
    use super::super::object::tests::{START, delivery, failed};
    use super::row as row_of;
    use super::*;
    use crate::store::records::{Delivery, State};

    fn row(delivery: Delivery, hold: Option<Hold>, later: u64) -> Vec<String> {
        standing(delivery, Standing { hold, ..Standing::default() }, later)
    }

    fn standing(delivery: Delivery, standing: Standing, later: u64) -> Vec<String> {
        let now = START + Duration::from_secs(later);
        let cells = cells(&Line::new(delivery, standing, now), now);
        let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), ToOwned::to_owned);
        cells.iter().skip(1).map(text).collect()
    }

    #[test]
    fn an_attempt_never_takes_no_time() {
        for (micros, shown) in [(0, "<1ms"), (999, "<1ms"), (1000, "1ms"), (1_500_999, "1s500ms")] {
            assert_eq!(took(Duration::from_micros(micros)), shown);
        }
    }

    #[test]
    fn a_row_says_what_when_why_and_what_is_next() {
        let retrying = {
            let failed = failed(delivery("team-a", "orders", 7));
            Delivery {
                state: State::Retrying,
                reason: None,
                due: Some(START + Duration::from_secs(70)),
                ..failed
            }
        };
        for (what, delivery, hold, later, expected) in [
            (
                "new",
                delivery("team-a", "orders", 7),
                None,
                0,
                ["orders", "order.created", "Pending", "-", "0", "now", "0s", "7,=\\", "-", "-"],
            ),
            (
                "paused",
                delivery("team-a", "orders", 7),
                Some(Hold::Paused),
                130,
                ["orders", "order.created", "Held", "-", "0", "on resume", "2m10s", "7,=\\", "-", "Paused"],
            ),
            (
                "between two attempts",
                retrying.clone(),
                None,
                34,
                [
                    "orders",
                    "order.created",
                    "Retrying",
                    "503",
                    "1",
                    "36s",
                    "34s",
                    "7,=\\",
                    "12ms",
                    "the endpoint answered 503",
                ],
            ),
            (
                "waiting for a probe",
                retrying,
                Some(Hold::EndpointUnhealthy),
                70,
                [
                    "orders",
                    "order.created",
                    "Held",
                    "503",
                    "1",
                    "after probe",
                    "70s",
                    "7,=\\",
                    "12ms",
                    "the endpoint answered 503",
                ],
            ),
            (
                "given up",
                failed(delivery("team-a", "orders", 7)),
                None,
                7200,
                [
                    "orders",
                    "order.created",
                    "Failed",
                    "503",
                    "1",
                    "-",
                    "120m",
                    "7,=\\",
                    "12ms",
                    "the endpoint answered 503",
                ],
            ),
        ] {
            assert_eq!(row(delivery, hold, later), expected, "{what}");
        }
    }

    #[test]
    fn an_attempt_under_way_is_sent_whatever_holds_the_others() {
        let sending = |hold| {
            let row = standing(
                delivery("team-a", "orders", 7),
                Standing { hold, is_sending: true, is_gone: false },
                9,
            );
            (row[2].clone(), row[5].clone())
        };
        for hold in [None, Some(Hold::Paused), Some(Hold::NotReady), Some(Hold::EndpointUnhealthy)] {
            assert_eq!(sending(hold), ("Pending".to_owned(), "sending".to_owned()), "{hold:?}");
        }
        let done = failed(delivery("team-a", "orders", 7));
        let done = standing(done, Standing { is_sending: true, ..Standing::default() }, 9);
        assert_eq!((&*done[2], &*done[5]), ("Failed", "-"), "it has ended since");
    }

    #[test]
    fn what_belongs_to_a_webhook_that_is_gone_is_not_tried_again() {
        let gone = Standing { is_gone: true, ..Standing::default() };
        assert_eq!(standing(delivery("team-a", "orders", 7), gone, 9)[5], "-");
    }

    #[test]
    fn no_text_of_a_stranger_spoils_the_table() {
        let mut line = failed(delivery("team-a", &"w".repeat(253), 7));
        line.event_type = "order.\u{202e}detaerc".into();
        line.event_id = format!("id\n{}", "9".repeat(1000)).into();
        line.attempts[1].error = Some(format!("a\u{1b}[2J\nb{}", "e".repeat(1000)));
        let short = row(line.clone(), None, 9);
        assert_eq!(short[1], r"order.\u{202e}detaerc");
        assert_eq!(short[0], format!("{}…", "w".repeat(62)));
        line.event_type = "t".repeat(200).into();
        let long = row(line, None, 9);
        assert_eq!(long[1], format!("{}…", "t".repeat(39)));
        assert!(long[7].starts_with(r"id\n999") && long[9].starts_with(r"a\u{1b}[2J\nb"), "{long:?}");
        let lengths = long.iter().map(|cell| cell.chars().count());
        assert!(
            lengths.max() <= Some(256) && long.iter().all(|cell| !cell.contains(char::is_control)),
            "{long:?}"
        );
    }

    #[test]
    fn the_columns_that_are_always_shown_fit_a_terminal() {
        // As kubectl prints: three spaces between columns, and the heads in capitals.
        let widest = [
            ("Name", 36),
            ("Webhook", 12),
            ("Event Type", 20),
            ("State", 8),
            ("Code", 4),
            ("Retries", 7),
            ("Next", 11),
            ("Age", 5),
        ];
        let shown: Vec<_> = COLUMNS.iter().filter(|column| column.2 == 0).map(|column| column.0).collect();
        assert_eq!(shown, widest.map(|(name, _)| name));
        let width: usize = widest.iter().map(|(name, width)| name.len().max(*width) + 3).sum::<usize>() - 3;
        assert!(width <= 125, "{width}");
    }

    #[test]
    fn beside_a_row_stands_what_was_asked_for() {
        let line = Line::new(delivery("team-a", "orders", 7), Standing::default(), START);
        for (include, kind) in [
            (Include::None, Value::Null),
            (Include::Metadata, json!("PartialObjectMetadata")),
            (Include::Object, json!("Delivery")),
        ] {
            let table = table(vec![row_of(&line, include, START)], json!({"resourceVersion": "1"}));
            let table = json!(table);
            assert_eq!(table["rows"][0]["object"]["kind"], kind);
            assert_eq!(table["columnDefinitions"][0]["format"], "name");
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), COLUMNS.len());
            assert_eq!(table["metadata"]["resourceVersion"], "1");
        }
    }

    #[test]
    fn ages_are_written_as_kubectl_does() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
