//! Ten endpoints of which one or nine misbehave: what the others lose.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hookwright_harness::receiver::Answer;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::figures::{Figures, Goal, per_second, percentile};
use super::world::{BATCH, CONNECTIONS, Team, World, event, in_parallel};

const NAMES: [&str; 10] = ["n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9"];
const NINE: [&str; 9] = ["/n0", "/n1", "/n2", "/n3", "/n4", "/n5", "/n6", "/n7", "/n8"];
const TENTH: &str = "/n9";
/// What one run gave: speed in events per second, and how long an event travels.
struct Run {
    speed: f64,
    p99: f64,
}

pub(crate) async fn measure(world: &Arc<World>, figures: &mut Figures) -> anyhow::Result<()> {
    let events = super::size("EVENTS", 20_000) / BATCH * BATCH;
    let team = Team::of(world, "neighbours").await?;
    let hooks = |name: &&str| team.webhook(name, &json!({"timeout": "15s", "maxRetries": 3}));
    team.apply(NAMES.iter().map(hooks).collect()).await?;
    run(&team, "warm", events / 4, &NINE).await?;
    let first = run(&team, "fast", events, &NINE).await?;
    let drip = Answer::ok().drip("x".repeat(600), Duration::from_millis(100));
    // The first shows how much two runs differ when nothing does.
    let behaviours: [(&'static str, Answer); 9] = [
        ("is as fast as they are", Answer::ok()),
        ("hangs until time-out", Answer::hang()),
        ("answers after 500 ms", Answer::ok().after(Duration::from_millis(500))),
        ("closes the connection", Answer::close()),
        ("resets the connection", Answer::reset()),
        ("answers 503", Answer::status(503)),
        ("answers 429 with Retry-After", Answer::status(429).header("retry-after", 1)),
        ("sends a body without end", Answer::ok().endless()),
        ("sends a body byte by byte", drip),
    ];
    figures.add("ten fast endpoints: nine of them receive", first.speed, "/s", Goal::None);
    figures.add("ten fast endpoints: p99 at the nine", first.p99, " ms", Goal::None);
    let rounds = super::size("ROUNDS", 1);
    let mut ratios = vec![(Vec::new(), Vec::new()); behaviours.len()];
    let mut before = first;
    for round in 0..rounds {
        for ((number, (_, answer)), (kept, slower)) in behaviours.iter().enumerate().zip(&mut ratios) {
            // Ids of events begin with it.
            let name = |kind: &str| format!("{kind}{round}-{number}").leak();
            let alone = tenth(&team, answer.clone(), name("bad"), events).await?;
            // Beside the runs just before and just after: machines are not the same from one minute to the next.
            let after = tenth(&team, Answer::ok(), name("fast"), events).await?;
            kept.push(alone.speed / before.speed.midpoint(after.speed));
            slower.push(alone.p99 / before.p99.midpoint(after.p99));
            before = after;
        }
    }
    for ((what, _), (kept, slower)) in behaviours.into_iter().zip(&mut ratios) {
        let is_control = what == "is as fast as they are";
        let goal = |goal| if is_control { Goal::None } else { goal };
        let kept = median(kept);
        figures.add(format!("the tenth {what}: the nine keep"), kept, "", goal(Goal::AtLeast(0.95)));
        let slower = median(slower);
        figures.add(format!("the tenth {what}: p99 at the nine, times"), slower, "", goal(Goal::AtMost(1.5)));
    }
    refusing(&team, events, figures).await?;
    flooded(world, figures).await
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A run in which the tenth answers like this.
async fn tenth(team: &Arc<Team>, answer: Answer, name: &'static str, events: usize) -> anyhow::Result<Run> {
    team.world.receiver.answer(TENTH, answer);
    fresh(team, "n9").await?;
    run(team, name, events, &NINE).await
}

/// Connections of a flood: more than fits in a namespace's place in the store's line (1 MiB), and not so many that
/// the single events wait for a turn in this process, which publishes both.
const FLOODING: usize = 32;

/// Another namespace publishes batches without end, over [`FLOODING`] connections, for a fast endpoint. All parties
/// share the machine's cores, so how many times longer an event travels says little; to reach is what holds under load.
async fn flooded(world: &Arc<World>, figures: &mut Figures) -> anyhow::Result<()> {
    let (lone, many) = (Team::of(world, "lone").await?, Team::of(world, "flood").await?);
    lone.apply(vec![lone.webhook("lone", &json!({}))]).await?;
    many.apply(vec![many.webhook("flood", &json!({"maxInFlight": CONNECTIONS}))]).await?;
    // Few, since what the other publishes meanwhile is all stored.
    let (count, pause) = (600, Duration::from_millis(5));
    lone.latencies("warm", count / 2, pause, |_| "lone").await?;
    let calm = lone.latencies("quiet", count, pause, |_| "lone").await?;

    let end = CancellationToken::new();
    let flooding = {
        let (many, end) = (Arc::clone(&many), end.clone());
        TaskTracker::new().spawn(async move { flood(&many, &end).await })
    };
    many.await_count(&["/flood"], 10 * BATCH).await?;
    let (begun, from) = (Instant::now(), many.count(&["/flood"]));
    let loud = lone.latencies("loud", count, pause, |_| "lone").await?;
    let speed = per_second(many.count(&["/flood"]) - from, begun.elapsed());
    end.cancel();
    flooding.await??;
    let (calm, loud) = (percentile(&calm, 0.99), percentile(&loud, 0.99));
    figures.add("another namespace is quiet: p99 of single events", calm, " ms", Goal::None);
    figures.add("another namespace floods: it receives", speed, "/s", Goal::None);
    figures.add("another namespace floods: p99 of single events", loud, " ms", Goal::AtMost(50.0));
    figures.add("another namespace floods: p99, times", loud / calm, "", Goal::None);
    Ok(())
}

async fn flood(team: &Arc<Team>, end: &CancellationToken) -> anyhow::Result<()> {
    let (publishing, end) = (Arc::clone(team), end.clone());
    in_parallel(FLOODING, move |_, task| {
        let (team, end) = (Arc::clone(&publishing), end.clone());
        async move {
            for round in 0.. {
                if end.is_cancelled() {
                    break;
                }
                let ids = (0..BATCH).map(|n| format!("flood-{task}-{round}-{n}"));
                let batch: Vec<_> = ids.map(|id| event(&id, "flood")).collect();
                team.publisher(task)?.publish_batch(team.namespace, &batch).await?.accepted()?;
            }
            Ok(())
        }
    })
    .await
}

/// Nine refuse connections; the tenth is fast.
async fn refusing(team: &Arc<Team>, events: usize, figures: &mut Figures) -> anyhow::Result<()> {
    fresh(team, "n9").await?;
    run(team, "settle", events / 4, &[TENTH]).await?;
    let before = run(team, "ten", events, &[TENTH]).await?;
    let closed = hookwright_harness::ports::free_port()?;
    let dead = NAMES.iter().take(9).map(|name| {
        let url = format!("https://dead.localhost:{}/{name}", closed.number());
        team.webhook(name, &json!({"url": url, "maxRetries": 3}))
    });
    team.apply(dead.collect()).await?;
    let alone = run(team, "dead", events, &[TENTH]).await?;
    let kept = alone.speed / before.speed;
    figures.add("nine refuse connections: the tenth keeps", kept, "", Goal::AtLeast(0.9));
    figures.add(
        "nine refuse connections: p99 at the tenth, times",
        alone.p99 / before.p99,
        "",
        Goal::AtMost(1.5),
    );
    Ok(())
}

/// Makes a Webhook anew, without what waits for it or what is known of its endpoint.
async fn fresh(team: &Arc<Team>, name: &'static str) -> anyhow::Result<()> {
    team.world.plane.kubectl().delete("hook", team.namespace, name).await?;
    team.apply(vec![team.webhook(name, &json!({"timeout": "15s", "maxRetries": 3}))]).await
}

/// Events for all ten in turn, as fast as they are taken; then one every 3 ms.
async fn run(
    team: &Arc<Team>,
    name: &'static str,
    events: usize,
    paths: &[&'static str],
) -> anyhow::Result<Run> {
    let events = events / BATCH * BATCH;
    let target = team.count(paths) + events / NAMES.len() * paths.len();
    let begun = Instant::now();
    team.batches(name, events, |n| NAMES.get(n % NAMES.len()).copied().unwrap_or_default()).await?;
    team.await_count(paths, target).await?;
    let speed = per_second(events / NAMES.len() * paths.len(), begun.elapsed());
    let kind: fn(usize) -> &'static str = match paths.len() {
        9 => |n| NAMES.get(n % 9).copied().unwrap_or_default(),
        _ => |_| "n9",
    };
    let took = team.latencies(name, 1200, Duration::from_millis(3), kind).await?;
    Ok(Run { speed, p99: percentile(&took, 0.99) })
}
