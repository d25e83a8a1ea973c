//! A log that is long before anything is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use hookwright::clock::Clock;
use hookwright::model::event::Attributes;
use hookwright::model::ids::{DeliveryName, Minter, WebhookRef};
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::{Attempt, NewDelivery, NewEvent, Next, Outcome, Store as _};

use super::figures::per_second;
use super::world::{World, event};

/// Events in one call of the store.
const CHUNK: usize = 1000;

/// Stops the operator, writes so many deliveries that are done into its store, rounded down to whole calls, and starts
/// it again. The number of them. None: leaves the operator alone.
pub(crate) async fn fill(world: &World, wanted: usize) -> anyhow::Result<usize> {
    let chunks = wanted / CHUNK;
    if chunks == 0 {
        return Ok(0);
    }
    let mut operator = world.operator.lock().await;
    operator.sigterm().await?;
    let (begun, minter) = (Instant::now(), Minter::default());
    let store = Embedded::open(Options::new(operator.data_dir()))?;
    let known = store.known();
    for chunk in 0..chunks {
        let webhook = known.get(chunk % known.len().max(1)).context("no Webhook is known")?;
        let now = Clock::system().now();
        let names: Vec<_> = (0..CHUNK).map(|_| minter.delivery(now)).collect();
        store.append(names.iter().map(|name| published(&minter, webhook, *name)).collect()).await?;
        store.record(names.iter().map(|name| delivered(webhook, *name)).collect()).await?;
    }
    store.close().await?;
    drop(store);
    eprintln!("    {} log entries at {:.0}/s", chunks * CHUNK, per_second(chunks * CHUNK, begun.elapsed()));
    operator.start_process().await?;
    Ok(chunks * CHUNK)
}

fn published(minter: &Minter, webhook: &WebhookRef, name: DeliveryName) -> NewEvent {
    let (now, id) = (Clock::system().now(), name.to_string());
    let data = event(&id, "other").data.to_string();
    NewEvent {
        uid: minter.event(now),
        namespace: Arc::clone(&webhook.namespace),
        attributes: Arc::new(Attributes {
            id: id.into(),
            source: "/log".into(),
            event_type: "other".into(),
            data_content_type: Some("application/json".into()),
            data_schema: None,
            subject: None,
            time: None,
            extensions: Vec::new(),
        }),
        data: Bytes::from(data),
        accepted_at: now,
        dedup: None,
        deliveries: vec![NewDelivery { name, webhook: webhook.clone(), test: false }],
    }
}

fn delivered(webhook: &WebhookRef, name: DeliveryName) -> Outcome {
    let at = Clock::system().now();
    let attempt = Attempt {
        at,
        duration: Duration::from_millis(1),
        status: Some(200),
        body: None,
        content_type: None,
        body_length: 0,
        error: None,
        asked_by: None,
        probe: false,
        retry_after: None,
    };
    Outcome {
        name,
        webhook: webhook.uid,
        attempt: Some(attempt),
        next: Next::Success,
        disable: None,
        failing: None,
        at,
    }
}
