//! What the fields mean, for `kubectl explain`: from the same Rust types that are served.

use serde_json::{Value, json};

use super::{GROUP, VERSION, set};
use crate::api::delivery::Delivery;
use crate::api::explained;
use crate::api::usage::Usage;

const TITLE: &str = "Hookwright";

/// OpenAPI v2: valid, and empty, since nobody who can read v3 asks for it.
pub(super) fn v2() -> Value {
    json!({"swagger": "2.0", "info": {"title": TITLE, "version": VERSION}, "paths": {}, "definitions": {}})
}

/// OpenAPI v3 of the group's version.
pub(super) fn v3() -> Value {
    let base = format!("/apis/{GROUP}/{VERSION}");
    let in_namespace = format!("{base}/namespaces/{{namespace}}");
    let namespace = || path_parameter("namespace", "The namespace.");
    let one = || vec![namespace(), path_parameter("name", "The name.")];
    json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": VERSION},
        "paths": {
            (format!("{base}/deliveries")): {
                "get": operation("Delivery", "DeliveryList", "list", "The log of all namespaces."),
            },
            (format!("{in_namespace}/deliveries")): {
                "get": operation("Delivery", "DeliveryList", "list", "The log of a namespace."),
                "parameters": [namespace()],
            },
            (format!("{in_namespace}/deliveries/{{name}}")): {
                "get": operation("Delivery", "Delivery", "get", "One line of the log."),
                "parameters": one(),
            },
            (format!("{in_namespace}/deliveries/{{name}}/payload")): {
                "get": operation("DeliveryPayload", "DeliveryPayload", "get", "What was sent, and what came back."),
                "parameters": one(),
            },
            (format!("{in_namespace}/deliveries/{{name}}/redeliver")): {
                "post": change("DeliveryRedelivery", "Attempt it once more."),
                "parameters": one(),
            },
            (format!("{in_namespace}/deliveries/{{name}}/expunge")): {
                "post": change("DeliveryExpunge", "Erase its event's payload and answers for good."),
                "parameters": one(),
            },
            (format!("{base}/usages")): {
                "get": operation("Usage", "UsageList", "list", "What each namespace uses."),
            },
            (format!("{in_namespace}/usages")): {
                "get": operation("Usage", "UsageList", "list", "What a namespace uses, as a list of one."),
                "parameters": [namespace()],
            },
            (format!("{in_namespace}/usages/{{name}}")): {
                "get": operation("Usage", "Usage", "get", "What a namespace uses; the name is current."),
                "parameters": one(),
            },
            (format!("{in_namespace}/cloudevents")): {
                "post": operation("CloudEvent", "CloudEvent", "post", "Publish an event."),
                "parameters": [namespace()],
            },
        },
        "components": {"schemas": {
            (name("Delivery")): of_kind("Delivery", with_metadata(explained::<Delivery>())),
            (name("DeliveryList")): of_kind("DeliveryList", list("Delivery", "Deliveries, newest first.")),
            (name("DeliveryPayload")): of_kind("DeliveryPayload", with_metadata(payload())),
            (name("DeliveryRedelivery")): of_kind("DeliveryRedelivery", with_metadata(redelivery())),
            (name("DeliveryExpunge")): of_kind("DeliveryExpunge", with_metadata(expunge())),
            (name("Usage")): of_kind("Usage", usage()),
            (name("UsageList")): of_kind("UsageList", list("Usage", "What each namespace uses.")),
            (name("CloudEvent")): of_kind("CloudEvent", cloud_event()),
        }},
    })
}

/// A schema's name, in the way of Kubernetes.
fn name(kind: &str) -> String {
    format!("dev.hookwright.delivery.{VERSION}.{kind}")
}

fn reference(kind: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{}", name(kind))})
}

fn path_parameter(name: &str, description: &str) -> Value {
    json!({
        "name": name, "in": "path", "required": true, "description": description,
        "schema": {"type": "string", "uniqueItems": true},
    })
}

fn operation(kind: &str, answers: &str, action: &str, description: &str) -> Value {
    json!({
        "description": description,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": GROUP, "version": VERSION, "kind": kind},
        "responses": {"200": {
            "description": "OK",
            "content": {"application/json": {"schema": reference(answers)}},
        }},
    })
}

/// A `POST` without a body.
fn change(kind: &str, description: &str) -> Value {
    let mut change = operation(kind, kind, "post", description);
    let dry_run = json!([{
        "name": "dryRun", "in": "query", "description": "All: say what would be done, and do nothing.",
        "schema": {"type": "string", "uniqueItems": true},
    }]);
    set(&mut change, "parameters", dry_run);
    if let Some(Value::Object(answers)) = change.get_mut("responses")
        && let Some(done) = answers.get("200").cloned()
    {
        answers.insert("201".to_owned(), done);
    }
    change
}

fn of_kind(kind: &str, mut schema: Value) -> Value {
    let kinds = json!([{"group": GROUP, "version": VERSION, "kind": kind}]);
    set(&mut schema, "x-kubernetes-group-version-kind", kinds);
    schema
}

fn with_metadata(mut schema: Value) -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let metadata = json!({
        "type": "object",
        "description": "Its name and namespace.",
        "properties": {
            "name": text("The delivery's name: the webhook-id header of every attempt."),
            "namespace": text("The namespace of its Webhook."),
            "uid": text("The same as the name."),
            "resourceVersion": text("Grows with every attempt, and with what somebody asks for."),
            "creationTimestamp": {
                "type": "string", "format": "date-time", "description": "When the event was accepted.",
            },
            "labels": {
                "type": "object",
                "description": "hookwright.dev/webhook and hookwright.dev/event-type. What cannot be a label's value is cut to 52 \
                                characters, _ for those that no value has, and ends in - and 10 digits of its SHA-256.",
                "additionalProperties": {"type": "string"},
            },
        },
    });
    if let Some(properties) = schema.get_mut("properties") {
        set(properties, "apiVersion", text("The group and version of this object."));
        set(properties, "kind", text("The kind of this object."));
        set(properties, "metadata", metadata);
    }
    schema
}

fn usage() -> Value {
    let mut schema = with_metadata(explained::<Usage>());
    let text = |description: &str| json!({"type": "string", "description": description});
    let metadata = json!({
        "type": "object",
        "description": "Its name and namespace.",
        "properties": {
            "name": text("It is current."),
            "namespace": text("The namespace."),
            "resourceVersion": text("The time at which it was read."),
        },
    });
    if let Some(properties) = schema.get_mut("properties") {
        set(properties, "metadata", metadata);
    }
    schema
}

fn list(kind: &str, description: &str) -> Value {
    json!({
        "type": "object",
        "description": description,
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "description": "resourceVersion, and continue when there are more."},
            "items": {"type": "array", "items": reference(kind), "description": "The objects."},
        },
    })
}

fn payload() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let answers = json!({
        "type": "array",
        "description": "The answer of every attempt, oldest first.",
        "items": {"type": "object", "properties": {
            "startedAt": {"type": "string", "format": "date-time", "description": "When the attempt started."},
            "responseStatus": {"type": "integer", "description": "HTTP status, if there was an answer."},
            "contentType": text("Content type of the answer."),
            "body": text("First 500 characters of the answer; what was secret in it is masked."),
        }},
    });
    json!({
        "type": "object",
        "description": "What was sent and what came back. It needs the right to deliveries/payload.",
        "properties": {
            "attributes": {
                "type": "object",
                "description": "The event's CloudEvents attributes.",
                "additionalProperties": {"type": "string"},
            },
            "contentType": text("Content type of the data."),
            "data": text("The data as it was sent, when it is UTF-8."),
            "dataBase64": text("The data as it was sent, otherwise."),
            "answers": answers,
        },
    })
}

fn redelivery() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "That a delivery which is Success or Failed waits for one attempt more, outside its retries and \
                        with the same webhook-id. It is asked for by create, with no body.",
        "properties": {
            "requestedBy": text("Who asked."),
            "requestedAt": {"type": "string", "format": "date-time", "description": "When."},
            "held": text("Why its Webhook keeps it waiting, if it does: Paused, Disabled, NotReady, EndpointUnhealthy."),
            "dryRun": {"type": "boolean", "description": "Nothing was done."},
        },
    })
}

fn expunge() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let number = |description: &str| json!({"type": "integer", "description": description});
    json!({
        "type": "object",
        "description": "That the payload of a delivery's event is erased, for all Webhooks that it went to, with all \
                        answers. What was not finished ends as Failed, Expunged. It is asked for by create, with no \
                        body; again does nothing.",
        "properties": {
            "requestedBy": text("Who asked first."),
            "requestedAt": {"type": "string", "format": "date-time", "description": "When."},
            "deliveries": number("Deliveries of the event that were not erased before."),
            "ended": number("Those of them that were not finished."),
            "dryRun": {"type": "boolean", "description": "Nothing was done, and nothing was counted."},
        },
    })
}

fn cloud_event() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "An event in the structured mode of CloudEvents 1.0. It is published by create, and cannot be \
                        read back: what became of it is in the deliveries.",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            "specversion": text("1.0"),
            "id": text("With source it names the event: published again within the operator's --dedup-window (1h), it is a duplicate."),
            "source": text("A URI reference of what the event comes from."),
            "type": text("What happened, such as order.created; Webhooks subscribe to it."),
            "subject": text("What it happened to."),
            "time": {"type": "string", "format": "date-time", "description": "When it happened."},
            "datacontenttype": text("Content type of the data."),
            "dataschema": text("A URI of the schema of the data."),
            "data": {"description": "The data: any JSON.", "x-kubernetes-preserve-unknown-fields": true},
            "data_base64": text("The data, when it is not JSON."),
        },
        "x-kubernetes-preserve-unknown-fields": true,
    })
}
