//! A watch that goes on whatever happens, and says how it is.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use kube::core::Status;
use kube::runtime::watcher::{self, Event};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::why;
use crate::model::ids::Namespace;
use crate::routes::coverage::Coverage;

/// After the first failure.
const FIRST: Duration = Duration::from_millis(800);
/// A watch that has not failed for so long begins with the first pause again.
const RESET: Duration = Duration::from_mins(2);

/// Which watch it is, and where it says how it is.
pub(super) struct Sight {
    pub(super) coverage: Arc<Coverage>,
    pub(super) kind: String,
    /// None: all namespaces.
    pub(super) place: Option<Namespace>,
}

/// What a watch tells, without its failures: after each it goes on, a little later; after a refusal with a new list, so
/// that it shows when it may again. Never ends.
pub(super) fn steady<T: Send + 'static>(
    begin: impl Fn() -> BoxStream<'static, watcher::Result<Event<T>>> + Send + 'static,
    sight: Sight,
    longest: Duration,
) -> BoxStream<'static, Event<T>> {
    let steady = Steady { watch: begin(), begin, sight, pauses: Pauses::new(longest), fails: false };
    stream::unfold(steady, |mut steady| async move {
        let event = steady.next().await;
        Some((event, steady))
    })
    .boxed()
}

struct Steady<B, T> {
    begin: B,
    watch: BoxStream<'static, watcher::Result<Event<T>>>,
    sight: Sight,
    pauses: Pauses,
    fails: bool,
}

impl<T, B: Fn() -> BoxStream<'static, watcher::Result<Event<T>>>> Steady<B, T> {
    async fn next(&mut self) -> Event<T> {
        loop {
            match self.watch.next().await {
                Some(Ok(event)) => {
                    self.told(&event);
                    return event;
                }
                Some(Err(error)) => {
                    if self.failed(&error) {
                        self.watch = (self.begin)();
                    }
                    sleep(self.pauses.after_failure(Instant::now())).await;
                }
                None => {
                    self.watch = (self.begin)();
                    sleep(self.pauses.after_failure(Instant::now())).await;
                }
            }
        }
    }

    fn told(&mut self, event: &Event<T>) {
        let works = match event {
            Event::InitDone | Event::Apply(_) | Event::Delete(_) => true,
            // That a list begins says nothing, and a page of it not much.
            Event::Init | Event::InitApply(_) => false,
        };
        if works && self.fails {
            let Sight { coverage, kind, place } = &self.sight;
            coverage.works(kind, place.as_ref());
            info!(kind, namespace = place.as_deref(), "the watch works again");
            self.fails = false;
        }
    }

    /// Whether it must begin anew.
    fn failed(&mut self, error: &watcher::Error) -> bool {
        let Sight { coverage, kind, place } = &self.sight;
        let status = answer(error);
        if status.is_some_and(|status| status.code == 410) {
            debug!(kind, namespace = place.as_deref(), "the watch is too old, it lists anew");
            return false;
        }
        let refused = status.is_some_and(|status| matches!(status.code, 403 | 404));
        let reason = reason(error);
        if coverage.failed(kind, place.as_ref(), &reason, refused) {
            warn!(kind, namespace = place.as_deref(), error = reason, "the watch failed, it is tried again");
        }
        self.fails = true;
        refused
    }
}

/// What the apiserver has answered, if it has.
fn answer(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

fn reason(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => why(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Pauses that double up to the longest.
struct Pauses {
    next: Duration,
    longest: Duration,
    failed: Option<Instant>,
}

impl Pauses {
    fn new(longest: Duration) -> Self {
        Self { next: FIRST, longest, failed: None }
    }

    fn after_failure(&mut self, now: Instant) -> Duration {
        if self.failed.is_none_or(|failed| now.duration_since(failed) >= RESET) {
            self.next = FIRST;
        }
        self.failed = Some(now);
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use kube::core::response::StatusSummary;

    use super::*;
    use crate::routes::coverage::Unserved;
    use crate::routes::watch::Scope;

    type Script = VecDeque<Vec<watcher::Result<Event<u8>>>>;

    fn refusal(code: u16) -> watcher::Error {
        let status = Status {
            status: Some(StatusSummary::Failure),
            code,
            message: format!("answer {code}"),
            ..Status::default()
        };
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    }

    /// A watch that begins anew with the next of the script, and its coverage.
    fn scripted(script: Script) -> (BoxStream<'static, Event<u8>>, Arc<Coverage>, Arc<Mutex<Script>>) {
        let (coverage, script) = (Arc::<Coverage>::default(), Arc::new(Mutex::new(script)));
        coverage.expect(&Scope::from_list(&["team-b"]));
        let left = Arc::clone(&script);
        let begin = move || {
            let next = left.lock().unwrap().pop_front().unwrap_or_default();
            stream::iter(next).chain(stream::pending()).boxed()
        };
        let sight = Sight {
            coverage: Arc::clone(&coverage),
            kind: "Webhook".to_owned(),
            place: Some("team-b".into()),
        };
        (steady(begin, sight, Duration::from_secs(5)), coverage, script)
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_watch_is_served_again_within_seconds() {
        for code in [403, 404] {
            let refused = || vec![Ok(Event::Init), Err(refusal(code))];
            let mut script: Script = (0..40).map(|_| refused()).collect();
            script.push_back(vec![Ok(Event::Init), Ok(Event::InitApply(1)), Ok(Event::InitDone)]);
            let (mut watch, coverage, left) = scripted(script);
            let mut waited = Duration::ZERO;
            loop {
                let before = Instant::now();
                match watch.next().await.unwrap() {
                    Event::InitDone => break,
                    Event::InitApply(_) => {
                        assert_eq!(
                            coverage.check("team-b"),
                            Err(Unserved::Refused(format!("answer {code}"))),
                            "until the list is whole"
                        );
                    }
                    _ => waited = waited.max(before.elapsed()),
                }
            }
            assert!(left.lock().unwrap().is_empty());
            assert!(waited <= Duration::from_secs(5), "{waited:?}");
            assert_eq!(coverage.failing(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_merely_fails_goes_on_where_it_was() {
        let script = VecDeque::from([vec![
            Ok(Event::InitDone),
            Err(refusal(500)),
            Err(watcher::Error::NoResourceVersion),
            Err(refusal(410)),
            Ok(Event::Apply(7)),
        ]]);
        let (mut watch, coverage, _) = scripted(script);
        assert!(matches!(watch.next().await, Some(Event::InitDone)));
        coverage.listed(Some(&"team-b".into()));
        assert!(matches!(watch.next().await, Some(Event::Apply(7))));
        assert_eq!((coverage.check("team-b"), coverage.failing()), (Ok(()), None));
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_up_to_the_longest_and_begin_anew() {
        let mut pauses = Pauses::new(Duration::from_secs(5));
        let mut next = || pauses.after_failure(Instant::now()).as_millis();
        assert_eq!([next(), next(), next(), next(), next()], [800, 1600, 3200, 5000, 5000]);
        tokio::time::advance(RESET).await;
        assert_eq!(next(), 800);
    }
}
