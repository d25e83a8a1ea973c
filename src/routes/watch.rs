//! Watches that go on: over the namespaces that are served, through broken objects and a restarted apiserver.

mod steady;

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::coverage::Coverage;
use crate::model::causes::{chain, clean};
use crate::model::ids::Namespace;
use steady::{Sight, steady};

/// A watch that failed begins anew after this at the latest.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Which namespaces are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All of them, those that come later too.
    #[default]
    All,
    /// These.
    Namespaces(Vec<Namespace>),
}

impl Scope {
    /// From the list of a setting: none means all.
    pub fn from_list<S: AsRef<str>>(namespaces: &[S]) -> Self {
        if namespaces.is_empty() {
            return Self::All;
        }
        let mut list: Vec<Namespace> = namespaces.iter().map(|name| name.as_ref().into()).collect();
        list.sort();
        list.dedup();
        Self::Namespaces(list)
    }

    /// Whether a namespace is served.
    pub fn serves(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(list) => list.iter().any(|served| &**served == namespace),
        }
    }

    /// How many watches there are: one, or one for each namespace.
    pub fn watches(&self) -> usize {
        match self {
            Self::All => 1,
            Self::Namespaces(list) => list.len(),
        }
    }

    /// What each of the watches is of: a namespace, or none for all together.
    pub fn places(&self) -> Vec<Option<Namespace>> {
        match self {
            Self::All => vec![None],
            Self::Namespaces(list) => list.iter().cloned().map(Some).collect(),
        }
    }

    /// Which of the watches a namespace is in.
    pub fn watch_of(&self, namespace: &str) -> Option<usize> {
        match self {
            Self::All => Some(0),
            Self::Namespaces(list) => list.iter().position(|served| &**served == namespace),
        }
    }

    /// A failed watch tries again after at most this: soon, and not too often where there are many.
    fn longest_pause(&self) -> Duration {
        let many = u32::try_from(self.watches()).unwrap_or(u32::MAX);
        Duration::from_millis(250).saturating_mul(many).clamp(Duration::from_secs(5), LONGEST)
    }
}

/// What a watch says, and which of the [`Scope::watches`] it is.
pub type Watched<T> = (usize, Event<T>);

/// Watches our own objects. One that does not fit its type is passed on as such and stops nothing; a failed watch is
/// begun anew, soon, and tells the coverage. Never ends.
pub fn objects<K>(
    client: &Client,
    scope: &Scope,
    coverage: &Arc<Coverage>,
) -> BoxStream<'static, Watched<DeserializeGuard<K>>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + DeserializeOwned + Debug + Send + 'static,
{
    numbered(client, scope, coverage, |api: Api<DeserializeGuard<K>>| {
        kube::runtime::watcher(api, watcher::Config::default())
            .modify(|object| object.meta_mut().managed_fields = None)
            .boxed()
    })
}

/// Watches metadata only of the objects that carry a label.
pub fn labelled_metadata<K>(
    client: &Client,
    scope: &Scope,
    coverage: &Arc<Coverage>,
    label: &str,
) -> BoxStream<'static, Watched<PartialObjectMeta<K>>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().labels(label);
    numbered(client, scope, coverage, move |api: Api<PartialObjectMeta<K>>| {
        kube::runtime::watcher(api, config.clone()).boxed()
    })
}

/// Watches the objects that have this name.
pub fn named<K>(
    client: &Client,
    scope: &Scope,
    coverage: &Arc<Coverage>,
    name: &str,
) -> BoxStream<'static, Watched<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    numbered(client, scope, coverage, move |api: Api<K>| kube::runtime::watcher(api, config.clone()).boxed())
}

/// One watch for each place of the scope.
fn numbered<K, T: Send + 'static>(
    client: &Client,
    scope: &Scope,
    coverage: &Arc<Coverage>,
    watch: impl Fn(Api<K>) -> BoxStream<'static, watcher::Result<Event<T>>> + Clone + Send + 'static,
) -> BoxStream<'static, Watched<T>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Send + 'static,
{
    coverage.watches(&K::kind(&()));
    let longest = scope.longest_pause();
    let watches = scope.places().into_iter().enumerate().map(|(number, place)| {
        let api = match &place {
            None => Api::all(client.clone()),
            Some(namespace) => Api::namespaced(client.clone(), namespace),
        };
        let (watch, kind) = (watch.clone(), K::kind(&()).into_owned());
        let sight = Sight { coverage: Arc::clone(coverage), kind, place };
        steady(move || watch(api.clone()), sight, longest).map(move |event| (number, event)).boxed()
    });
    stream::select_all(watches).boxed()
}

/// What a failed call to the apiserver says, without any part of an object.
pub fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => clean(&status.message).into_owned(),
        kube::Error::Service(source) => format!("the API server cannot be reached: {}", chain(&**source)),
        kube::Error::HyperError(source) => format!("the API server cannot be reached: {}", chain(source)),
        kube::Error::SerdeError(_) => "the answer of the API server cannot be understood".to_owned(),
        _ => "the call to the API server failed".to_owned(),
    }
}

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
}

impl Key {
    /// Of an object; empty parts when it has none, which no object of a namespace lacks.
    pub fn of(meta: &kube::core::ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.as_deref().unwrap_or_default().into(),
            name: meta.name.as_deref().unwrap_or_default().into(),
        }
    }
}

/// What a [`Watched`] event changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// It is there: new, changed, or merely told again.
    Put {
        /// Which.
        key: Key,
        /// As it was known before.
        old: Option<T>,
    },
    /// It is gone.
    Gone {
        /// Which.
        key: Key,
        /// As it was known before.
        old: T,
    },
}

/// What is known of the objects of a watch, kept through re-lists: what a new list lacks is gone.
#[derive(Debug)]
pub struct Mirror<T>(Vec<Watch<T>>);

#[derive(Debug)]
struct Watch<T> {
    known: HashMap<Key, T>,
    listing: Option<HashSet<Key>>,
    listed: bool,
}

impl<T: Clone> Mirror<T> {
    /// Nothing is known yet.
    pub fn new(scope: &Scope) -> Self {
        let watch = || Watch { known: HashMap::new(), listing: None, listed: false };
        Self((0..scope.watches()).map(|_| watch()).collect())
    }

    /// Takes an event into account.
    pub fn apply(&mut self, watch: usize, event: Event<(Key, T)>) -> Vec<Change<T>> {
        let Some(watch) = self.0.get_mut(watch) else { return Vec::new() };
        match event {
            Event::Init => watch.listing = Some(HashSet::new()),
            Event::InitApply((key, value)) => {
                if let Some(listing) = &mut watch.listing {
                    listing.insert(key.clone());
                }
                return vec![watch.put(key, value)];
            }
            Event::Apply((key, value)) => return vec![watch.put(key, value)],
            Event::Delete((key, _)) => return watch.gone(key).into_iter().collect(),
            Event::InitDone => {
                watch.listed = true;
                let listed = watch.listing.take().unwrap_or_default();
                let gone: Vec<Key> =
                    watch.known.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                return gone.into_iter().filter_map(|key| watch.gone(key)).collect();
            }
        }
        Vec::new()
    }

    /// Whether a watch has been listed completely once.
    pub fn is_listed(&self, watch: usize) -> bool {
        self.0.get(watch).is_some_and(|watch| watch.listed)
    }

    /// What is known of an object.
    pub fn get(&self, key: &Key) -> Option<&T> {
        self.0.iter().find_map(|watch| watch.known.get(key))
    }

    /// Every object.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.iter().flat_map(|watch| watch.known.keys())
    }

    /// Every object of a watch.
    pub fn keys_of(&self, watch: usize) -> impl Iterator<Item = &Key> {
        self.0.get(watch).into_iter().flat_map(|watch| watch.known.keys())
    }
}

impl<T> Watch<T> {
    fn put(&mut self, key: Key, value: T) -> Change<T> {
        let old = self.known.insert(key.clone(), value);
        Change::Put { key, old }
    }

    fn gone(&mut self, key: Key) -> Option<Change<T>> {
        let old = self.known.remove(&key)?;
        Some(Change::Gone { key, old })
    }
}

/// Watches our own objects: the last ones that were whole, and a stream of those that were told of. One that does not
/// fit its type is passed over.
pub fn reflect<K>(
    client: &Client,
    scope: &Scope,
    coverage: &Arc<Coverage>,
) -> (reflector::Store<K>, impl Stream<Item = K> + Send + 'static)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (objects, mut writer) = reflector::store();
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitDone);
    let (reader, mut mirror) = (objects.clone(), Mirror::new(scope));
    let touched = self::objects::<K>(client, scope, coverage).filter_map(move |(watch, event)| {
        let mut touched = None;
        if let Event::Apply(object) | Event::InitApply(object) = &event {
            let meta = object.meta();
            if let Ok(object) = &object.0 {
                writer.apply_watcher_event(&Event::Apply(object.clone()));
                touched = Some(object.clone());
            } else {
                let kind = K::kind(&());
                warn!(
                    kind = &*kind,
                    namespace = meta.namespace,
                    name = meta.name,
                    "this object does not fit the definition of its kind, it is passed over"
                );
            }
        }
        for change in mirror.apply(watch, map(event, |object| (Key::of(object.meta()), ()))) {
            if let Change::Gone { key, .. } = change
                && let Some(gone) = reader.get(&ObjectRef::new(&key.name).within(&key.namespace))
            {
                writer.apply_watcher_event(&Event::Delete((*gone).clone()));
            }
        }
        std::future::ready(touched)
    });
    (objects, touched)
}

/// An event of other objects.
pub fn map<A, B>(event: Event<A>, change: impl FnOnce(A) -> B) -> Event<B> {
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(change(object)),
        Event::Apply(object) => Event::Apply(change(object)),
        Event::Delete(object) => Event::Delete(change(object)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "team-a".into(), name: name.into() }
    }

    fn put(name: &str, old: Option<i32>) -> Change<i32> {
        Change::Put { key: key(name), old }
    }

    #[test]
    fn what_a_new_list_lacks_is_gone_and_what_it_has_is_put() {
        let mut mirror = Mirror::new(&Scope::All);
        assert_eq!(mirror.apply(0, Event::Init), []);
        assert_eq!(mirror.apply(0, Event::InitApply((key("a"), 1))), [put("a", None)]);
        assert!(!mirror.is_listed(0));
        assert_eq!(mirror.apply(0, Event::InitDone), []);
        assert!(mirror.is_listed(0));
        assert_eq!(mirror.apply(0, Event::Apply((key("b"), 1))), [put("b", None)]);
        assert_eq!(mirror.apply(0, Event::Init), []);
        assert_eq!(mirror.apply(0, Event::InitApply((key("a"), 2))), [put("a", Some(1))]);
        assert!(mirror.is_listed(0), "a re-list forgets nothing");
        assert_eq!(mirror.apply(0, Event::InitDone), [Change::Gone { key: key("b"), old: 1 }]);
        assert_eq!(mirror.get(&key("a")), Some(&2));
        assert_eq!(mirror.apply(0, Event::Delete((key("a"), 2))), [Change::Gone { key: key("a"), old: 2 }]);
        assert_eq!(mirror.apply(0, Event::Delete((key("a"), 2))), []);
    }

    #[test]
    fn a_list_of_one_namespace_says_nothing_about_another() {
        let scope = Scope::from_list(&["team-b", "team-a", "team-b"]);
        assert_eq!(scope.watches(), 2);
        let mut mirror = Mirror::new(&scope);
        mirror.apply(0, Event::Init);
        mirror.apply(0, Event::InitApply((key("a"), 1)));
        mirror.apply(0, Event::InitDone);
        assert_eq!((mirror.is_listed(0), mirror.is_listed(1), mirror.is_listed(2)), (true, false, false));
        mirror.apply(1, Event::Init);
        assert_eq!(mirror.apply(1, Event::InitDone), []);
        assert!(mirror.is_listed(1));
        assert_eq!([mirror.keys().count(), mirror.keys_of(0).count(), mirror.keys_of(1).count()], [1, 1, 0]);
    }

    #[test]
    fn no_list_of_namespaces_serves_all() {
        assert!(Scope::from_list::<&str>(&[]).serves("team-a"));
        assert!(!Scope::from_list(&["team-b"]).serves("team-a"));
    }

    #[test]
    fn each_namespace_has_its_place_and_its_watch() {
        let scope = Scope::from_list(&["team-b", "team-a"]);
        assert_eq!(scope.places(), [Some("team-a".into()), Some("team-b".into())]);
        assert_eq!([scope.watch_of("team-b"), scope.watch_of("team-c")], [Some(1), None]);
        assert_eq!((Scope::All.places(), Scope::All.watch_of("any")), (vec![None], Some(0)));
        assert_eq!(scope.longest_pause(), Duration::from_secs(5));
        let many: Vec<String> = (0..500).map(|number| format!("n-{number}")).collect();
        assert_eq!(Scope::from_list(&many).longest_pause(), LONGEST);
    }
}
