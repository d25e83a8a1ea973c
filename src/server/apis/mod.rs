//! What makes this an API of Kubernetes: the server side of an aggregated API. It knows little of deliveries, and
//! could be lifted out.
//!
//! | part | question |
//! | --- | --- |
//! | [`discovery`], `openapi` | what is there, and what do its fields mean; from memory, made once |
//! | [`options`], `selector`, `token` | which objects, how many, from where on |
//! | `negotiate`, [`table`] | in which form |
//! | [`object`], [`deliveries`] | a line of the log as an object; get, list, and the two things that can be done to one |
//! | [`usages`] | what each namespace uses of its limits |
//! | [`registration`] | kube-apiserver trusts our certificate |

pub mod deliveries;
pub(super) mod discovery;
mod labels;
mod negotiate;
mod object;
mod openapi;
mod options;
pub mod registration;
mod selector;
mod table;
mod token;
pub mod usages;

use serde_json::Value;

pub(super) use options::dry_run;

use crate::api::{DELIVERY_GROUP as GROUP, DELIVERY_VERSION as VERSION};

/// `apiVersion` of every object here.
const API_VERSION: &str = "delivery.hookwright.dev/v1alpha1";

/// Sets a field of a JSON object.
fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Value::Object(fields) = object {
        fields.insert(field.to_owned(), value.into());
    }
}

/// A resource of this API.
struct Resource {
    name: &'static str,
    singular: &'static str,
    kind: &'static str,
    short: &'static [&'static str],
    verbs: &'static [&'static str],
    subresources: &'static [Subresource],
}

/// What is below a resource's object.
struct Subresource {
    name: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
}

/// Everything that is announced, sorted by name. There is no `watch` and no `delete`: what has them is pulled whole
/// into every Argo CD, garbage collector and quota controller. A new subresource begins here.
const RESOURCES: &[Resource] = &[
    Resource {
        name: "cloudevents",
        singular: "cloudevent",
        kind: "CloudEvent",
        short: &[],
        verbs: &["create"],
        subresources: &[],
    },
    Resource {
        name: deliveries::RESOURCE,
        singular: "delivery",
        kind: "Delivery",
        short: &["dlv"],
        verbs: &["get", "list"],
        subresources: &[
            Subresource { name: "expunge", kind: "DeliveryExpunge", verbs: &["create"] },
            Subresource { name: "payload", kind: "DeliveryPayload", verbs: &["get"] },
            Subresource { name: "redeliver", kind: "DeliveryRedelivery", verbs: &["create"] },
        ],
    },
    Resource {
        name: usages::RESOURCE,
        singular: "usage",
        kind: "Usage",
        short: &[],
        verbs: &["get", "list"],
        subresources: &[],
    },
];
