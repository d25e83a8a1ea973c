//! Whether a user may do something: RBAC's word, by a SubjectAccessReview.

use std::sync::Arc;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::cache::Cache;
use super::{KEEP_MOST, KEEP_NO, KEEP_YES, Questions, User};
use crate::api::{DELIVERY_GROUP, DELIVERY_VERSION};
use crate::server::status::{Failure, Reason};

/// What somebody wants to do in the API `delivery.hookwright.dev`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Action {
    /// `create`, `get`, `list`.
    pub verb: &'static str,
    /// Plural.
    pub resource: &'static str,
    /// After the resource's name.
    pub subresource: Option<&'static str>,
    /// None: all.
    pub namespace: Option<String>,
    /// None: any.
    pub name: Option<String>,
}

/// Judges rights.
#[derive(Debug)]
pub(super) struct Access {
    reviews: Api<SubjectAccessReview>,
    questions: Arc<Questions>,
    allowed: Cache<([u8; 32], Action), ()>,
    denied: Cache<([u8; 32], Action), ()>,
}

impl Access {
    pub(super) fn new(client: Client, questions: Arc<Questions>) -> Self {
        Self {
            reviews: Api::all(client),
            questions,
            allowed: Cache::new(KEEP_YES, KEEP_MOST),
            denied: Cache::new(KEEP_NO, KEEP_MOST),
        }
    }

    /// Whether RBAC lets this user do this.
    pub(super) async fn authorize(&self, user: &User, action: &Action) -> Result<(), Failure> {
        let key = (user.fingerprint, action.clone());
        if self.allowed.get(&key).is_some() {
            return Ok(());
        }
        if self.denied.get(&key).is_some() {
            return Err(forbidden(user, action));
        }
        let review = review(user, action);
        let params = PostParams::default();
        let answer = self.questions.ask("SubjectAccessReview", self.reviews.create(&params, &review)).await?;
        if answer.status.is_some_and(|status| status.allowed) {
            self.allowed.put(key, ());
            Ok(())
        } else {
            self.denied.put(key, ());
            Err(forbidden(user, action))
        }
    }
}

fn review(user: &User, action: &Action) -> SubjectAccessReview {
    let resource = ResourceAttributes {
        group: Some(DELIVERY_GROUP.to_owned()),
        version: Some(DELIVERY_VERSION.to_owned()),
        resource: Some(action.resource.to_owned()),
        subresource: action.subresource.map(ToOwned::to_owned),
        namespace: action.namespace.clone(),
        name: action.name.clone(),
        verb: Some(action.verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        resource_attributes: Some(resource),
        user: Some(user.username.clone()),
        uid: user.uid.clone(),
        groups: Some(user.groups.clone()),
        extra: Some(user.extra.clone()),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview { spec, ..SubjectAccessReview::default() }
}

/// The sentence that kubectl's users know.
fn forbidden(user: &User, action: &Action) -> Failure {
    let Action { verb, resource, subresource, namespace, name } = action;
    let name = name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
    let subresource = subresource.map(|sub| format!("/{sub}")).unwrap_or_default();
    let place = match namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let message = format!(
        "{resource}.{DELIVERY_GROUP}{name} is forbidden: User {:?} cannot {verb} resource \"{resource}{subresource}\" \
         in API group {DELIVERY_GROUP:?} {place}",
        user.username
    );
    Failure::new(Reason::Forbidden, message).of(action.resource)
}
