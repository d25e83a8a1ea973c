//! A producer of events: a ServiceAccount's token, the published authority, CloudEvents over HTTPS.

use std::{fmt, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::{control_plane::ControlPlane, ensure_crypto_provider, operator::Operator, wait::eventually};

/// The audience of a producer's token.
pub const AUDIENCE: &str = "hookwright";

/// A client of the publishing door.
#[derive(Clone)]
pub struct Publisher {
    client: reqwest::Client,
    server: Server,
    base: String,
    token: String,
}

/// Whom to connect to.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    name: String,
    ca_pem: String,
}

/// One event with JSON data.
#[derive(Clone, Debug)]
pub struct Event {
    /// `id`, together with the source the event's identity.
    pub id: String,
    /// `source`.
    pub source: String,
    /// `type`.
    pub kind: String,
    /// `data`.
    pub data: Value,
}

/// What the door answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Event {
    /// An event of this type, from the source `/harness`.
    pub fn new(id: impl Into<String>, kind: impl Into<String>, data: Value) -> Self {
        Self { id: id.into(), source: "/harness".to_owned(), kind: kind.into(), data }
    }

    /// The structured form.
    pub fn structured(&self) -> Value {
        let Self { id, source, kind, data } = self;
        json!({
            "specversion": "1.0", "id": id, "source": source, "type": kind,
            "datacontenttype": "application/json", "data": data,
        })
    }

    /// The headers of the binary form; its body is the data.
    pub fn binary_headers(&self) -> Vec<(&str, &str)> {
        vec![
            ("ce-specversion", "1.0"),
            ("ce-id", &self.id),
            ("ce-source", &self.source),
            ("ce-type", &self.kind),
            ("content-type", "application/json"),
        ]
    }
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The answer, if it is 202, and an error with all it said otherwise.
    pub fn accepted(self) -> anyhow::Result<Value> {
        let (status, text) = (self.status, String::from_utf8_lossy(&self.body));
        anyhow::ensure!(status == 202, "the event was not accepted: {status} {text}");
        serde_json::from_slice(&self.body).with_context(|| format!("202 with a body that is no JSON: {text}"))
    }
}

/// Makes a ServiceAccount that may publish in its namespace (the role `hookwright-publisher`),
/// and waits until the role is in force.
pub async fn create_account(plane: &ControlPlane, namespace: &str, name: &str) -> anyhow::Result<()> {
    let kubectl = plane.kubectl();
    kubectl.ok(&["create", "serviceaccount", name, "-n", namespace]).await?;
    let subject = format!("--serviceaccount={namespace}:{name}");
    let role = "--clusterrole=hookwright-publisher";
    kubectl.ok(&["create", "rolebinding", name, role, &subject, "-n", namespace]).await?;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": format!("system:serviceaccount:{namespace}:{name}"),
            "resourceAttributes": {
                "namespace": namespace, "verb": "create",
                "group": "delivery.hookwright.dev", "resource": "cloudevents",
            },
        },
    });
    eventually(Duration::from_secs(20), "the publisher's role to be in force", async || {
        let asked = kubectl.run_with_input(&["create", "-f", "-", "-o", "json"], &review.to_string()).await;
        let answer = asked.map_err(|error| error.to_string())?;
        let review: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        let allowed = review.pointer("/status/allowed") == Some(&Value::Bool(true));
        if allowed { Ok(()) } else { Err(answer.stdout + &answer.stderr) }
    })
    .await
}

impl Server {
    fn client(&self) -> anyhow::Result<reqwest::Client> {
        ensure_crypto_provider();
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(self.ca_pem.as_bytes())?)
            .resolve(&self.name, self.address)
            .timeout(Duration::from_secs(30))
            .build()?;
        Ok(client)
    }
}

impl Publisher {
    /// A client of the door at `address`, whose certificate names `server_name` and is signed by
    /// `ca_pem`.
    pub fn new(address: SocketAddr, server_name: &str, ca_pem: &str, token: &str) -> anyhow::Result<Self> {
        let server = Server { address, name: server_name.to_owned(), ca_pem: ca_pem.to_owned() };
        let base = format!("https://{server_name}:{}", address.port());
        Ok(Self { client: server.client()?, server, base, token: token.to_owned() })
    }

    /// The same client, but over a connection of its own.
    pub fn with_new_connection(&self) -> anyhow::Result<Self> {
        Ok(Self { client: self.server.client()?, ..self.clone() })
    }

    /// A producer with the rights of this ServiceAccount.
    pub async fn with_account(
        plane: &ControlPlane,
        operator: &Operator,
        namespace: &str,
        account: &str,
    ) -> anyhow::Result<Self> {
        let token = plane.token(namespace, account, Some(AUDIENCE)).await?;
        Self::new(operator.address(), &operator.server_name(), &operator.ca_pem().await?, &token)
    }

    /// The same client with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Publishes one event, binary mode.
    pub async fn publish_binary(&self, namespace: &str, event: &Event) -> anyhow::Result<Answer> {
        self.publish(namespace, &event.binary_headers(), event.data.to_string()).await
    }

    /// Publishes one event, structured mode.
    pub async fn publish_structured(&self, namespace: &str, event: &Event) -> anyhow::Result<Answer> {
        let headers = [("content-type", "application/cloudevents+json")];
        self.publish(namespace, &headers, event.structured().to_string()).await
    }

    /// Publishes many events at once.
    pub async fn publish_batch(&self, namespace: &str, events: &[Event]) -> anyhow::Result<Answer> {
        let headers = [("content-type", "application/cloudevents-batch+json")];
        let batch: Vec<_> = events.iter().map(Event::structured).collect();
        self.publish(namespace, &headers, Value::from(batch).to_string()).await
    }

    /// Posts anything to the door of a namespace.
    pub async fn publish(
        &self,
        namespace: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> anyhow::Result<Answer> {
        let path = format!("/apis/delivery.hookwright.dev/v1alpha1/namespaces/{namespace}/cloudevents");
        self.send(http::Method::POST, &path, headers, body).await
    }

    /// Any request to the door, with the token unless it is empty.
    pub async fn send(
        &self,
        method: http::Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> anyhow::Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).body(body);
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await? })
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Publisher").field("base", &self.base).finish_non_exhaustive()
    }
}
