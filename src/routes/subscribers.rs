//! The Webhooks of one namespace, found by event type: those that name exact types cost an event of another nothing.

use std::collections::HashMap;
use std::sync::Arc;

use super::Route;
use crate::model::ids::WebhookUid;

/// Compiled Webhooks of one namespace.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    all: Vec<Arc<Route>>,
    /// Of those that want nothing but exact types, by type.
    exact: HashMap<Box<str>, Vec<Arc<Route>>>,
    /// Those with a pattern: each is asked.
    patterns: Vec<Arc<Route>>,
}

impl Subscribers {
    pub(super) fn insert(&mut self, route: &Arc<Route>) {
        self.all.push(Arc::clone(route));
        match route.filter.exact_types() {
            None => self.patterns.push(Arc::clone(route)),
            Some(types) => {
                for event_type in types {
                    self.exact.entry(event_type.into()).or_default().push(Arc::clone(route));
                }
            }
        }
    }

    pub(super) fn remove(&mut self, route: &Route) {
        let uid: WebhookUid = route.webhook.uid;
        let others = |other: &Arc<Route>| other.webhook.uid != uid;
        self.all.retain(others);
        self.patterns.retain(others);
        for event_type in route.filter.exact_types().into_iter().flatten() {
            if let Some(list) = self.exact.get_mut(event_type) {
                list.retain(others);
                if list.is_empty() {
                    self.exact.remove(event_type);
                }
            }
        }
    }

    /// Those that want events of this type.
    pub(super) fn matching(&self, event_type: &str) -> Vec<Arc<Route>> {
        let exact = self.exact.get(event_type).into_iter().flatten();
        let patterns = self.patterns.iter().filter(|route| route.filter.wants(event_type));
        exact.chain(patterns).cloned().collect()
    }

    pub(super) fn all(&self) -> &[Arc<Route>] {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::event::Attributes;
    use crate::model::filter::Filter;
    use crate::model::ids::WebhookRef;
    use crate::routes::{Table, Unready};

    fn route(number: u8, patterns: &[&str]) -> Arc<Route> {
        let uid = WebhookUid::from_bytes([number; 16]);
        let unready = Unready { reason: "SecretNotFound", message: String::new(), stalled: false };
        Arc::new(Route {
            webhook: WebhookRef { uid, namespace: "team-a".into(), name: number.to_string().into() },
            generation: 1,
            filter: Filter::compile(patterns),
            active: true,
            endpoint: Err(unready),
            public_key: "".into(),
            gives_up_after: None,
            requested_at: None,
        })
    }

    #[test]
    fn a_webhook_that_changes_is_found_by_what_it_wants_now_and_where_it_is_now() {
        let table = Table::default();
        let wants = |namespace: &str, event_type: &str| {
            let event = Attributes {
                id: "1".into(),
                source: "/".into(),
                event_type: event_type.into(),
                data_content_type: None,
                data_schema: None,
                subject: None,
                time: None,
                extensions: Vec::new(),
            };
            table.matching(namespace, &event).len()
        };
        table.upsert(Route::clone(&route(1, &["a", "b"])));
        assert_eq!([wants("team-a", "a"), wants("team-a", "b"), wants("team-a", "c")], [1, 1, 0]);
        table.upsert(Route::clone(&route(1, &["b", "c.*"])));
        assert_eq!([wants("team-a", "a"), wants("team-a", "b"), wants("team-a", "c.d")], [0, 1, 1]);
        let mut moved = Route::clone(&route(1, &["b"]));
        moved.webhook.namespace = "team-b".into();
        table.upsert(moved);
        assert_eq!([wants("team-a", "b"), wants("team-b", "b")], [0, 1]);
        assert!(table.remove(WebhookUid::from_bytes([1; 16])));
        assert_eq!([wants("team-b", "b"), table.namespaces().len()], [0, 0]);
    }

    proptest! {
        #[test]
        fn whoever_wants_an_event_is_found_and_nobody_else(
            patterns in prop::collection::vec(
                prop::collection::vec(prop::sample::select(vec!["*", "a", "a.b", "a.*", "a.b.*", "c"]), 0..4),
                0..12,
            ),
            gone in prop::collection::vec(any::<bool>(), 12),
        ) {
            let routes: Vec<_> = (0..).zip(&patterns).map(|(number, some)| route(number, some)).collect();
            let mut subscribers = Subscribers::default();
            for route in &routes {
                subscribers.insert(route);
            }
            let (gone, kept): (Vec<_>, Vec<_>) = routes.iter().zip(gone).partition(|(_, gone)| *gone);
            for (route, _) in &gone {
                subscribers.remove(route);
            }
            let names = |routes: Vec<&Arc<Route>>| {
                let mut names: Vec<_> = routes.into_iter().map(|route| Arc::clone(&route.webhook.name)).collect();
                names.sort_unstable();
                names
            };
            for event_type in ["a", "a.b", "a.b.c", "c", "d", "a."] {
                let wanted = kept.iter().map(|(route, _)| *route).filter(|route| route.filter.wants(event_type));
                let found = subscribers.matching(event_type);
                prop_assert_eq!(names(found.iter().collect()), names(wanted.collect()), "{}", event_type);
            }
            prop_assert_eq!(names(subscribers.all().iter().collect()), names(kept.iter().map(|(route, _)| *route).collect()));
            for (route, _) in gone.iter().chain(&kept) {
                subscribers.remove(route);
            }
            prop_assert!(subscribers.exact.is_empty() && subscribers.patterns.is_empty());
        }
    }
}
