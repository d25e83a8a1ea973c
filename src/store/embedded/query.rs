//! Pages of the log, newest first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Bound;

use fjall::{Readable, Snapshot};

use super::disk::{Disk, chain, decode_delivery, engine};
use super::keys::{self, Tag};
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
    /// These parts, as far as they have one of these states.
    Of(Vec<Part>, Vec<State>),
}

/// Names that belong together.
#[derive(Debug)]
pub(super) enum Part {
    /// One part of one Webhook in the index.
    OnDisk(WebhookUid, Tag),
    /// These, in any order. They may have changed their state since.
    Known(Vec<DeliveryName>),
}

/// Reads a page. What is read from disk is as of one moment, which is after the known parts were taken from
/// memory: so nothing that changes its state meanwhile is missed.
pub(super) fn page(disk: &Disk, walk: &Walk, before: Option<DeliveryName>, limit: usize) -> Result<Page> {
    let snapshot = disk.db.snapshot();
    let (mut names, states) = match walk {
        Walk::Everything => (everything(disk, &snapshot, before), State::ALL.as_slice()),
        Walk::Of(parts, states) => (merged(disk, &snapshot, parts, before)?, states.as_slice()),
    };
    let mut page = Page::default();
    while let Some(name) = names.next().transpose()? {
        if page.deliveries.len() >= limit {
            page.next = page.deliveries.last().map(|last| last.name);
            break;
        }
        page.deliveries.extend(line(disk, &snapshot, name)?.filter(|line| states.contains(&line.state)));
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

fn one(disk: &Disk, snapshot: &Snapshot, part: &Part, before: Option<DeliveryName>) -> Names {
    match part {
        Part::OnDisk(webhook, tag) => indexed(disk, snapshot, *webhook, *tag, before),
        Part::Known(names) => {
            let older = |name: &&DeliveryName| before.is_none_or(|before| **name < before);
            let mut names: Vec<_> = names.iter().filter(older).copied().collect();
            names.sort_unstable();
            Box::new(names.into_iter().rev().map(Ok))
        }
    }
}

fn indexed(
    disk: &Disk,
    snapshot: &Snapshot,
    webhook: WebhookUid,
    tag: Tag,
    before: Option<DeliveryName>,
) -> Names {
    let prefix = keys::index_in(webhook, tag).to_vec();
    let end = match before {
        Some(before) => Bound::Excluded(keys::index(webhook, tag, before).to_vec()),
        None => Bound::Included(keys::index(webhook, tag, DeliveryName::from_bytes([0xff; 16])).to_vec()),
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

fn merged(disk: &Disk, snapshot: &Snapshot, parts: &[Part], before: Option<DeliveryName>) -> Result<Names> {
    let mut heads = BinaryHeap::with_capacity(parts.len());
    for part in parts {
        let mut rest = one(disk, snapshot, part, before);
        if let Some(name) = rest.next().transpose()? {
            heads.push(Head { name, rest });
        }
    }
    let mut last = None;
    let next = move || {
        let Head { name, mut rest } = heads.pop()?;
        match rest.next() {
            Some(Ok(next)) => heads.push(Head { name: next, rest }),
            Some(Err(error)) => return Some(Err(error)),
            None => {}
        }
        Some(Ok(name))
    };
    // What changed its state meanwhile may be in two parts.
    Ok(Box::new(std::iter::from_fn(next).filter(move |name| match name {
        Ok(name) => last.replace(*name) != Some(*name),
        Err(_) => true,
    })))
}
