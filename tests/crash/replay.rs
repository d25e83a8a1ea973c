//! A replay of ten thousand: a crash in its middle loses none, a deletion stops it at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use hookwright::clock::Clock;
use hookwright::model::event::Attributes;
use hookwright::model::ids::{DeliveryName, Minter, WebhookRef};
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::replays::Replays as _;
use hookwright::store::{
    Attempt, Delivery, EndReason, NewDelivery, NewEvent, Next, Outcome, Query, State, Store as _,
};
use hookwright_harness::receiver::Answer;
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};

use crate::world::{SOON, Team, World, condition};

const COUNT: usize = 10_000;
/// Deliveries of a replay that wait at most.
const WINDOW: usize = 256;
const PATIENCE: Duration = Duration::from_mins(3);

/// A store that is read while no process has it open.
async fn opened<T>(team: &Team, with: impl AsyncFnOnce(&Embedded) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let store = Embedded::open(Options::new(team.world.operator.lock().await.data_dir()))?;
    let result = with(&store).await?;
    store.close().await?;
    Ok(result)
}

/// What a night with a dead receiver leaves behind: deliveries that were given up. The last one arrived: the
/// receiver is mended.
async fn night(store: &Embedded, webhook: &WebhookRef) -> anyhow::Result<Vec<DeliveryName>> {
    let (minter, now) = (Minter::default(), Clock::system().now());
    let names: Vec<_> = (0..=COUNT).map(|_| minter.delivery(now)).collect();
    let event = |name: &DeliveryName| NewEvent {
        uid: minter.event(now),
        namespace: Arc::clone(&webhook.namespace),
        attributes: Arc::new(Attributes {
            id: name.to_string().into(),
            source: "/night".into(),
            event_type: "order.created".into(),
            data_content_type: Some("application/json".into()),
            data_schema: None,
            subject: None,
            time: None,
            extensions: Vec::new(),
        }),
        data: Bytes::from_static(b"{}"),
        accepted_at: now,
        dedup: None,
        deliveries: vec![NewDelivery { name: *name, webhook: webhook.clone(), test: false }],
    };
    let outcome = |name: &DeliveryName| {
        let arrives = Some(name) == names.last();
        let attempt = Attempt {
            at: now,
            duration: Duration::from_millis(1),
            status: Some(if arrives { 200 } else { 503 }),
            body: None,
            content_type: None,
            body_length: 0,
            error: None,
            asked_by: None,
            probe: false,
            retry_after: None,
        };
        let next = if arrives { Next::Success } else { Next::Failed(EndReason::RetriesExhausted) };
        Outcome {
            name: *name,
            webhook: webhook.uid,
            attempt: Some(attempt),
            next,
            disable: None,
            failing: None,
            at: now,
        }
    };
    for some in names.chunks(1000) {
        store.append(some.iter().map(event).collect()).await?;
        store.record(some.iter().map(outcome).collect()).await?;
    }
    Ok(names[..COUNT].to_vec())
}

async fn create(team: &Team, name: &str, states: &[&str]) -> anyhow::Result<()> {
    let select = json!({"from": "2000-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z", "states": states});
    let replay = json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "WebhookReplay",
                        "metadata": {"name": name, "namespace": team.namespace}, "spec": {"select": select}});
    team.kubectl.apply(&replay.to_string()).await.map(drop)
}

/// Every delivery of the log.
async fn log(store: &Embedded) -> anyhow::Result<Vec<Delivery>> {
    let mut query = Query { limit: 1000, ..Query::default() };
    let mut all = Vec::new();
    loop {
        let page = store.query(query.clone()).await?;
        all.extend(page.deliveries);
        match page.next {
            Some(next) => query.before = Some(next),
            None => return Ok(all),
        }
    }
}

fn asked_by(delivery: &Delivery, who: &str) -> usize {
    delivery.attempts.iter().filter(|attempt| attempt.asked_by.as_deref() == Some(who)).count()
}

async fn prepared() -> anyhow::Result<(Arc<World>, Team, Vec<DeliveryName>)> {
    let world = World::alone(&[]).await?;
    let team = Team::of(&world, "replay").await?;
    team.webhook("orders", json!({"maxRetries": 0, "maxInFlight": 256})).await?;
    assert!(world.operator.lock().await.sigterm().await?.success());
    let names = opened(&team, async |store| {
        let known = store.known();
        let orders =
            known.iter().find(|webhook| &*webhook.name == "orders").context("orders is not known")?;
        night(store, orders).await
    })
    .await?;
    world.operator.lock().await.start_process().await?;
    Ok((world, team, names))
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_are_sent_once_more_with_a_kill_in_the_middle() -> anyhow::Result<()> {
    let (world, team, names) = prepared().await?;
    // Now and then one fails again, never five in a row.
    let script = (0..COUNT).map(|n| if n % 100 == 50 { Answer::status(500) } else { Answer::ok() });
    team.receiver.set_script("/orders", script.collect(), Answer::ok());
    create(&team, "night", &["Failed"]).await?;
    team.receiver.await_requests("/orders", COUNT / 2, PATIENCE).await?;
    let mut operator = world.operator.lock().await;
    operator.kill9();
    let killed_at = team.receiver.count("/orders");
    let running = Instant::now();
    operator.start_process().await?;
    drop(operator);

    let object = ("webhookreplays.hookwright.dev", &*team.namespace, "night");
    let done = |replay: &Value| replay["status"]["completedAt"].is_string();
    let replay = team.kubectl.wait_for(object, PATIENCE, "finished", done).await?;
    // Calm: at its start, then at most every five seconds, and at its end.
    let most = 3.0 + running.elapsed().as_secs_f64() / 5.0;
    let operator = world.operator.lock().await;
    let writes = operator.metric("hookwright_status_writes_total", &["kind=\"WebhookReplay\""]).await?;
    drop(operator);
    assert!(
        (1.0..=most).contains(&writes),
        "{writes} writes of its status since the restart, at most {most}"
    );
    let arrived: HashSet<_> = team
        .receiver
        .requests("/orders")
        .iter()
        .filter_map(|request| request.header("webhook-id")?.parse::<DeliveryName>().ok())
        .collect();
    let sent = team.receiver.count("/orders");
    eprintln!("{killed_at} sent when killed, {sent} in all");
    assert!(killed_at < COUNT, "it was killed in the middle: {killed_at}");
    assert_eq!(names.iter().filter(|name| !arrived.contains(name)).count(), 0, "each at least once");
    assert_eq!(arrived.len(), COUNT, "and nothing else");
    assert!(sent < COUNT + 1000, "what was under way is repeated, and no more: {sent}");

    // The counts are those of the log.
    assert!(world.operator.lock().await.sigterm().await?.success());
    let lines: HashMap<_, _> = opened(&team, async |store| log(store).await)
        .await?
        .into_iter()
        .map(|line| (line.name, line))
        .collect();
    let again = |state| {
        let in_state = |name: &&DeliveryName| lines[*name].state == state;
        names.iter().filter(in_state).count()
    };
    let status = &replay["status"];
    for (field, expected) in [
        ("selected", COUNT),
        ("sent", COUNT),
        ("succeeded", again(State::Success)),
        ("failed", again(State::Failed)),
        ("skipped", 0),
    ] {
        assert_eq!(status[field], expected, "{field} in {status}");
    }
    assert!(status["failed"].as_i64() > Some(0), "{status}");
    assert_eq!(condition(&replay, "Succeeded")["reason"], "DeliveriesFailed");
    let once = |name: &&DeliveryName| asked_by(&lines[*name], "WebhookReplay/night") == 1;
    assert_eq!(names.iter().filter(once).count(), COUNT, "one attempt of each is on record");
    Ok(())
}

/// How many have arrived, once no more come.
async fn at_rest(team: &Team) -> usize {
    while team.receiver.expect_silence("/orders", Duration::from_secs(2)).await.is_err() {}
    team.receiver.count("/orders")
}

/// Waits until so many replays were stopped: nothing of them waits any more.
async fn await_stopped(team: &Team, count: usize) -> anyhow::Result<()> {
    eventually(SOON, "the replay to be stopped", async || {
        let log = team.world.operator.lock().await.log();
        let stopped = log.lines().filter(|line| line.contains("stopped, since it was deleted")).count();
        if stopped >= count { Ok(()) } else { Err(format!("{stopped} stopped")) }
    })
    .await
}

/// Deletes a replay when it has sent some; how long after that the last request came.
async fn deleted_half_way(team: &Team, name: &str, stopped: usize) -> anyhow::Result<Duration> {
    let before = team.receiver.count("/orders");
    create(team, name, &["Failed"]).await?;
    team.receiver.await_requests("/orders", before + 600, PATIENCE).await?;
    team.kubectl.delete("hookreplay", &team.namespace, name).await?;
    let deleted = Instant::now();
    await_stopped(team, stopped).await?;
    let stopped = team.receiver.count("/orders");
    let sent = at_rest(team).await;
    assert!(sent - stopped <= WINDOW, "at most what was under way: {}", sent - stopped);
    assert!(sent < COUNT * 3 / 4, "it was half-way: {sent}");
    let requests = team.receiver.requests("/orders");
    let last = requests.last().context("no request")?;
    Ok(last.at.saturating_duration_since(deleted))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_deleted_half_way_stops_within_a_second() -> anyhow::Result<()> {
    let (world, team, names) = prepared().await?;
    // So that one is half-way for seconds.
    team.receiver.answer("/orders", Answer::ok().after(Duration::from_millis(500)));
    // A machine that is busy may hold up one of them.
    let mut took = Vec::new();
    for night in 1..=3 {
        took.push(deleted_half_way(&team, &format!("night-{night}"), night).await?);
    }
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    let sent = team.receiver.count("/orders");
    let nothing_waits = |webhook: &Value| webhook["status"]["pendingDeliveries"] == 0;
    team.await_webhook("orders", "nothing pending", nothing_waits).await?;

    // Once more, deleted while the operator is gone.
    create(&team, "again", &["Failed", "Success"]).await?;
    team.receiver.await_requests("/orders", sent + 1000, PATIENCE).await?;
    let mut operator = world.operator.lock().await;
    operator.kill9();
    let killed_at = at_rest(&team).await;
    team.kubectl.delete("hookreplay", &team.namespace, "again").await?;
    operator.start_process().await?;
    drop(operator);
    await_stopped(&team, 4).await?;
    let more = at_rest(&team).await - killed_at;
    assert!(more <= WINDOW, "at most what waited: {more}");

    assert!(world.operator.lock().await.sigterm().await?.success());
    let (lines, replays) = opened(&team, async |store| Ok((log(store).await?, store.replays()))).await?;
    assert_eq!(replays, [], "nothing is left of them");
    let unfinished = lines.iter().filter(|line| !line.state.is_final() || line.redelivery.is_some());
    assert_eq!(unfinished.count(), 0, "what was not sent is what it was");
    let by_name: HashMap<_, _> = lines.iter().map(|line| (line.name, line)).collect();
    let on_record = |line: &Delivery| {
        let nights = (1..=3).map(|night| asked_by(line, &format!("WebhookReplay/night-{night}")));
        nights.sum::<usize>() > 0
    };
    let of_first = names.iter().filter(|name| on_record(by_name[*name])).count();
    assert_eq!(of_first, sent, "every attempt is on record");
    Ok(())
}
