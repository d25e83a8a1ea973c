//! The resource `usages`: what each namespace uses of its limits. From memory, and without a selector or pages: there
//! are as many as there are namespaces with a Webhook.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::StatusCode;
use http::request::Parts;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::deliveries::{List, Log};
use super::negotiate::{Count, Form, form};
use super::options::{Include, ListOptions};
use super::{API_VERSION, labels::LabelSelector};
use crate::api::usage::{Usage as Object, UsageQuota, UsageRetention, UsageSpec, UsageStatus};
use crate::model::{duration, size};
use crate::server::auth::Action;
use crate::server::status::{Answer, Failure, Reason, json as answer};
use crate::store::Retention;
use crate::store::records::Usage;

/// Its name in paths and in RBAC.
pub(in crate::server) const RESOURCE: &str = "usages";
/// The one in each namespace.
const NAME: &str = "current";

/// The limits of each namespace.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What is kept of the log.
    pub retention: Retention,
    /// Most bytes that wait.
    pub pending_bytes: u64,
    /// Events that may be published in a second.
    pub events_per_second: u32,
}

impl Limits {
    /// There are none.
    pub const NONE: Self =
        Self { retention: Retention::FOREVER, pending_bytes: u64::MAX, events_per_second: u32::MAX };
}

/// The right that an operation needs.
pub(in crate::server) fn action(namespace: Option<&str>, name: Option<&str>) -> Action {
    Action {
        verb: if name.is_some() { "get" } else { "list" },
        resource: RESOURCE,
        subresource: None,
        namespace: namespace.map(ToOwned::to_owned),
        name: name.map(ToOwned::to_owned),
    }
}

impl Log {
    /// What a namespace uses, or each: of those that have a Webhook. With a name, the one that is called so.
    pub(in crate::server) fn usages(
        &self,
        namespace: Option<&str>,
        name: Option<&str>,
        parts: &Parts,
    ) -> Result<Answer, Failure> {
        let form = form(&parts.headers, if name.is_some() { Count::One } else { Count::Many })?;
        let options = ListOptions::parse(parts.uri.query().unwrap_or_default())?;
        if !options.fields.is_empty() {
            let message = "usages have no fields to select by: leave fieldSelector out";
            return Err(Failure::new(Reason::BadRequest, message).of(RESOURCE));
        }
        match namespace {
            Some(namespace) => self.ready(namespace)?,
            None => self.any_ready()?,
        }
        let wanted = LabelSelector::parse(&options.labels)?.admits(&super::labels::Labels::new());
        let now = self.now().as_millis().to_string();
        let found = if wanted { self.used(namespace, &now) } else { Vec::new() };
        let list_metadata = json!({"resourceVersion": now});
        if let Some(name) = name {
            let one = found.into_iter().next().filter(|_| name == NAME);
            let one = one.ok_or_else(|| Failure::no_such_object(RESOURCE, name))?;
            return Ok(match form {
                Form::Table => answer(StatusCode::OK, &table(&[one], options.include, &list_metadata)),
                Form::Metadata => answer(StatusCode::OK, &partial(&one)),
                Form::Whole => answer(StatusCode::OK, &one),
            });
        }
        let (metadata, api_version) = (list_metadata, API_VERSION);
        Ok(match form {
            Form::Table => answer(StatusCode::OK, &table(&found, options.include, &metadata)),
            Form::Metadata => {
                let (kind, api_version) = ("PartialObjectMetadataList", "meta.k8s.io/v1");
                let items: Vec<_> = found.iter().map(partial).collect();
                answer(StatusCode::OK, &List { kind, api_version, metadata, items })
            }
            Form::Whole => {
                answer(StatusCode::OK, &List { kind: "UsageList", api_version, metadata, items: found })
            }
        })
    }

    /// By namespace, in alphabetical order.
    fn used(&self, namespace: Option<&str>, now: &str) -> Vec<Object> {
        let namespaces: BTreeSet<Arc<str>> = self.namespaces().into_iter().collect();
        let wanted = namespaces.iter().filter(|known| namespace.is_none_or(|wanted| ***known == *wanted));
        wanted.map(|namespace| object(namespace, self.store().usage(namespace), self.limits(), now)).collect()
    }
}

fn object(namespace: &str, used: Usage, limits: &Limits, now: &str) -> Object {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    Object {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            resource_version: Some(now.to_owned()),
            ..ObjectMeta::default()
        },
        spec: UsageSpec {
            quota: UsageQuota {
                pending_bytes: number(limits.pending_bytes),
                events_per_second: i64::from(limits.events_per_second),
            },
            retention: UsageRetention {
                bytes: number(limits.retention.max_bytes),
                age: duration::format(limits.retention.max_age),
            },
        },
        status: Some(UsageStatus {
            pending_bytes: number(used.pending_bytes),
            log_bytes: number(used.bytes),
            deliveries: number(used.deliveries),
        }),
    }
}

/// The metadata of one alone.
fn partial(usage: &Object) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": usage.metadata})
}

/// Name, type and format, and what it says.
const COLUMNS: [(&str, &str, &str, &str); 6] = [
    ("Name", "string", "name", "Each namespace has the one that is called current."),
    ("Pending", "string", "", "Bytes of events that wait, of how many; beyond, publishing is refused."),
    ("Rate", "string", "", "Events that may be published in a second."),
    ("Log", "string", "", "Bytes of events and log, of how many; beyond, the oldest finished deliveries go."),
    ("Deliveries", "integer", "", "Deliveries in the log."),
    ("Kept", "string", "", "How long a finished delivery is kept."),
];

fn table(usages: &[Object], include: Include, metadata: &Value) -> Value {
    let columns = COLUMNS.map(|(name, kind, format, description)| {
        json!({"name": name, "type": kind, "format": format, "priority": 0, "description": description})
    });
    let beside = |usage: &Object| match include {
        Include::None => Value::Null,
        Include::Metadata => partial(usage),
        Include::Object => json!(usage),
    };
    let rows = usages.iter().map(|usage| json!({"cells": cells(usage), "object": beside(usage)}));
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows.collect::<Vec<_>>(),
    })
}

fn cells(usage: &Object) -> [Value; 6] {
    let text = |bytes: i64| size::format(u64::try_from(bytes).unwrap_or_default());
    let of = |used: i64, limit: i64| Value::from(format!("{}/{}", text(used), text(limit)));
    let UsageSpec { quota, retention } = &usage.spec;
    let used = usage.status.as_ref();
    [
        Value::from(NAME),
        of(used.map_or(0, |used| used.pending_bytes), quota.pending_bytes),
        Value::from(format!("{}/s", quota.events_per_second)),
        of(used.map_or(0, |used| used.log_bytes), retention.bytes),
        Value::from(used.map_or(0, |used| used.deliveries)),
        Value::from(retention.age.as_str()),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits {
        retention: Retention { max_age: Duration::from_hours(168), max_bytes: 1 << 30 },
        pending_bytes: 512 << 20,
        events_per_second: 1000,
    };

    #[test]
    fn a_row_sets_what_is_used_beside_its_limit() {
        let used = Usage { bytes: 3 << 29, deliveries: 17, pending_bytes: 1536 };
        let usage = object("team-a", used, &LIMITS, "7");
        let expected = ["current", "1.5Ki/512Mi", "1000/s", "1.5Gi/1Gi", "17", "168h"];
        let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), ToOwned::to_owned);
        assert_eq!(cells(&usage).each_ref().map(text), expected);
        let table = table(&[usage], Include::Metadata, &json!({"resourceVersion": "7"}));
        assert_eq!(table["rows"][0]["object"]["metadata"]["namespace"], "team-a");
        assert_eq!(table["columnDefinitions"].as_array().map(Vec::len), Some(expected.len()));
    }

    #[test]
    fn an_object_says_limits_as_its_spec_and_what_is_used_as_its_status() {
        let usage = object("team-a", Usage { bytes: 9, deliveries: 1, pending_bytes: 4 }, &LIMITS, "7");
        assert_eq!(
            json!(usage),
            json!({
                "apiVersion": "delivery.hookwright.dev/v1alpha1", "kind": "Usage",
                "metadata": {"name": "current", "namespace": "team-a", "resourceVersion": "7"},
                "spec": {
                    "quota": {"pendingBytes": 512 << 20, "eventsPerSecond": 1000},
                    "retention": {"bytes": 1 << 30, "age": "168h"},
                },
                "status": {"pendingBytes": 4, "logBytes": 9, "deliveries": 1},
            })
        );
        let unlimited = object("team-a", Usage::default(), &Limits::NONE, "7");
        assert_eq!(unlimited.spec.retention.bytes, i64::MAX);
    }
}
