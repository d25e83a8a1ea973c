//! Pages of the log, newest first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Bound;

use fjall::{Readable, Snapshot};

use super::disk::{Disk, chain, decode_delivery, engine};
use super::keys;
use crate::model::ids::{DeliveryName, WebhookUid};
use crate::store::records::{Delivery, State};
use crate::store::{Error, Page, Result};

/// Names in one part of the index or of the log, newest first.
type Names = Box<dyn Iterator<Item = Result<DeliveryName>> + Send>;

const READ: &str = "read from the store";

/// Which names to walk.
#[derive(Debug)]
pub(super) enum Walk {
    /// All of the log.
    Everything,
    /// These states of these Webhooks.
    Of(Vec<WebhookUid>, Vec<State>),
}

/// Reads a page, all of it as of one moment.
pub(super) fn page(disk: &Disk, walk: &Walk, before: Option<DeliveryName>, limit: usize) -> Result<Page> {
    let snapshot = disk.db.snapshot();
    let mut names = match walk {
        Walk::Everything => everything(disk, &snapshot, before),
        Walk::Of(webhooks, states) => merged(disk, &snapshot, webhooks, states, before)?,
    };
    let mut page = Page::default();
    while let Some(name) = names.next().transpose()? {
        if page.deliveries.len() >= limit {
            page.next = page.deliveries.last().map(|last| last.name);
            break;
        }
        page.deliveries.extend(line(disk, &snapshot, name)?);
    }
    Ok(page)
}

/// A log line; one that cannot be decoded is logged and left out.
fn line(disk: &Disk, snapshot: &Snapshot, name: DeliveryName) -> Result<Option<Delivery>> {
    decode_delivery(name, snapshot.get(&disk.log, name.as_bytes())).or_else(|error| match error {
        Error::Corrupt { .. } => {
            tracing::error!(delivery = %name, error = %chain(&error), "left out of a page");
            Ok(None)
        }
        other => Err(other),
    })
}

fn everything(disk: &Disk, snapshot: &Snapshot, before: Option<DeliveryName>) -> Names {
    let end = before.map_or(Bound::Unbounded, |before| Bound::Excluded(before.as_bytes().to_vec()));
    let range = snapshot.range(&disk.log, (Bound::Unbounded, end));
    Box::new(range.rev().filter_map(|entry| match entry.key().map_err(engine(READ)) {
        Ok(key) => keys::name_in_log(&key).map(Ok),
        Err(error) => Some(Err(error)),
    }))
}

fn one(
    disk: &Disk,
    snapshot: &Snapshot,
    webhook: WebhookUid,
    state: State,
    before: Option<DeliveryName>,
) -> Names {
    let prefix = keys::index_in(webhook, state).to_vec();
    let end = match before {
        Some(before) => Bound::Excluded(keys::index(webhook, state, before).to_vec()),
        None => Bound::Included(keys::index(webhook, state, DeliveryName::from_bytes([0xff; 16])).to_vec()),
    };
    let range = snapshot.range(&disk.index, (Bound::Included(prefix), end));
    Box::new(range.rev().filter_map(|entry| match entry.key().map_err(engine(READ)) {
        Ok(key) => keys::name_in_index(&key).map(Ok),
        Err(error) => Some(Err(error)),
    }))
}

/// One part with its next name.
struct Head {
    name: DeliveryName,
    rest: Names,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
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
        self.name.cmp(&other.name)
    }
}

fn merged(
    disk: &Disk,
    snapshot: &Snapshot,
    webhooks: &[WebhookUid],
    states: &[State],
    before: Option<DeliveryName>,
) -> Result<Names> {
    let mut heads = BinaryHeap::with_capacity(webhooks.len() * states.len());
    for webhook in webhooks {
        for state in states {
            let mut rest = one(disk, snapshot, *webhook, *state, before);
            if let Some(name) = rest.next().transpose()? {
                heads.push(Head { name, rest });
            }
        }
    }
    Ok(Box::new(std::iter::from_fn(move || {
        let Head { name, mut rest } = heads.pop()?;
        match rest.next() {
            Some(Ok(next)) => heads.push(Head { name: next, rest }),
            Some(Err(error)) => return Some(Err(error)),
            None => {}
        }
        Some(Ok(name))
    })))
}
