//! Retention: letting old finished deliveries go, in bounded steps, so that the commits of others go between.
//!
//! Each namespace is looked through from its oldest finished delivery on, in order of acceptance, until one is met
//! that stays, and so do all behind it. Where the last look ended is remembered, so that what is gone is not walked
//! over again: a look costs what goes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::ops::Bound;

use fjall::{Readable, Snapshot};

use super::disk::{Disk, engine};
use super::erase::Erasure;
use super::hooks::Hooks;
use super::keys::{self, Tag};
use super::usage::Owner;
use crate::model::causes::chain;
use crate::model::ids::{DeliveryName, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::records::{Delivery, Retention, State};
use crate::store::{Error, Result};

/// Deliveries that are looked at in one step.
const STEP: usize = 512;

const READ: &str = "read from the store";

/// Where a look through a namespace stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Position {
    /// The last that was looked at; none: it begins.
    after: Option<DeliveryName>,
    /// The first that stays; while there is none, the last that went.
    oldest: Option<DeliveryName>,
    /// Whether that one stays.
    stays: bool,
    /// When the first of those that stay will be too old.
    until: Option<UnixMillis>,
}

impl Position {
    fn goes(&mut self, name: DeliveryName) {
        if !self.stays {
            self.oldest = Some(name);
        }
    }

    fn stays(&mut self, name: DeliveryName, until: UnixMillis) {
        if !std::mem::replace(&mut self.stays, true) {
            self.oldest = Some(name);
        }
        self.until = Some(self.until.map_or(until, |earliest| earliest.min(until)));
    }
}

/// What a step did.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// Deliveries that went.
    pub gone: u64,
    /// What the Webhooks are kept under whose log has changed.
    pub changed: HashSet<WebhookUid>,
    /// Where to go on; none: nothing more goes now.
    pub next: Option<Position>,
}

/// What becomes of a finished delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Goes,
    /// It was finished late: others that were accepted after it may go before.
    StaysUntil(UnixMillis),
    /// So do all that were accepted later.
    AllStayUntil(UnixMillis),
}

fn fate(line: &Delivery, used: u64, retention: &Retention, now: UnixMillis) -> Fate {
    let too_old = line.quiet_since() + retention.max_age;
    if used > retention.max_bytes || too_old <= now {
        Fate::Goes
    } else if line.accepted_at + retention.max_age > now {
        Fate::AllStayUntil(line.accepted_at + retention.max_age)
    } else {
        Fate::StaysUntil(too_old)
    }
}

/// Looks at the next few. Not synced: after a crash, what went goes again.
pub(super) fn step(
    disk: &Disk,
    hooks: &Hooks,
    retention: &Retention,
    owner: &Owner,
    now: UnixMillis,
    mut position: Position,
) -> Result<Step> {
    let usages = hooks.usages();
    let used = usages.get(owner).bytes;
    let from = match position.after {
        Some(after) => Bound::Excluded(after),
        None => usages.begin_look(owner).map_or(Bound::Unbounded, Bound::Included),
    };
    let of_owner: Vec<_> = hooks.of_owner(owner).iter().map(|hook| hook.key()).collect();
    let snapshot = disk.db.snapshot();
    let tags = [State::Success, State::Failed];
    let mut oldest = Oldest::new(disk, &snapshot, &of_owner, &tags, from)?;
    let (mut step, mut erasure) = (Step::default(), Erasure::new(disk, hooks, disk.db.batch()));
    for _ in 0..STEP {
        let Some((name, webhook, tag)) = oldest.next()? else {
            position.after = None;
            break;
        };
        position.after = Some(name);
        let Some(line) = line(disk, name)? else {
            position.stays(name, now + retention.max_age);
            continue;
        };
        match fate(&line, used.saturating_add_signed(erasure.deltas.bytes(owner)), retention, now) {
            Fate::Goes => {
                erasure.batch.remove(&disk.index, keys::index(webhook, tag, name));
                erasure.line(&line)?;
                position.goes(name);
                step.gone += 1;
                step.changed.insert(webhook);
            }
            Fate::StaysUntil(until) => position.stays(name, until),
            Fate::AllStayUntil(until) => {
                position.stays(name, until);
                position.after = None;
                break;
            }
        }
    }
    let (mut batch, mut deltas) = erasure.finish();
    if step.gone > 0 {
        deltas.save(disk, usages, &mut batch)?;
        batch.commit().map_err(engine("commit"))?;
        deltas.apply(usages);
    }
    if position.after.is_some() {
        step.next = Some(position);
    } else {
        let most = now + retention.max_age;
        usages.end_look(owner, position.oldest, position.until.map_or(most, |until| until.min(most)));
    }
    Ok(step)
}

/// A log line; one that cannot be decoded is logged and stays.
fn line(disk: &Disk, name: DeliveryName) -> Result<Option<Delivery>> {
    disk.delivery(name).or_else(|error| match error {
        Error::Corrupt { .. } => {
            tracing::error!(delivery = %name, error = %chain(&error), "cannot be let go");
            Ok(None)
        }
        other => Err(other),
    })
}

type Names = Box<dyn Iterator<Item = Result<DeliveryName>>>;

/// The finished deliveries of some Webhooks, oldest first.
pub(super) struct Oldest {
    heads: BinaryHeap<Reverse<(DeliveryName, usize)>>,
    parts: Vec<(WebhookUid, Tag, Names)>,
}

impl Oldest {
    /// Those of these states.
    pub(super) fn new(
        disk: &Disk,
        snapshot: &Snapshot,
        webhooks: &[WebhookUid],
        states: &[State],
        from: Bound<DeliveryName>,
    ) -> Result<Self> {
        let mut all = Self { heads: BinaryHeap::new(), parts: Vec::new() };
        for webhook in webhooks {
            for tag in states.iter().copied().map(Tag::from) {
                all.parts.push((*webhook, tag, names(disk, snapshot, *webhook, tag, from)));
                all.advance(all.parts.len() - 1)?;
            }
        }
        Ok(all)
    }

    fn advance(&mut self, part: usize) -> Result<()> {
        let next = self.parts.get_mut(part).and_then(|(_, _, names)| names.next()).transpose()?;
        self.heads.extend(next.map(|name| Reverse((name, part))));
        Ok(())
    }

    /// The next, with its Webhook and its part of the index.
    pub(super) fn next(&mut self) -> Result<Option<(DeliveryName, WebhookUid, Tag)>> {
        let Some(Reverse((name, part))) = self.heads.pop() else { return Ok(None) };
        self.advance(part)?;
        Ok(self.parts.get(part).map(|(webhook, tag, _)| (name, *webhook, *tag)))
    }
}

fn names(
    disk: &Disk,
    snapshot: &Snapshot,
    webhook: WebhookUid,
    tag: Tag,
    from: Bound<DeliveryName>,
) -> Names {
    let key = |name| keys::index(webhook, tag, name).to_vec();
    let from = match from {
        Bound::Unbounded => Bound::Included(keys::index_in(webhook, tag).to_vec()),
        Bound::Included(name) => Bound::Included(key(name)),
        Bound::Excluded(name) => Bound::Excluded(key(name)),
    };
    let end = Bound::Included(key(DeliveryName::from_bytes([0xff; 16])));
    Box::new(snapshot.range(&disk.index, (from, end)).filter_map(|entry| {
        match entry.key().map_err(engine(READ)) {
            Ok(key) => keys::name_in_index(&key).map(Ok),
            Err(error) => Some(Err(error)),
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::model::ids::{EventUid, WebhookRef};
    use crate::store::records::EndReason;

    fn at(hours: i64) -> UnixMillis {
        UnixMillis::from_millis(hours * 3_600_000)
    }

    fn line(accepted: i64, ended: Option<i64>) -> Delivery {
        Delivery {
            name: DeliveryName::from_bytes([1; 16]),
            webhook: WebhookRef {
                uid: WebhookUid::from_bytes([1; 16]),
                namespace: "team-a".into(),
                name: "orders".into(),
            },
            event: EventUid::from_bytes([1; 16]),
            event_id: Arc::from("1"),
            event_type: Arc::from("order.created"),
            test: false,
            accepted_at: at(accepted),
            state: State::Failed,
            due: None,
            reason: Some(EndReason::Expired),
            attempts: vec![],
            ended_at: ended.map(at),
            redelivery: None,
            expunged: None,
            event_source: None,
        }
    }

    #[test]
    fn what_goes_is_old_since_its_end_or_too_much() {
        let retention = Retention { max_age: Duration::from_hours(10), max_bytes: 100 };
        let none = Retention::FOREVER;
        for (accepted, ended, used, retention, fate_of) in [
            (0, Some(1), 100, retention, Fate::StaysUntil(at(11))),
            (0, Some(0), 100, retention, Fate::Goes),
            (0, None, 100, retention, Fate::Goes),
            (1, Some(2), 100, retention, Fate::AllStayUntil(at(11))),
            (9, Some(9), 101, retention, Fate::Goes),
            (0, Some(0), u64::MAX, none, Fate::AllStayUntil(UnixMillis::from_millis(i64::MAX))),
        ] {
            assert_eq!(
                fate(&line(accepted, ended), used, &retention, at(10)),
                fate_of,
                "{accepted} {ended:?} {used}"
            );
        }
    }
}
