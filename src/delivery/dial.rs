//! Which of a host's addresses is connected to: happy eyeballs (RFC 8305) over TCP and TLS together, and the order in
//! which they are tried after failures.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use crate::model::ids::WebhookUid;

/// The next address is tried when the one before has not connected for so long (RFC 8305, section 5).
const NEXT_DIAL: Duration = Duration::from_millis(250);

/// The same, when it has connected and its TLS handshake does not end: longer than one takes around the world, and
/// shorter than others wait for this connection before they open their own.
const NEXT_HANDSHAKE: Duration = Duration::from_millis(700);

/// Why an address gave no connection.
#[derive(Debug)]
pub(super) enum Failed {
    /// TCP.
    Dial(io::Error),
    /// TLS, over the TCP connection that it gave.
    Handshake(io::Error),
}

impl Failed {
    /// What came further says more.
    fn or(self, before: Option<Self>) -> Self {
        match (before, &self) {
            (Some(before @ Self::Handshake(_)), _) | (Some(before), Self::Dial(_)) => before,
            (None | Some(Self::Dial(_)), _) => self,
        }
    }
}

/// Connects to the first address that does so: each gets a head start before the next, less when there are many and
/// little time, and none after a failure. What the others have begun is dropped. The failure is that of the address
/// that came furthest, and of those the first.
pub(super) async fn race<T, S, Dialled, Shaken>(
    addresses: &[IpAddr],
    time: Duration,
    dial: impl Fn(IpAddr) -> Dialled,
    shake: impl Fn(T) -> Shaken,
) -> Result<(IpAddr, S), Failed>
where
    Dialled: Future<Output = io::Result<T>>,
    Shaken: Future<Output = io::Result<S>>,
{
    let part = time / u32::try_from(addresses.len()).unwrap_or(u32::MAX).saturating_add(1);
    let (next_dial, next_handshake) = (NEXT_DIAL.min(part), NEXT_HANDSHAKE.min(part));
    let mut rest = addresses.iter().copied();
    let (mut dialling, mut shaking) = (FuturesUnordered::new(), FuturesUnordered::new());
    let mut failed = None;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some((address, shaken)) = shaking.next(), if !shaking.is_empty() => match shaken {
                Ok(stream) => return Ok((address, stream)),
                Err(error) => {
                    failed = Some(Failed::Handshake(error).or(failed));
                    next = Instant::now();
                }
            },
            Some((address, dialled)) = dialling.next(), if !dialling.is_empty() => match dialled {
                Ok(stream) => {
                    let shaken = shake(stream);
                    shaking.push(async move { (address, shaken.await) });
                    next = Instant::now() + next_handshake;
                }
                Err(error) => {
                    failed = Some(Failed::Dial(error).or(failed));
                    next = Instant::now();
                }
            },
            () = sleep_until(next), if rest.len() > 0 => {
                if let Some(address) = rest.next() {
                    let dialled = dial(address);
                    dialling.push(async move { (address, dialled.await) });
                }
                next = Instant::now() + next_dial;
            }
            else => break,
        }
    }
    Err(failed.unwrap_or_else(|| Failed::Dial(io::ErrorKind::AddrNotAvailable.into())))
}

/// Webhooks of which failures are remembered. Beyond that all are forgotten, which costs them a first choice.
const MAX_REMEMBERED: usize = 4096;

/// Addresses of one Webhook of which failures are remembered.
const MAX_FAILED: usize = 16;

/// By Webhook, the addresses of its host that gave no answer, the latest last: kept for longer than connections, as a
/// retry may come a day later.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<WebhookUid, Vec<IpAddr>>>);

impl Failures {
    /// This address gave no answer.
    pub(super) fn note(&self, webhook: WebhookUid, address: IpAddr) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_REMEMBERED && !all.contains_key(&webhook) {
            all.clear();
        }
        let failed = all.entry(webhook).or_default();
        failed.retain(|other| *other != address);
        if failed.len() >= MAX_FAILED {
            failed.remove(0);
        }
        failed.push(address);
    }

    /// Puts those first that have not failed, in their order, and then the one whose failure is the longest ago: so each
    /// has its turn.
    pub(super) fn order(&self, webhook: WebhookUid, addresses: &mut [IpAddr]) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(failed) = all.get(&webhook) else { return };
        addresses
            .sort_by_key(|address| failed.iter().position(|other| other == address).map_or(0, |at| at + 1));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::delivery::testing::webhook;

    const SECOND: Duration = Duration::from_secs(1);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    /// What an address does: how long a step takes (none: for ever), and whether it fails then.
    #[derive(Clone, Copy)]
    struct Step(Option<u64>, bool);

    const HANGS: Step = Step(None, false);

    const fn after(millis: u64) -> Step {
        Step(Some(millis), false)
    }

    const fn fails(millis: u64) -> Step {
        Step(Some(millis), true)
    }

    impl Step {
        async fn take(self, error: &'static str) -> io::Result<()> {
            let Self(Some(millis), fails) = self else { return std::future::pending().await };
            tokio::time::sleep(Duration::from_millis(millis)).await;
            if fails { Err(io::Error::other(error)) } else { Ok(()) }
        }
    }

    /// Who won after how many milliseconds, or the error; and when each was dialled.
    async fn raced(time: Duration, does: &[(Step, Step)]) -> (Result<(u8, u128), String>, Vec<u128>) {
        let began = Instant::now();
        let dialled = Mutex::new(Vec::new());
        let addresses: Vec<_> = (0..does.len()).map(|at| ip(u8::try_from(at).unwrap())).collect();
        let at = |address: IpAddr| addresses.iter().position(|other| *other == address).unwrap();
        let won = race(
            &addresses,
            time,
            |address| {
                dialled.lock().unwrap().push(began.elapsed().as_millis());
                let (dial, _) = does[at(address)];
                async move { dial.take("tcp").await.map(|()| address) }
            },
            |address| {
                let (_, shake) = does[at(address)];
                async move { shake.take("tls").await }
            },
        );
        let won = tokio::time::timeout(time, won).await;
        let won = match won {
            Err(_) => Err("time is up".to_owned()),
            Ok(Ok((address, ()))) => Ok((u8::try_from(at(address)).unwrap(), began.elapsed().as_millis())),
            Ok(Err(Failed::Dial(error))) => Err(format!("dial: {error}")),
            Ok(Err(Failed::Handshake(error))) => Err(format!("handshake: {error}")),
        };
        let dialled = dialled.into_inner().unwrap();
        (won, dialled)
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_an_address_hangs_in_the_next_gets_its_turn() {
        let fast = (after(10), after(20));
        let dead = (fails(5), HANGS);
        let error = |text: &str| Err(text.to_owned());
        for (name, time, does, won, dialled) in [
            ("the first is well", 10 * SECOND, vec![fast, fast], Ok((0, 30)), vec![0]),
            ("it hangs in TCP", 10 * SECOND, vec![(HANGS, HANGS), fast], Ok((1, 280)), vec![0, 250]),
            ("it hangs in TLS", 10 * SECOND, vec![(after(10), HANGS), fast], Ok((1, 740)), vec![0, 710]),
            (
                "a slow handshake is no hang",
                10 * SECOND,
                vec![(after(200), after(650)), fast],
                Ok((0, 850)),
                vec![0],
            ),
            (
                "the slower one may still win",
                10 * SECOND,
                vec![(after(300), after(10)), (HANGS, HANGS)],
                Ok((0, 310)),
                vec![0, 250],
            ),
            ("it fails in TCP", 10 * SECOND, vec![dead, fast], Ok((1, 35)), vec![0, 5]),
            ("it fails in TLS", 10 * SECOND, vec![(after(5), fails(5)), fast], Ok((1, 40)), vec![0, 10]),
            (
                "two hang",
                10 * SECOND,
                vec![(after(0), HANGS), (HANGS, HANGS), fast],
                Ok((2, 980)),
                vec![0, 700, 950],
            ),
            ("little time is shared", SECOND, vec![(after(0), HANGS), fast], Ok((1, 364)), vec![0, 334]),
            (
                "all fail: the furthest",
                10 * SECOND,
                vec![dead, (after(5), fails(5)), dead],
                error("handshake: tls"),
                vec![0, 5, 15],
            ),
            ("all fail alike", 10 * SECOND, vec![dead, dead], error("dial: tcp"), vec![0, 5]),
            ("all hang", SECOND, vec![(HANGS, HANGS); 2], error("time is up"), vec![0, 250]),
            ("none", SECOND, vec![], error("dial: address not available"), vec![]),
        ] {
            let (result, begun) = raced(time, &does).await;
            assert_eq!((result, begun), (won, dialled), "{name}");
        }
    }

    #[test]
    fn each_address_that_failed_has_its_turn_again_in_the_order_of_failing() {
        let failures = Failures::default();
        let (one, other) = (webhook("one").uid, webhook("other").uid);
        let next = || {
            let mut all = [ip(1), ip(2), ip(3)];
            failures.order(one, &mut all);
            // It fails again.
            failures.note(one, all[0]);
            all[0]
        };
        assert_eq!([next(), next(), next(), next(), next()], [ip(1), ip(2), ip(3), ip(1), ip(2)]);
        let mut all = [ip(2), ip(1)];
        failures.order(other, &mut all);
        assert_eq!(all, [ip(2), ip(1)], "another Webhook's failures say nothing");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let failures = Failures::default();
        for number in 0..=u128::try_from(MAX_REMEMBERED).unwrap() {
            for last in 0..20 {
                failures.note(WebhookUid::from_bytes(number.to_be_bytes()), ip(last));
            }
        }
        let all = failures.0.into_inner().unwrap();
        assert!(all.len() <= MAX_REMEMBERED && all.values().all(|failed| failed.len() <= MAX_FAILED));
    }
}
