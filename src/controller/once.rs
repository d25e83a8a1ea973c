//! What the kinds that are carried out once have in common: WebhookTest and WebhookReplay.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::Error;
use super::conditions::{Maker, Status, find};
use crate::api::conditions::{READY, RECONCILING, STALLED, SUCCEEDED};
use crate::model::time::UnixMillis;
use crate::routes::Table;
use crate::routes::watch::why;
use crate::store::SLACK;

/// A Webhook that does not exist, or is not what is needed, for so long after the object was created fails it.
pub(super) const PATIENCE: Duration = Duration::from_mins(5);
/// How often what an object waits for is looked at. Costs no call.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How often a finished object is looked at that will be deleted: the clock may have been set.
const LOOK_AGAIN: Duration = Duration::from_mins(1);
/// No answer within this is a failure.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Whether an object must wait until the Webhooks of its namespace are listed: before that, one that is missing may
/// merely not have been seen. Then it is looked at again after [`LOOK`].
pub(super) fn is_early(table: &Table, object: &impl Resource) -> bool {
    !table.serves(object.meta().namespace.as_deref().unwrap_or_default())
}

/// Reason and message of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reason {
    pub(super) word: &'static str,
    pub(super) message: String,
    /// When to look again.
    pub(super) again: Duration,
}

/// What becomes of an object that is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// Nothing.
    Rest,
    /// It is looked at again after this time.
    Later(Duration),
    /// It was finished by a clock that was ahead, and has been set back: its time is counted from now.
    Redate,
    /// It is deleted now.
    Delete,
}

/// Whether a time is still to come: a clock gave it that was ahead, and has been set back.
pub(super) fn is_ahead(at: Option<&str>, now: UnixMillis) -> bool {
    time(at).is_some_and(|at| at > now + SLACK)
}

/// A time of a status, or now, if it is still to come.
pub(super) fn redated(at: &mut Option<String>, now: UnixMillis) {
    if is_ahead(at.as_deref(), now) {
        *at = Some(now.to_string());
    }
}

/// What becomes of an object that was finished then.
pub(super) fn afterwards(ttl: Option<i32>, completed_at: Option<&str>, now: UnixMillis) -> Afterwards {
    let (Some(ttl), Some(ended)) = (ttl, time(completed_at)) else { return Afterwards::Rest };
    if ended > now + SLACK {
        return Afterwards::Redate;
    }
    let due = ended + Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    if due <= now { Afterwards::Delete } else { Afterwards::Later(due.since(now).min(LOOK_AGAIN)) }
}

/// Whether there is a result, which is for good.
pub(super) fn is_finished(conditions: &[Condition]) -> bool {
    find(conditions, SUCCEEDED).is_some_and(|condition| condition.status != "Unknown")
}

/// When the object was created.
pub(super) fn created(object: &impl Resource) -> UnixMillis {
    let time = object.meta().creation_timestamp.as_ref();
    time.map(|time| UnixMillis::from_jiff(time.0)).unwrap_or_default()
}

/// For how long an object exists: the clock of kube-apiserver may be ahead of ours, or ours was set back.
pub(super) fn age(object: &impl Resource, known_for: Duration, now: UnixMillis) -> Duration {
    now.since(created(object)).max(known_for)
}

/// A time of a spec or status.
pub(super) fn time(text: Option<&str>) -> Option<UnixMillis> {
    text.and_then(UnixMillis::parse)
}

/// The conditions of an object without a result.
pub(super) fn open(maker: &Maker<'_>, reason: &str, message: &str) -> Vec<Condition> {
    vec![
        maker.make(SUCCEEDED, Status::Unknown, reason, message),
        maker.make(READY, Status::Unknown, reason, message),
        maker.make(RECONCILING, Status::True, reason, message),
    ]
}

/// The conditions of an object with its result.
pub(super) fn closed(maker: &Maker<'_>, succeeded: bool, reason: &str, message: &str) -> Vec<Condition> {
    let result = if succeeded { Status::True } else { Status::False };
    let mut conditions =
        vec![maker.make(SUCCEEDED, result, reason, message), maker.make(READY, result, reason, message)];
    if !succeeded {
        conditions.push(maker.make(STALLED, Status::True, reason, message));
    }
    conditions
}

/// Deletes an object whose time after its end is over, and no other of its name.
pub(super) async fn delete<K>(client: &Client, object: &K) -> Result<(), Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let this = Preconditions { uid: object.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
    let failed = |why| Error::Api { what: "delete the object, whose time after its end is over", why };
    match tokio::time::timeout(TIMEOUT, api.delete(&object.name_any(), &params)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(answer))) if answer.is_not_found() || answer.is_conflict() => Ok(()),
        Ok(Err(error)) => Err(failed(why(&error))),
        Err(_) => Err(failed("no answer".to_owned())),
    }
}
