//! The table of routes: plain state, tested by calling it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::Route;
use super::coverage::{Coverage, Unserved};
use super::subscribers::Subscribers;
use crate::model::event::Attributes;
use crate::model::ids::{Namespace, WebhookRef, WebhookUid};
use crate::store::Wakes;

/// Compiled Webhooks by namespace and by identity.
#[derive(Debug, Default)]
pub struct Table {
    routes: RwLock<Routes>,
    coverage: Arc<Coverage>,
    for_engine: Wakes,
    for_controller: Wakes,
}

#[derive(Debug, Default)]
struct Routes {
    by_namespace: HashMap<Namespace, Subscribers>,
    by_uid: HashMap<WebhookUid, Arc<Route>>,
    /// Those that were seen to go.
    left: HashSet<WebhookUid>,
}

impl Routes {
    fn take(&mut self, uid: WebhookUid) -> Option<Arc<Route>> {
        let route = self.by_uid.remove(&uid)?;
        let namespace = &route.webhook.namespace;
        if let Some(list) = self.by_namespace.get_mut(namespace) {
            list.remove(&route);
            if list.all().is_empty() {
                self.by_namespace.remove(namespace);
            }
        }
        Some(route)
    }
}

impl Table {
    fn read(&self) -> RwLockReadGuard<'_, Routes> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a route in force, in place of an earlier one of the same Webhook.
    pub fn upsert(&self, route: Route) {
        let uid = route.webhook.uid;
        let route = Arc::new(route);
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.take(uid);
        routes.by_namespace.entry(Arc::clone(&route.webhook.namespace)).or_default().insert(&route);
        routes.by_uid.insert(uid, route);
        routes.left.remove(&uid);
        drop(routes);
        self.wake(uid);
    }

    /// Takes a Webhook out that is gone; tells whether it was there.
    pub fn remove(&self, uid: WebhookUid) -> bool {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let removed = routes.take(uid).is_some();
        routes.left.insert(uid);
        drop(routes);
        if removed {
            self.wake(uid);
        }
        removed
    }

    /// Whether a Webhook was seen to go.
    pub fn has_left(&self, uid: WebhookUid) -> bool {
        self.read().left.contains(&uid)
    }

    /// Forgets of all but these that they were seen to go.
    pub fn keep_left(&self, known: &[WebhookRef]) {
        let known: HashSet<WebhookUid> = known.iter().map(|webhook| webhook.uid).collect();
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.left.retain(|uid| known.contains(uid));
    }

    fn wake(&self, uid: WebhookUid) {
        self.for_engine.add([uid]);
        self.for_controller.add([uid]);
    }

    /// The Webhooks of a namespace that want this event.
    pub fn matching(&self, namespace: &str, event: &Attributes) -> Vec<Arc<Route>> {
        let routes = self.read();
        let list = routes.by_namespace.get(namespace);
        list.map(|list| list.matching(&event.event_type)).unwrap_or_default()
    }

    /// All Webhooks of a namespace.
    pub fn namespace(&self, namespace: &str) -> Vec<Arc<Route>> {
        let routes = self.read();
        routes.by_namespace.get(namespace).map(|list| list.all().to_vec()).unwrap_or_default()
    }

    /// Whether a namespace has a Webhook.
    pub fn has_webhook(&self, namespace: &str) -> bool {
        self.read().by_namespace.contains_key(namespace)
    }

    /// One Webhook.
    pub fn get(&self, uid: WebhookUid) -> Option<Arc<Route>> {
        self.read().by_uid.get(&uid).cloned()
    }

    /// Every Webhook.
    pub fn webhooks(&self) -> Vec<WebhookRef> {
        self.read().by_uid.values().map(|route| route.webhook.clone()).collect()
    }

    /// Namespaces that have a Webhook.
    pub fn namespaces(&self) -> Vec<Namespace> {
        self.read().by_namespace.keys().cloned().collect()
    }

    /// Of which namespaces this table knows all Webhooks.
    pub fn coverage(&self) -> &Arc<Coverage> {
        &self.coverage
    }

    /// Whether it is known who receives in a namespace; see [`Coverage::check`].
    ///
    /// # Errors
    /// Why not: then nothing may be accepted for it.
    pub fn check(&self, namespace: &str) -> Result<(), Unserved> {
        self.coverage.check(namespace)
    }

    /// Whether a namespace is served now.
    pub fn serves(&self, namespace: &str) -> bool {
        self.check(namespace).is_ok()
    }

    /// The complete list of all namespaces' Webhooks is in the table.
    pub fn set_synced(&self) {
        self.coverage.listed(None);
    }

    /// Webhooks whose route changed or went. One consumer: the delivery engine.
    pub fn for_engine(&self) -> &Wakes {
        &self.for_engine
    }

    /// Webhooks whose route changed or went. One consumer: the controller.
    pub fn for_controller(&self) -> &Wakes {
        &self.for_controller
    }
}
