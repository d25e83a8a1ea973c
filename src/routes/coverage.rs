//! What of the cluster is seen: of which namespaces the Webhooks are known, and which watches fail. Plain state.
//!
//! Each namespace stands for itself: one that may not be read, or is gone, keeps no other from being served.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::watch::Scope;
use crate::model::ids::Namespace;

/// The watch whose list says who receives.
const WEBHOOKS: &str = "Webhook";

/// A namespace that was not heard of for so long after the start no longer keeps the whole from being ready.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// A failed watch tries again within [`super::watch::LONGEST`]: one that has said nothing for so long works.
const FRESH: Duration = Duration::from_mins(2);

/// What was listed is out of service when the Kubernetes API has refused it for so long, and nothing else: at an upgrade
/// of its own it may refuse for a moment what it allows.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// The same failure of one watch is said again after this.
const SAY_AGAIN: Duration = Duration::from_mins(10);

/// Namespaces and watches that a message names; beyond, it counts.
const NAMED: usize = 3;

/// Why a namespace is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unserved {
    /// It is too early to say who receives.
    #[error("the list of Webhooks is not complete yet")]
    NotRead,
    /// The Kubernetes API refuses to list its Webhooks.
    #[error("its Webhooks cannot be read: {0}")]
    Refused(String),
}

/// How it stands with all that is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whole {
    /// Everything is served.
    Served,
    /// Something is, and something is not, for this reason.
    Partly(String),
    /// Nothing is, or it is too early to say.
    Not(String),
}

/// Of which namespaces the Webhooks are known, and which watches fail.
#[derive(Debug)]
pub struct Coverage(RwLock<State>);

#[derive(Debug)]
struct State {
    since: Instant,
    /// By namespace; none stands for all together.
    places: BTreeMap<Option<Namespace>, Place>,
    /// Of which there are watches.
    kinds: BTreeSet<String>,
    failing: HashMap<(String, Option<Namespace>), Failure>,
}

#[derive(Clone, Debug, Default)]
struct Place {
    /// Its Webhooks have been listed completely once.
    listed: bool,
    /// The Kubernetes API refuses to list or watch them.
    refused: Option<String>,
    /// Since when it has answered with nothing else, as far as known.
    refused_since: Option<Instant>,
}

#[derive(Debug)]
struct Failure {
    why: String,
    at: Instant,
    said: Instant,
}

impl Place {
    /// A refusal binds at once where nothing is known, and otherwise when it lasts.
    fn refuse(&mut self, why: &str, now: Instant) {
        let since = *self.refused_since.get_or_insert(now);
        if !self.listed || self.refused.is_some() || now.duration_since(since) >= REFUSED_FOR {
            self.refused = Some(why.to_owned());
        }
    }

    fn works(&mut self) {
        (self.refused, self.refused_since) = (None, None);
    }

    fn check(&self) -> Result<(), Unserved> {
        match &self.refused {
            Some(why) => Err(Unserved::Refused(why.clone())),
            None if self.listed => Ok(()),
            None => Err(Unserved::NotRead),
        }
    }
}

impl Default for Coverage {
    fn default() -> Self {
        Self(RwLock::new(State {
            since: Instant::now(),
            places: BTreeMap::new(),
            kinds: BTreeSet::new(),
            failing: HashMap::new(),
        }))
    }
}

impl Coverage {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be served, from now on.
    pub fn expect(&self, scope: &Scope) {
        let mut state = self.write();
        state.since = Instant::now();
        for place in scope.places() {
            state.places.entry(place).or_default();
        }
    }

    /// There are watches of this kind.
    pub fn watches(&self, kind: &str) {
        self.write().kinds.insert(kind.to_owned());
    }

    /// The Webhooks of a namespace (none: of all) are in the table.
    pub fn listed(&self, place: Option<&Namespace>) {
        let mut state = self.write();
        let place = state.places.entry(place.cloned()).or_default();
        place.listed = true;
        place.works();
    }

    /// Whether they have been, once.
    pub fn was_listed(&self, place: Option<&Namespace>) -> bool {
        self.read().places.get(&place.cloned()).is_some_and(|place| place.listed)
    }

    /// A watch failed; `refused` when the Kubernetes API said that it may not be, or that nothing is there. Whether this
    /// is to be said: it is new, or was said long ago.
    pub fn failed(&self, kind: &str, place: Option<&Namespace>, why: &str, refused: bool) -> bool {
        let (mut state, now) = (self.write(), Instant::now());
        if kind == WEBHOOKS {
            let place = state.places.entry(place.cloned()).or_default();
            if refused {
                place.refuse(why, now);
            } else {
                place.refused_since = None;
            }
        }
        let key = (kind.to_owned(), place.cloned());
        let before = state.failing.get(&key).filter(|before| before.is_fresh(now) && before.why == why);
        let said = before.map(|before| before.said).filter(|said| now.duration_since(*said) < SAY_AGAIN);
        state.failing.insert(key, Failure { why: why.to_owned(), at: now, said: said.unwrap_or(now) });
        said.is_none()
    }

    /// A watch that had failed has listed again, or told of something.
    pub fn works(&self, kind: &str, place: Option<&Namespace>) {
        let mut state = self.write();
        state.failing.remove(&(kind.to_owned(), place.cloned()));
        if kind == WEBHOOKS
            && let Some(place) = state.places.get_mut(&place.cloned())
        {
            place.works();
        }
    }

    /// Whether it is known who receives in a namespace: what does not match there has no Webhook. Otherwise nothing
    /// may be accepted for it, shown of it, or erased.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, namespace: &str) -> Result<(), Unserved> {
        let state = self.read();
        let own = || state.places.iter().find(|(place, _)| place.as_deref() == Some(namespace));
        let place = state.places.get(&None).or_else(|| own().map(|(_, place)| place));
        place.map_or(Err(Unserved::NotRead), Place::check)
    }

    /// How it stands with the whole. One namespace that is not served is a part of it.
    pub fn whole(&self) -> Whole {
        let state = self.read();
        let each = state.places.iter().filter_map(|(place, is)| Some((place, is.check().err()?)));
        let unserved: Vec<_> = each.collect();
        let may_come = unserved.iter().any(|(place, why)| state.may_come(place.as_ref(), why));
        if state.places.is_empty() || may_come {
            return Whole::Not("the Webhooks are not all read yet".to_owned());
        }
        if unserved.is_empty() {
            return Whole::Served;
        }
        let (all, few) = (state.places.len(), unserved.len());
        let each = unserved.into_iter().map(|(place, why)| match place {
            Some(namespace) => (namespace.to_string(), why.to_string()),
            None => ("all namespaces".to_owned(), why.to_string()),
        });
        let text = format!("{few} of {all} not served: {}", some(each.collect()));
        if few == all { Whole::Not(text) } else { Whole::Partly(text) }
    }

    /// Which watches fail, if any does: those of Webhooks too, also while what they said before still counts.
    pub fn failing(&self) -> Option<String> {
        let (state, now) = (self.read(), Instant::now());
        let fresh = state.failing.iter().filter(|(_, failure)| failure.is_fresh(now));
        let mut each: Vec<_> = fresh
            .map(|((kind, place), failure)| (watch(kind, place.as_ref()), failure.why.clone()))
            .collect();
        each.sort();
        (!each.is_empty()).then(|| some(each))
    }

    /// How many watches of each kind fail.
    pub fn failing_by_kind(&self) -> BTreeMap<String, i64> {
        let (state, now) = (self.read(), Instant::now());
        let mut kinds: BTreeMap<_, _> = state.kinds.iter().map(|kind| (kind.clone(), 0)).collect();
        for ((kind, _), _) in state.failing.iter().filter(|(_, failure)| failure.is_fresh(now)) {
            *kinds.entry(kind.clone()).or_default() += 1;
        }
        kinds
    }

    /// How many namespaces (or, where all are served together, whether they) are not served.
    pub fn unserved(&self) -> usize {
        self.read().places.values().filter(|place| place.check().is_err()).count()
    }
}

impl State {
    /// Whether a place that was not read yet may be at any moment. One whose watch has failed had its turn.
    fn may_come(&self, place: Option<&Namespace>, why: &Unserved) -> bool {
        *why == Unserved::NotRead
            && self.since.elapsed() < SETTLES_WITHIN
            && (place.is_none() || !self.failing.contains_key(&(WEBHOOKS.to_owned(), place.cloned())))
    }
}

impl Failure {
    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.at) < FRESH
    }
}

fn watch(kind: &str, place: Option<&Namespace>) -> String {
    place.map_or_else(|| kind.to_owned(), |namespace| format!("{kind} in {namespace}"))
}

/// The first of them, and how many more there are.
fn some(each: Vec<(String, String)>) -> String {
    let mut text = String::new();
    let more = each.len().saturating_sub(NAMED);
    for (who, why) in each.into_iter().take(NAMED) {
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = write!(text, "{separator}{who} ({why})");
    }
    if more > 0 {
        let _ = write!(text, "; and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scoped(namespaces: &[&str]) -> Coverage {
        let coverage = Coverage::default();
        coverage.expect(&Scope::from_list(namespaces));
        coverage
    }

    fn ns(name: &str) -> Namespace {
        name.into()
    }

    const FORBIDDEN: &str = "webhooks.hookwright.dev is forbidden";

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_is_refused_keeps_no_other_from_being_served() {
        let coverage = scoped(&["team-a", "team-b"]);
        let whole = || coverage.whole();
        assert_eq!(whole(), Whole::Not("the Webhooks are not all read yet".to_owned()));
        coverage.listed(Some(&ns("team-a")));
        assert_eq!(coverage.check("team-a"), Ok(()), "served before the other one is known");
        assert_eq!(coverage.check("team-b"), Err(Unserved::NotRead));
        assert!(matches!(whole(), Whole::Not(_)));
        coverage.failed("Webhook", Some(&ns("team-b")), FORBIDDEN, true);
        let expected = format!("1 of 2 not served: team-b (its Webhooks cannot be read: {FORBIDDEN})");
        assert_eq!(whole(), Whole::Partly(expected));
        assert_eq!(coverage.unserved(), 1);
        assert_eq!(coverage.check("team-a"), Ok(()));
        assert_eq!(coverage.check("team-b"), Err(Unserved::Refused(FORBIDDEN.to_owned())));
        assert_eq!(coverage.check("team-c"), Err(Unserved::NotRead), "not ours");
        coverage.works("Webhook", Some(&ns("team-b")));
        coverage.listed(Some(&ns("team-b")));
        assert_eq!((whole(), coverage.unserved(), coverage.failing()), (Whole::Served, 0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn rights_that_are_taken_and_given_again_are_followed() {
        let coverage = scoped(&["team-a", "team-b"]);
        for namespace in ["team-a", "team-b"] {
            coverage.listed(Some(&ns(namespace)));
        }
        let refused = || coverage.failed("Webhook", Some(&ns("team-b")), FORBIDDEN, true);
        refused();
        tokio::time::advance(REFUSED_FOR).await;
        refused();
        assert_eq!(coverage.check("team-b"), Err(Unserved::Refused(FORBIDDEN.to_owned())));
        assert_eq!(coverage.check("team-a"), Ok(()));
        assert!(coverage.was_listed(Some(&ns("team-b"))), "what is in force is not read anew");
        coverage.works("Webhook", Some(&ns("team-b")));
        assert_eq!((coverage.check("team-b"), coverage.whole()), (Ok(()), Whole::Served));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_does_not_last_takes_nothing_away() {
        let second = Duration::from_secs(1);
        for (namespaces, place) in [(&[][..], None), (&["team-a"], Some(ns("team-a")))] {
            let coverage = scoped(namespaces);
            coverage.listed(place.as_ref());
            let fails = |refused| coverage.failed("Webhook", place.as_ref(), FORBIDDEN, refused);
            let serves = |when| {
                assert_eq!((coverage.check("team-a"), coverage.whole()), (Ok(()), Whole::Served), "{when}");
            };
            fails(true);
            serves("refused once");
            tokio::time::advance(29 * second).await;
            fails(true);
            serves("refused for a little less");
            assert!(coverage.failing().unwrap().contains(FORBIDDEN), "it is said all the same");
            coverage.works("Webhook", place.as_ref());
            tokio::time::advance(second).await;
            fails(true);
            serves("it had worked");
            tokio::time::advance(second).await;
            fails(false);
            tokio::time::advance(REFUSED_FOR).await;
            fails(true);
            serves("it had failed otherwise");
            tokio::time::advance(REFUSED_FOR).await;
            fails(true);
            assert_eq!(coverage.check("team-a"), Err(Unserved::Refused(FORBIDDEN.to_owned())));
            fails(false);
            assert!(coverage.check("team-a").is_err(), "until it works again");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_is_away_takes_nothing_out_of_service() {
        let coverage = scoped(&["team-a"]);
        coverage.listed(Some(&ns("team-a")));
        coverage.failed("Webhook", Some(&ns("team-a")), "connection refused", false);
        assert_eq!((coverage.check("team-a"), coverage.whole()), (Ok(()), Whole::Served));
        assert_eq!(coverage.failing().unwrap(), "Webhook in team-a (connection refused)");
        tokio::time::advance(FRESH).await;
        assert_eq!(coverage.failing(), None, "whoever fails no more works");
    }

    #[tokio::test(start_paused = true)]
    async fn the_whole_is_not_ready_when_nothing_is_served() {
        let one = scoped(&["team-a"]);
        one.failed("Webhook", Some(&ns("team-a")), FORBIDDEN, true);
        let Whole::Not(text) = one.whole() else { panic!() };
        assert!(text.contains("1 of 1 not served") && text.contains(FORBIDDEN), "{text}");
        let all = scoped(&[]);
        all.failed("Webhook", None, FORBIDDEN, true);
        assert_eq!(all.check("any"), Err(Unserved::Refused(FORBIDDEN.to_owned())));
        let Whole::Not(text) = all.whole() else { panic!() };
        assert!(text.contains("all namespaces"), "{text}");
        all.works("Webhook", None);
        all.listed(None);
        assert_eq!((all.check("any"), all.whole()), (Ok(()), Whole::Served));
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_never_answers_is_not_waited_for() {
        let coverage = scoped(&["team-a", "team-b", "team-c"]);
        coverage.listed(Some(&ns("team-a")));
        coverage.failed("Webhook", Some(&ns("team-b")), "no answer", false);
        assert!(matches!(coverage.whole(), Whole::Not(_)), "team-c may come at any moment");
        tokio::time::advance(SETTLES_WITHIN).await;
        let Whole::Partly(text) = coverage.whole() else { panic!() };
        assert!(text.starts_with("2 of 3 not served: team-b (the list of"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_failure_is_said_once_and_again_after_a_while() {
        let coverage = scoped(&["team-a"]);
        let fails = |why| coverage.failed("Secret", Some(&ns("team-a")), why, true);
        let mut said = 0;
        for _ in 0..360 {
            said += usize::from(fails(FORBIDDEN));
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert_eq!(said, 6, "an hour");
        assert!(fails("another reason"));
        assert!(!fails("another reason"));
        coverage.works("Secret", Some(&ns("team-a")));
        assert!(fails("another reason"), "it had worked");
        assert_eq!(coverage.check("team-a"), Err(Unserved::NotRead), "Secrets do not decide who is served");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_names_a_few_and_counts_the_rest() {
        let coverage = scoped(&["a", "b", "c", "d", "e", "f"]);
        for kind in ["Webhook", "WebhookTest", "Secret"] {
            coverage.watches(kind);
        }
        coverage.listed(Some(&ns("f")));
        for namespace in ["a", "b", "c", "d", "e"] {
            coverage.failed("Webhook", Some(&ns(namespace)), "x", true);
            coverage.failed("WebhookTest", Some(&ns(namespace)), "x", true);
        }
        let Whole::Partly(text) = coverage.whole() else { panic!() };
        assert!(text.starts_with("5 of 6 not served: a (") && text.ends_with("; and 2 more"), "{text}");
        assert!(coverage.failing().unwrap().ends_with("; and 7 more"));
        let kinds: Vec<_> = coverage.failing_by_kind().into_iter().collect();
        let expected = [("Secret", 0), ("Webhook", 5), ("WebhookTest", 5)];
        assert_eq!(kinds, expected.map(|(kind, count)| (kind.to_owned(), count)));
    }
}
