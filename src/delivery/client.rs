//! Attempts over HTTPS.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use tokio::time::{Instant, timeout_at};

use super::clients::{self, Clients};
use super::connection::{self, Body};
use super::egress::Guard;
use super::failure::Failure;
use super::request::{self, Request};
use super::{Job, Sender, Sent, http1, retry_after};
use crate::clock::Clock;
use crate::model::target::Host;
use crate::model::time::UnixMillis;
use crate::model::verdict::{Answer, judge};
use crate::store::Attempt;

/// Bytes of an answer that are read; then its connection is closed.
const MAX_READ: usize = 64 << 10;

/// Characters of an answer that are kept.
const KEPT: usize = 500;

/// Characters of a content type that are kept.
const KEPT_TYPE: usize = 200;

/// Characters of an error that are kept.
const KEPT_ERROR: usize = 400;

/// Makes attempts over HTTPS: no redirects, no proxy, no hidden retries, no decompression, every address judged
/// by the [`Guard`], connections at most five minutes old.
#[derive(Debug)]
pub struct HttpSender {
    guard: Arc<Guard>,
    clients: Clients,
    clock: Clock,
}

/// What was heard before the exchange ended, whole or not.
#[derive(Debug, Default)]
struct Heard {
    /// What was heard below HTTP/1.1: a status whose head never ended.
    line: Option<Arc<http1::Heard>>,
    status: Option<StatusCode>,
    headers: HeaderMap,
    body: Vec<u8>,
    is_cut: bool,
    failure: Option<Failure>,
}

impl HttpSender {
    /// A sender whose connections go where the guard allows.
    pub fn new(guard: Arc<Guard>, clock: Clock) -> Self {
        Self { clients: Clients::new(Arc::clone(&guard)), guard, clock }
    }

    async fn attempt(&self, job: &Job) -> Sent {
        let (at, began) = (self.clock.now(), Instant::now());
        let mut request = request::build(job, at.as_secs());
        let signatures = std::mem::take(&mut request.signatures);
        let mut heard = Heard::default();
        let again = || request::build(job, at.as_secs());
        let exchange = self.exchange(job, began, request, again, &mut heard);
        let ended = timeout_at(began + job.endpoint.timeout, exchange).await;
        heard.listen();
        heard.failure = match ended {
            Ok(exchanged) => exchanged.err(),
            Err(_) => Some(heard.overdue(job.endpoint.timeout)),
        };
        if heard.failure.is_some()
            && heard.status.is_none()
            && let Host::Name(name) = job.endpoint.target.host()
        {
            self.guard.forget(name);
        }
        let answer = heard.answer(self.clock.now());
        Sent { attempt: heard.record(job, &signatures, at, began), verdict: judge(&answer) }
    }

    async fn exchange(
        &self,
        job: &Job,
        began: Instant,
        request: Request,
        again: impl Fn() -> Request,
        heard: &mut Heard,
    ) -> Result<(), Failure> {
        let endpoint = &job.endpoint;
        // Again at each attempt: a literal never meets the resolver, and the policy may be another than when
        // the URL was parsed.
        endpoint.target.judge(&self.guard.policy()).map_err(Failure::denied_literal)?;
        let explain =
            |error: connection::Error| Failure::explain(&error, endpoint, clients::connect_timeout(endpoint));
        let posting = self.clients.post(job.webhook.uid, endpoint, began, request, again, &mut heard.line);
        let (response, lease) = posting.await.map_err(explain)?;
        let (parts, mut body) = response.into_parts();
        heard.status = Some(parts.status);
        heard.headers = parts.headers;
        heard.read(&mut body).await.map_err(explain)?;
        if !heard.is_cut {
            self.clients.give_back(lease);
        }
        Ok(())
    }
}

impl Heard {
    /// Takes the status of an answer whose head never ended.
    fn listen(&mut self) {
        let told = || self.line.as_ref().and_then(|line| StatusCode::from_u16(line.status()?).ok());
        self.status = self.status.or_else(told);
    }

    /// Reads until the end or the limit. What was read stays, also when this is dropped half-way.
    async fn read(&mut self, body: &mut Body) -> Result<(), connection::Error> {
        while let Some(chunk) = body.chunk().await? {
            let room = MAX_READ - self.body.len();
            self.body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
            if chunk.len() > room {
                self.is_cut = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// What was missing when the time was over.
    fn overdue(&self, limit: Duration) -> Failure {
        if self.status.is_some() { Failure::no_end(limit) } else { Failure::no_answer(limit) }
    }

    /// The status decides, once it has come: the body is a record, whatever became of it.
    fn answer(&self, now: UnixMillis) -> Answer {
        match (self.status, &self.failure) {
            (Some(status), _) => {
                let asked = self.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                let retry_after = asked.and_then(|value| retry_after::parse(value, now));
                Answer::Status { code: status.as_u16(), retry_after }
            }
            (None, Some(failure)) => failure.answer(),
            (None, None) => Answer::Broken,
        }
    }

    fn record(self, job: &Job, signatures: &[String], at: UnixMillis, began: Instant) -> Attempt {
        let Self { line: _, status, headers, body, is_cut, failure } = self;
        let masks = &job.endpoint.masks;
        let signatures: Vec<&str> = signatures.iter().map(String::as_str).collect();
        let keep = |text: &[u8], is_cut, limit| masks.first_characters(&signatures, text, is_cut, limit);
        let is_cut = is_cut || failure.is_some();
        let error = complaint(status, failure.as_ref());
        Attempt {
            at,
            duration: began.elapsed(),
            status: status.map(|status| status.as_u16()),
            body: (!body.is_empty()).then(|| keep(&body, is_cut, KEPT)),
            content_type: media_type(&headers).map(|kind| keep(kind.as_bytes(), false, KEPT_TYPE)),
            body_length: body.len() as u64,
            error: error.map(|error| keep(error.as_bytes(), false, KEPT_ERROR)),
            asked_by: None,
            probe: false,
            retry_after: None,
        }
    }
}

/// The media type of an answer, without parameters. What does not look like one is not kept: it is shown in a
/// status, where a receiver must not be able to write.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_part = |part: &str| {
        (1..=64).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    let (family, name) = kind.split_once('/')?;
    let known = ["application", "audio", "font", "image", "message", "model", "multipart", "text", "video"];
    (known.contains(&family) && is_part(name)).then_some(kind)
}

/// What is wrong with a status, or with the rest of the answer; none for a success that came whole.
fn complaint(status: Option<StatusCode>, failure: Option<&Failure>) -> Option<String> {
    let Some(status) = status else { return failure.map(Failure::sentence) };
    let reason = status.canonical_reason().map_or_else(String::new, |reason| format!(" ({reason})"));
    let answered = match status.as_u16() {
        code @ 300..=399 => format!("answered {code}{reason}; redirects are not followed"),
        code => format!("answered {code}{reason}"),
    };
    match failure {
        Some(failure) => Some(format!("{answered}; {}", failure.sentence())),
        None => (!status.is_success()).then_some(answered),
    }
}

impl Sender for HttpSender {
    fn send(&self, job: Job) -> BoxFuture<'_, Sent> {
        async move { self.attempt(&job).await }.boxed()
    }
}
