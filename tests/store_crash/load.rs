//! The process that is killed. It says what it is about to do (small letters) and what was acknowledged
//! (capital letters):
//! - `a`/`A`: append: delivery, webhook, event, 1 for a test
//! - `k`/`K`: the event of a dedup key
//! - `r`/`R`: record: delivery, `s`uccess, `f`ailure or re`t`ry
//! - `p`/`P`: purge: webhook

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hookwright::clock::Clock;
use hookwright::model::event::Attributes;
use hookwright::model::ids::{DeliveryName, Minter, WebhookUid};
use hookwright::model::time::UnixMillis;
use hookwright::store::embedded::Embedded;
use hookwright::store::records::DedupKey;
use hookwright::store::{
    Appended, Attempt, ClaimRequest, EndReason, NewDelivery, NewEvent, Next, Outcome, Store,
};

use super::{HOOKS, LEASE, PURGED, Random, body, key, webhook};

pub(super) struct Load {
    pub store: Arc<Embedded>,
    pub clock: Clock,
    pub minter: Minter,
    pub random: Random,
}

fn say(lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let mut text = lines.join("\n");
    text.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).unwrap();
}

impl Load {
    pub(super) async fn run(self: Arc<Self>) {
        say(&["ready".to_owned()]);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..3 {
            let load = Arc::clone(&self);
            tasks.spawn(async move {
                loop {
                    load.publish().await;
                }
            });
        }
        for hook in 0..HOOKS {
            let load = Arc::clone(&self);
            tasks.spawn(async move {
                loop {
                    load.deliver(hook).await;
                }
            });
        }
        let load = Arc::clone(&self);
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(load.random.next(60))).await;
                say(&[format!("p {PURGED}")]);
                load.store.purge(webhook(PURGED).uid).await.unwrap();
                say(&[format!("P {PURGED}")]);
            }
        });
        tasks.join_all().await;
    }

    async fn publish(&self) {
        if self.random.next(20) == 0 {
            return self.test().await;
        }
        let now = self.clock.now();
        let events: Vec<_> = (0..=self.random.next(8))
            .map(|_| {
                let hooks: Vec<_> = (0..HOOKS).filter(|_| self.random.next(3) == 0).collect();
                let mut event = event(&self.minter, now, &hooks, false);
                event.dedup = (self.random.next(4) == 0).then(|| key(self.random.next(1 << 20)));
                event
            })
            .collect();
        let lines: Vec<_> = events.iter().flat_map(describe).collect();
        say(&lines);
        let keys: Vec<_> = events.iter().map(|event| (event.dedup, describe(event))).collect();
        let answers = self.store.append(events).await.unwrap();
        let mut lines = Vec::new();
        for (answer, (key, described)) in answers.iter().zip(keys) {
            match answer {
                Appended::New => lines.extend(described.iter().map(|line| capital(line))),
                Appended::Duplicate(first) => lines.push(format!("K {} {first}", number(key.unwrap()))),
            }
        }
        say(&lines);
        tokio::time::sleep(Duration::from_millis(self.random.next(3))).await;
    }

    async fn test(&self) {
        let hook = u8::try_from(self.random.next(u64::from(HOOKS))).unwrap();
        let event = event(&self.minter, self.clock.now(), &[hook], true);
        let name = event.deliveries[0].name;
        let lines = describe(&event);
        say(&lines);
        self.store.append(vec![event]).await.unwrap();
        say(&lines.iter().map(|line| capital(line)).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(self.random.next(20))).await;
        self.record(vec![(name, webhook(hook).uid, 's', Next::Success)]).await;
    }

    async fn deliver(&self, hook: u8) {
        let now = self.clock.now();
        let webhook = webhook(hook).uid;
        let limit = 1 + usize::try_from(self.random.next(20)).unwrap();
        let request = ClaimRequest { webhook, now, limit, only: None, lease: LEASE };
        let claimed = self.store.claim(request).await.unwrap().deliveries;
        if claimed.is_empty() {
            return tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut outcomes = Vec::new();
        for claimed in claimed {
            assert_eq!(claimed.event.data, body(claimed.event.uid));
            let name = claimed.delivery.name;
            match self.random.next(10) {
                0 => self.store.release(vec![(webhook, name)]).await.unwrap(),
                1..5 => outcomes.push((name, webhook, 's', Next::Success)),
                5..7 => outcomes.push((name, webhook, 'f', Next::Failed(EndReason::RetriesExhausted))),
                _ => {
                    let at = now + Duration::from_millis(self.random.next(100));
                    outcomes.push((name, webhook, 't', Next::Retry(at)));
                }
            }
        }
        self.record(outcomes).await;
    }

    async fn record(&self, outcomes: Vec<(DeliveryName, WebhookUid, char, Next)>) {
        let line = |letter: char| {
            let line = move |(name, _, verdict, _): &(_, _, _, _)| format!("{letter} {name} {verdict}");
            outcomes.iter().map(line).collect::<Vec<_>>()
        };
        say(&line('r'));
        let now = self.clock.now();
        let records = outcomes.iter().map(|(name, hook, _, next)| outcome(now, *hook, *name, next.clone()));
        self.store.record(records.collect()).await.unwrap();
        say(&line('R'));
    }
}

fn number(key: DedupKey) -> u64 {
    u64::from_be_bytes(key.0[..8].try_into().unwrap())
}

fn describe(event: &NewEvent) -> Vec<String> {
    let deliveries = event.deliveries.iter().map(|delivery| {
        let hook = delivery.webhook.uid.as_bytes()[0];
        format!("a {} {hook} {} {}", delivery.name, event.uid, u8::from(delivery.test))
    });
    let key = event.dedup.map(|key| format!("k {} {}", number(key), event.uid));
    deliveries.chain(key).collect()
}

fn capital(line: &str) -> String {
    let (letter, rest) = line.split_at(1);
    letter.to_uppercase() + rest
}

fn event(minter: &Minter, now: UnixMillis, hooks: &[u8], test: bool) -> NewEvent {
    let uid = minter.event(now);
    NewEvent {
        uid,
        namespace: "team".into(),
        attributes: Arc::new(Attributes {
            id: uid.to_string().into(),
            source: "/crash".into(),
            event_type: "order.created".into(),
            data_content_type: None,
            data_schema: None,
            subject: None,
            time: None,
            extensions: vec![],
        }),
        data: body(uid),
        accepted_at: now,
        dedup: None,
        deliveries: hooks
            .iter()
            .map(|hook| NewDelivery { name: minter.delivery(now), webhook: webhook(*hook), test })
            .collect(),
    }
}

fn outcome(now: UnixMillis, webhook: WebhookUid, name: DeliveryName, next: Next) -> Outcome {
    let attempt = Attempt {
        at: now,
        duration: Duration::from_millis(3),
        status: Some(200),
        body: Some("x".repeat(usize::from(name.as_bytes()[15]) * 2)),
        content_type: None,
        body_length: 0,
        error: None,
    };
    Outcome { name, webhook, attempt: Some(attempt), next, disable: None }
}
