//! A list without `limit`: all of it, made while it is sent, in an amount of memory that does not grow with it.
//!
//! It has a bound, which must be known before the first byte is sent: what is over it is refused, never cut.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::{API_VERSION, Lines, List, Log, RETRY_AFTER, asked};
use crate::model::ids::DeliveryName;
use crate::model::time::UnixMillis;
use crate::per_namespace::PerNamespace;
use crate::server::apis::negotiate::Form;
use crate::server::apis::object::Line;
use crate::server::apis::options::Include;
use crate::server::apis::table::{partial, row, table};
use crate::server::reply::{Part, Reply};
use crate::server::status::{Answer, Failure, Reason};
use crate::store::{Page, Query};

/// Most lines of one list.
pub(super) const MOST: u64 = 100_000;
/// Most lines that are looked at to find them.
const LOOKS: u64 = 2_000_000;
/// How long it is counted, and how long it is sent.
const COUNTED_WITHIN: Duration = Duration::from_secs(20);
const SENT_WITHIN: Duration = Duration::from_mins(5);
/// Lines of one part: what a list holds in memory.
const PART: usize = 100;
/// Lines that are read at once when they are only counted.
const COUNTED: usize = 500;
/// Lists of this kind at once, of all and of one namespace, and how long another one waits for its turn. Those of all
/// namespaces are together as one namespace's.
const AT_ONCE: usize = 64;
const OF_ONE: usize = 2;
const TURN: Duration = Duration::from_secs(2);

/// How many lines and how many lists there may be.
#[derive(Debug)]
pub(super) struct Bounds {
    pub(super) most: u64,
    turns: Arc<Semaphore>,
    of_one: PerNamespace,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { most: MOST, turns: Arc::new(Semaphore::new(AT_ONCE)), of_one: PerNamespace::new(OF_ONE) }
    }
}

impl Bounds {
    /// A turn, unless none is free for too long. Who waits for one of its namespace takes none of all.
    async fn turn(&self, namespace: Option<&str>) -> Option<Turn> {
        let own = self.of_one.of(&namespace.unwrap_or_default().into());
        let turn = async {
            Some((own.acquire_owned().await.ok()?, Arc::clone(&self.turns).acquire_owned().await.ok()?))
        };
        timeout(TURN, turn).await.ok().flatten()
    }
}

/// Of its namespace, and of all.
type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What is asked for.
pub(super) struct Asked<'a> {
    pub(super) namespace: Option<&'a str>,
    /// Only what is older.
    pub(super) from: Option<DeliveryName>,
    pub(super) form: Form,
    pub(super) include: Include,
    pub(super) metadata: Value,
}

impl Log {
    /// All lines that are wanted.
    pub(super) async fn whole(&self, mut lines: Lines, asked: Asked<'_>) -> Result<Answer, Failure> {
        let Asked { namespace, from, form, include, metadata } = asked;
        let turn = self.bounds.turn(namespace).await;
        let busy = "too many lists without limit are under way: try again, or use limit";
        let turn = turn.ok_or_else(|| Failure::later(Reason::ServiceUnavailable, busy, RETRY_AFTER))?;
        let query = if let Some(name) = lines.selection.name().map(ToOwned::to_owned) {
            lines.read_one(namespace, &name).await?;
            None
        } else {
            lines.query(namespace, from)
        };
        let query = match query {
            Some(query) if self.lines_in(namespace) > self.bounds.most => {
                lines.bounded(query, self.bounds.most).await?
            }
            query => query,
        };
        let frame = Frame::new(form, metadata);
        let look = Look { form, include, now: self.clock.now() };
        let until = Instant::now() + SENT_WITHIN;
        let mut sending =
            Sending { lines, query, frame, look, until, is_first: true, is_over: false, _turn: turn };
        // What fails at once is still an answer of its own.
        sending.read().await?;
        let first = sending.written().map_err(unwritten)?;
        if sending.is_over {
            return Ok(answer(Reply::from(first)));
        }
        let rest = stream::unfold(sending, Sending::next);
        Ok(answer(Reply::made(stream::once(async { Ok(first) }).chain(rest))))
    }

    /// How many lines there are, whatever is selected.
    fn lines_in(&self, namespace: Option<&str>) -> u64 {
        if let Some(namespace) = namespace {
            return self.store.usage(namespace).deliveries;
        }
        let mut namespaces: Vec<_> =
            self.store.known().into_iter().map(|webhook| webhook.namespace).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        namespaces.iter().map(|namespace| self.store.usage(namespace).deliveries).sum()
    }
}

impl Lines {
    /// Counts what a query finds and is wanted. The same query, from the newest that was counted on; none: there is
    /// nothing.
    async fn bounded(&mut self, query: Query, most: u64) -> Result<Option<Query>, Failure> {
        let (until, mut looks, mut count, mut newest) = (Instant::now() + COUNTED_WITHIN, 0, 0, None);
        let mut next = Query { limit: COUNTED, ..query.clone() };
        loop {
            let Page { deliveries, next: more } = asked(self.store.query(next.clone())).await?;
            looks += deliveries.len() as u64;
            for delivery in deliveries {
                newest = newest.or(Some(delivery.name));
                self.take(delivery);
            }
            count += self.found.drain(..).len() as u64;
            if count > most {
                return Err(too_many(&format!("it has more than {most} lines")));
            }
            if more.is_none() {
                return Ok(newest.map(|newest| Query { before: Some(after(newest)), ..query }));
            }
            if looks > LOOKS || Instant::now() > until {
                return Err(too_many("finding all of it takes too long"));
            }
            next.before = more;
        }
    }
}

fn too_many(why: &str) -> Failure {
    let message = format!(
        "this list cannot be had whole: {why}; use limit and continue (kubectl --chunk-size=500 without --sort-by), or a \
         selector that finds fewer (kubectl --field-selector spec.webhook=NAME,status.state=Failed)"
    );
    Failure::new(Reason::BadRequest, message).of(super::RESOURCE)
}

/// The name that follows on another, so that what is before it begins with that one.
fn after(name: DeliveryName) -> DeliveryName {
    let number = u128::from_be_bytes(*name.as_bytes());
    DeliveryName::from_bytes(number.saturating_add(1).to_be_bytes())
}

/// How each line is shown.
#[derive(Clone, Copy)]
struct Look {
    form: Form,
    include: Include,
    now: UnixMillis,
}

impl Look {
    fn write(self, line: &Line, to: &mut Vec<u8>) -> serde_json::Result<()> {
        match self.form {
            Form::Table => serde_json::to_writer(to, &row(line, self.include, self.now)),
            Form::Metadata => serde_json::to_writer(to, &partial(line)),
            Form::Whole => serde_json::to_writer(to, &line.object()),
        }
    }
}

/// What is before the lines and after them.
struct Frame {
    head: Vec<u8>,
}

/// How a list ends whose lines are its last field.
const END: &[u8] = b"]}";

impl Frame {
    fn new(form: Form, metadata: Value) -> Self {
        let empty =
            |kind, api_version, metadata| written(&List::<()> { kind, api_version, metadata, items: vec![] });
        let mut head = match form {
            Form::Table => written(&table(vec![], metadata)),
            Form::Metadata => empty("PartialObjectMetadataList", "meta.k8s.io/v1", metadata),
            Form::Whole => empty("DeliveryList", API_VERSION, metadata),
        };
        head.truncate(head.len().saturating_sub(END.len()));
        Self { head }
    }
}

fn written(list: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(list).unwrap_or_default()
}

/// A list on its way.
struct Sending {
    lines: Lines,
    /// What is still to be read; none: nothing.
    query: Option<Query>,
    frame: Frame,
    look: Look,
    until: Instant,
    /// No line was written yet.
    is_first: bool,
    is_over: bool,
    _turn: Turn,
}

impl Sending {
    /// The next part. What fails ends the list before its end, so that nobody takes it for whole.
    async fn next(mut self) -> Option<(Part, Self)> {
        if self.is_over {
            return None;
        }
        let read = self.read().await.map_err(|failure| std::io::Error::other(failure.message));
        let part = read.and_then(|()| Ok(self.written()?));
        self.is_over |= part.is_err();
        Some((part, self))
    }

    /// Reads until something is found, or nothing is left.
    async fn read(&mut self) -> Result<(), Failure> {
        while let Some(query) = self.query.take() {
            if Instant::now() > self.until {
                return Err(Failure::new(Reason::RequestTimeout, "the list was taken too slowly"));
            }
            let Page { deliveries, next } =
                asked(self.lines.store.query(Query { limit: PART, ..query.clone() })).await?;
            self.query = next.map(|next| Query { before: Some(next), ..query });
            for delivery in deliveries {
                self.lines.take(delivery);
            }
            if !self.lines.found.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What was read, as it is sent.
    fn written(&mut self) -> serde_json::Result<Bytes> {
        let mut part = std::mem::take(&mut self.frame.head);
        for line in self.lines.found.drain(..) {
            if !std::mem::take(&mut self.is_first) {
                part.push(b',');
            }
            self.look.write(&line, &mut part)?;
        }
        if self.query.is_none() {
            part.extend_from_slice(END);
            self.is_over = true;
        }
        Ok(part.into())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is given by value where it is used")]
fn unwritten(error: serde_json::Error) -> Failure {
    Failure::new(Reason::InternalError, format!("a delivery cannot be written as JSON: {error}"))
}

fn answer(body: Reply) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}
