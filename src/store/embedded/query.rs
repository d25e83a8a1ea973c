//! Pages of the log, newest first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Bound;
use std::sync::Arc;

use fjall::{Readable, Snapshot, UserKey, UserValue};

use super::disk::{Disk, decode_delivery, engine};
use super::hooks::{Hook, Hooks};
use super::keys::{self, Tag, Term};
use crate::model::causes::chain;
use crate::model::ids::{DeliveryName, Namespace, WebhookUid};
use crate::store::records::{Delivery, State};
use crate::store::{Error, Page, Query, Result};

/// A name, with its line if that was beside it.
type Entry = (DeliveryName, Option<UserValue>);
/// Names in one part of the index or of the log, newest first.
type Names = Box<dyn Iterator<Item = Result<Entry>> + Send>;

/// Lines that one page looks at, beyond those that it has.
const LOOKS: usize = 2000;

const READ: &str = "read from the store";

/// Names that belong together.
#[derive(Debug)]
enum Part {
    /// All of the log.
    Everything,
    /// One part of one Webhook in the index.
    Index(WebhookUid, Tag),
    /// Those of a namespace with a term, whose key this is.
    Term([u8; 8]),
    /// These, in any order. They may have changed their state since.
    Known(Vec<DeliveryName>),
}

/// Reads a page; the query names a Webhook by what it is kept under. What is read from disk is as of one moment, which is after the known parts were taken from
/// memory: so nothing that changes its state meanwhile is missed.
pub(super) fn page(disk: &Disk, hooks: &Hooks, query: &Query) -> Result<Page> {
    let parts = parts(hooks, query);
    let snapshot = disk.db.snapshot();
    let mut names = merged(disk, &snapshot, &parts, query.before)?;
    let mut page = Page::default();
    let mut looks = LOOKS + query.limit;
    let mut last = None;
    while let Some((name, value)) = names.next().transpose()? {
        if page.deliveries.len() >= query.limit || looks == 0 {
            page.next = last;
            break;
        }
        looks -= 1;
        last = Some(name);
        let line = match value {
            Some(value) => Ok(Some(value)),
            None => snapshot.get(&disk.log, name.as_bytes()),
        };
        let found = readable(name, line)?.filter(|line| wanted(line, query));
        page.deliveries.extend(found.and_then(|mut line| hooks.show(&mut line).then_some(line)));
    }
    Ok(page)
}

fn wanted(line: &Delivery, query: &Query) -> bool {
    let Query { namespace, webhook, states, event_id, event_type, test, before: _, limit: _ } = query;
    namespace.as_ref().is_none_or(|namespace| line.webhook.namespace == *namespace)
        && webhook.is_none_or(|webhook| line.webhook.uid == webhook)
        && (states.is_empty() || states.contains(&line.state))
        && event_id.as_ref().is_none_or(|id| line.event_id == *id)
        && event_type.as_ref().is_none_or(|event_type| line.event_type == *event_type)
        && test.is_none_or(|test| line.test == test)
}

/// By what the fewest lines are found that need to be looked at.
fn term(query: &Query) -> Option<Term<'_>> {
    let Query { namespace: _, webhook, states, event_id, event_type, test, before: _, limit: _ } = query;
    // Most of the log is Success.
    let is_broad = webhook.is_none() && (states.is_empty() || states.contains(&State::Success));
    let by_id = event_id.as_deref().map(Term::EventId);
    let by_test = (*test == Some(true)).then_some(Term::Test);
    by_id.or(by_test).or_else(|| event_type.as_deref().filter(|_| is_broad).map(Term::EventType))
}

/// The parts in which everything is that is wanted.
fn parts(hooks: &Hooks, query: &Query) -> Vec<Part> {
    let Query { namespace, webhook, states, .. } = query;
    if let Some(term) = term(query) {
        let namespaces = namespace.clone().map_or_else(|| hooks.namespaces(), |namespace| vec![namespace]);
        let parts = namespaces.iter().map(|namespace| Part::Term(keys::terms_of(namespace, term)));
        return parts.collect();
    }
    let every = State::ALL.iter().all(|state| states.is_empty() || states.contains(state));
    let hooks: Vec<Arc<Hook>> = match (webhook, namespace) {
        (Some(webhook), namespace) => {
            let here = |hook: &Arc<Hook>| {
                let is_here = |namespace: &Namespace| hook.summary().webhook.namespace == *namespace;
                !hook.is_hidden() && namespace.as_ref().is_none_or(is_here)
            };
            hooks.get(*webhook).into_iter().filter(here).collect()
        }
        (None, Some(namespace)) => hooks.of_namespace(namespace),
        (None, None) if every => return vec![Part::Everything],
        (None, None) => hooks.all(),
    };
    let of_hook = |hook: &Arc<Hook>| {
        let wanted = State::ALL.into_iter().filter(|state| every || states.contains(state));
        wanted.flat_map(|state| parts_of(hook, state)).collect::<Vec<_>>()
    };
    hooks.iter().flat_map(of_hook).collect()
}

/// The parts of the index with one state of one Webhook; none when it is known to be empty.
fn parts_of(hook: &Hook, state: State) -> Vec<Part> {
    let summary = hook.summary();
    let webhook = hook.key();
    match state {
        // Under load, the end of this part is full of what has just left it: memory knows what is there.
        State::Pending => {
            let first_attempts = hook.queue().pending();
            let first_attempts =
                first_attempts.map_or_else(|| Part::Index(webhook, state.into()), Part::Known);
            vec![first_attempts, Part::Index(webhook, Tag::REDELIVERY)]
        }
        State::Retrying if summary.pending == 0 => vec![],
        State::Retrying | State::Success | State::Failed => vec![Part::Index(webhook, state.into())],
    }
}

/// A log line; one that cannot be decoded is logged and left out.
fn readable(name: DeliveryName, value: fjall::Result<Option<UserValue>>) -> Result<Option<Delivery>> {
    decode_delivery(name, value).or_else(|error| match error {
        Error::Corrupt { .. } => {
            tracing::error!(delivery = %name, error = %chain(&error), "left out of a page");
            Ok(None)
        }
        other => Err(other),
    })
}

fn one(disk: &Disk, snapshot: &Snapshot, part: &Part, before: Option<DeliveryName>) -> Names {
    let newest = before.unwrap_or(DeliveryName::from_bytes([0xff; 16]));
    let end = |key: &[u8]| match before {
        Some(_) => Bound::Excluded(key.to_vec()),
        None => Bound::Included(key.to_vec()),
    };
    match part {
        Part::Everything => {
            let range = snapshot.range(&disk.log, (Bound::Unbounded, end(newest.as_bytes())));
            Box::new(range.rev().filter_map(|entry| match entry.into_inner().map_err(engine(READ)) {
                Ok((key, value)) => keys::name_in_log(&key).map(|name| Ok((name, Some(value)))),
                Err(error) => Some(Err(error)),
            }))
        }
        Part::Index(webhook, tag) => {
            let from = keys::index_in(*webhook, *tag).to_vec();
            let end = end(&keys::index(*webhook, *tag, newest));
            backwards(snapshot.range(&disk.index, (Bound::Included(from), end)), keys::name_in_index)
        }
        Part::Term(term) => {
            let end = end(&[term.as_slice(), newest.as_bytes()].concat());
            let range = snapshot.range(&disk.terms, (Bound::Included(term.to_vec()), end));
            backwards(range, keys::name_in_terms)
        }
        Part::Known(names) => {
            let older = |name: &&DeliveryName| before.is_none_or(|before| **name < before);
            let mut names: Vec<_> = names.iter().filter(older).copied().collect();
            names.sort_unstable();
            Box::new(names.into_iter().rev().map(|name| Ok((name, None))))
        }
    }
}

fn backwards(range: fjall::Iter, name: fn(&[u8]) -> Option<DeliveryName>) -> Names {
    let entry = move |key: fjall::Result<UserKey>| match key.map_err(engine(READ)) {
        Ok(key) => name(&key).map(|name| Ok((name, None))),
        Err(error) => Some(Err(error)),
    };
    Box::new(range.rev().filter_map(move |guard| entry(guard.key())))
}

/// One part with its next entry.
struct Head {
    entry: Entry,
    rest: Names,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.entry.0 == other.entry.0
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        self.entry.0.cmp(&other.entry.0)
    }
}

fn merged(disk: &Disk, snapshot: &Snapshot, parts: &[Part], before: Option<DeliveryName>) -> Result<Names> {
    let mut heads = BinaryHeap::with_capacity(parts.len());
    for part in parts {
        let mut rest = one(disk, snapshot, part, before);
        if let Some(entry) = rest.next().transpose()? {
            heads.push(Head { entry, rest });
        }
    }
    let mut last = None;
    let next = move || {
        let Head { entry, mut rest } = heads.pop()?;
        match rest.next() {
            Some(Ok(next)) => heads.push(Head { entry: next, rest }),
            Some(Err(error)) => return Some(Err(error)),
            None => {}
        }
        Some(Ok(entry))
    };
    // What changed its state meanwhile may be in two parts.
    Ok(Box::new(std::iter::from_fn(next).filter(move |entry| match entry {
        Ok((name, _)) => last.replace(*name) != Some(*name),
        Err(_) => true,
    })))
}
