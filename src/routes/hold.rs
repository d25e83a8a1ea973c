//! Why deliveries of a Webhook wait: derived from its live state, never stored.

use super::Route;
use crate::api::webhook::DeliveryState;
use crate::model::time::UnixMillis;
use crate::model::trouble::Trouble;
use crate::store::records::{Delivery, DisableReason, State, Summary};

/// After so many failed attempts in a row an endpoint is unhealthy, as people see it.
pub const UNHEALTHY_AFTER: u64 = 5;

/// Why nothing (or, while an endpoint is looked after, one attempt from time to time) is sent to a Webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// `spec.active` is false.
    Paused,
    /// Disabled, and why.
    Disabled(DisableReason),
    /// Its spec or a reference is not usable.
    NotReady,
    /// Nothing arrives there; one attempt at a time, at growing intervals, looks whether it is well again.
    EndpointUnhealthy,
}

impl Hold {
    /// CamelCase, for people and selectors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "Paused",
            Self::Disabled(_) => "Disabled",
            Self::NotReady => "NotReady",
            Self::EndpointUnhealthy => "EndpointUnhealthy",
        }
    }
}

/// Why deliveries to this Webhook wait, if they do. The first that applies of: disabled, paused, not ready,
/// unhealthy.
pub fn hold(route: &Route, summary: Option<&Summary>) -> Option<Hold> {
    if let Some(disabled) = summary.and_then(|summary| summary.disabled.as_ref())
        && disabled.generation >= route.generation
    {
        return Some(Hold::Disabled(disabled.reason));
    }
    if !route.active {
        return Some(Hold::Paused);
    }
    if route.endpoint.is_err() {
        return Some(Hold::NotReady);
    }
    trouble(route, summary).and_then(|trouble| trouble.spaced.as_ref()).map(|_| Hold::EndpointUnhealthy)
}

/// What is known of the endpoint's failures by the spec in force.
pub fn trouble<'a>(route: &Route, summary: Option<&'a Summary>) -> Option<&'a Trouble> {
    summary?.trouble.as_deref().filter(|trouble| trouble.generation >= route.generation)
}

/// The state that people see. While attempts are spaced, what is not yet due shows its stored state, and what is due
/// waits as Held.
pub fn shown(delivery: &Delivery, hold: Option<Hold>, now: UnixMillis) -> DeliveryState {
    let stored = match delivery.state {
        State::Success => return DeliveryState::Success,
        State::Failed => return DeliveryState::Failed,
        State::Pending => DeliveryState::Pending,
        State::Retrying => DeliveryState::Retrying,
    };
    match hold {
        None => stored,
        Some(Hold::EndpointUnhealthy) if delivery.due.is_some_and(|due| due > now) => stored,
        Some(_) if delivery.test => stored,
        Some(_) => DeliveryState::Held,
    }
}
