//! Which namespaces live, and under which uid: asked of the API server, one at a time.
//!
//! A list or watch of all namespaces is a right that an installation for some does not have; `get` of one can be given
//! by a role in it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace as Object;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::time::{Instant, timeout};

use super::watch::why;
use crate::model::ids::{Namespace, NamespaceUid};
use crate::model::time::UnixMillis;
use crate::per_namespace::PerNamespace;

/// No answer within this is a failure.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What was answered is remembered for so long: that one lives,
const LIVES: Duration = Duration::from_secs(5);
/// that there is none, or that nobody answered,
const NOTHING: Duration = Duration::from_secs(1);
/// and that it may not be read.
const UNREADABLE: Duration = Duration::from_mins(1);
/// With more answers than this, those that are too old are forgotten, and all if that does not help.
const REMEMBERED: usize = 1024;

/// What was found under a namespace's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One that lives, also while it is being deleted.
    Lives {
        /// Which.
        uid: NamespaceUid,
        /// Since when, to the second.
        created: UnixMillis,
    },
    /// None.
    Nothing,
    /// It may not be read.
    Unreadable(String),
    /// The API server does not answer.
    NoAnswer(String),
}

impl Found {
    /// The uid of the namespace of an object that was created then and was there before this was asked; none: it is not
    /// known. A namespace that came after the object is not its own.
    pub fn uid_of(&self, created: UnixMillis) -> Option<NamespaceUid> {
        match self {
            Self::Lives { uid, created: began } => (*began <= created).then_some(*uid),
            Self::Nothing | Self::Unreadable(_) | Self::NoAnswer(_) => None,
        }
    }

    const fn holds_for(&self) -> Duration {
        match self {
            Self::Lives { .. } => LIVES,
            Self::Unreadable(_) => UNREADABLE,
            Self::Nothing | Self::NoAnswer(_) => NOTHING,
        }
    }
}

/// Asks the API server.
pub struct Namespaces {
    client: Client,
    answers: Mutex<HashMap<Namespace, (Instant, Found)>>,
    turns: PerNamespace,
}

impl std::fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Namespaces")
    }
}

impl Namespaces {
    /// Of this API server.
    pub fn new(client: Client) -> Self {
        Self { client, answers: Mutex::default(), turns: PerNamespace::new(1) }
    }

    /// What there is now.
    pub async fn read(&self, name: &str) -> Found {
        let api: Api<Object> = Api::all(self.client.clone());
        match timeout(TIMEOUT, api.get_metadata_opt(name)).await {
            Ok(Ok(Some(object))) => lives(&object),
            Ok(Ok(None)) => Found::Nothing,
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                Found::Unreadable(status.message.clone())
            }
            Ok(Err(error)) => Found::NoAnswer(why(&error)),
            Err(_) => Found::NoAnswer(format!("no answer within {}s", TIMEOUT.as_secs())),
        }
    }

    /// What there was some seconds ago at most. Of those who ask at the same time, one asks for all.
    pub async fn look_up(&self, name: &Namespace) -> Found {
        if let Some(found) = self.remembered(name) {
            return found;
        }
        let turn = self.turns.of(name);
        let _turn = turn.acquire().await;
        if let Some(found) = self.remembered(name) {
            return found;
        }
        let found = self.read(name).await;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= REMEMBERED {
            let now = Instant::now();
            answers.retain(|_, (at, found)| now.duration_since(*at) < found.holds_for());
            if answers.len() >= REMEMBERED {
                answers.clear();
            }
        }
        answers.insert(name.clone(), (Instant::now(), found.clone()));
        found
    }

    fn remembered(&self, name: &Namespace) -> Option<Found> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, found) = answers.get(name)?;
        (at.elapsed() < found.holds_for()).then(|| found.clone())
    }
}

fn lives(object: &PartialObjectMeta<Object>) -> Found {
    let meta = &object.metadata;
    let created =
        meta.creation_timestamp.as_ref().map_or_else(UnixMillis::default, |at| UnixMillis::from_jiff(at.0));
    match meta.uid.as_deref().and_then(|uid| uid.parse().ok()) {
        Some(uid) => Found::Lives { uid, created },
        None => Found::NoAnswer("the namespace has no uid".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response};
    use http_body_util::Full;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    const UID: &str = "7d9f4d0e-5c1b-4d3e-9b53-6d2f5f2c0a11";

    /// An API server that has one namespace, `team-a`, may not be asked for `secret`, and how often it was asked.
    fn server() -> (Client, Arc<AtomicUsize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let service = tower::service_fn(move |request: Request<Body>| {
            counted.fetch_add(1, Ordering::SeqCst);
            let status = |code: u16, reason| {
                (
                    code,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
                    "reason": reason, "code": code}),
                )
            };
            let (code, body) = match request.uri().path() {
                "/api/v1/namespaces/team-a" => (
                    200,
                    json!({"kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"name": "team-a", "uid": UID, "creationTimestamp": "2026-11-24T10:00:00Z"}}),
                ),
                "/api/v1/namespaces/secret" => status(403, "Forbidden"),
                "/api/v1/namespaces/broken" => status(500, "InternalError"),
                _ => status(404, "NotFound"),
            };
            let answer = Response::builder().status(code).body(Full::from(body.to_string())).unwrap();
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        (Client::new(service, "default"), calls)
    }

    fn at(text: &str) -> UnixMillis {
        UnixMillis::from_jiff(text.parse().unwrap())
    }

    #[tokio::test]
    async fn each_answer_is_told_apart() {
        let (client, _) = server();
        let namespaces = Namespaces::new(client);
        let lives = Found::Lives { uid: UID.parse().unwrap(), created: at("2026-11-24T10:00:00Z") };
        assert_eq!(namespaces.read("team-a").await, lives);
        assert_eq!(namespaces.read("team-b").await, Found::Nothing);
        assert!(matches!(namespaces.read("secret").await, Found::Unreadable(_)));
    }

    #[test]
    fn an_object_that_is_older_than_a_namespace_is_not_in_it() {
        let uid: NamespaceUid = UID.parse().unwrap();
        let found = Found::Lives { uid, created: at("2026-11-24T10:00:00Z") };
        for (created, expected) in [
            ("2026-11-24T09:59:59Z", None),
            ("2026-11-24T10:00:00Z", Some(uid)),
            ("2026-11-25T10:00:00Z", Some(uid)),
        ] {
            assert_eq!(found.uid_of(at(created)), expected, "{created}");
        }
        assert_eq!(Found::Nothing.uid_of(at("2026-11-25T10:00:00Z")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_remembered_for_seconds_and_one_asks_for_all() {
        let (client, calls) = server();
        let namespaces = Namespaces::new(client);
        let ask = |name: &'static str| {
            let namespaces = &namespaces;
            async move {
                let name: Namespace = name.into();
                futures::future::join_all((0..9).map(|_| namespaces.look_up(&name))).await
            }
        };
        for (name, holds) in [("team-a", LIVES), ("team-b", NOTHING), ("secret", UNREADABLE)] {
            calls.store(0, Ordering::SeqCst);
            ask(name).await;
            tokio::time::advance(holds.saturating_sub(Duration::from_millis(1))).await;
            ask(name).await;
            assert_eq!(calls.load(Ordering::SeqCst), 1, "{name}");
            tokio::time::advance(Duration::from_millis(1)).await;
            ask(name).await;
            assert_eq!(calls.load(Ordering::SeqCst), 2, "{name}");
        }
        for number in 0..3 * REMEMBERED {
            namespaces.look_up(&format!("ns-{number}").into()).await;
        }
        assert!(namespaces.answers.lock().unwrap().len() <= REMEMBERED);
    }
}
