//! Why there was no answer, as a sentence that holds no part of the URL's path or query, a header or a body.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use super::{connection, egress, tls_failure};
use crate::model::address::Denied;
use crate::model::target::{Host, Target};
use crate::model::verdict::Answer;
use crate::routes::Endpoint;

/// Why there was no (whole) answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing was sent: the guard denied the address.
    Denied(String),
    /// The time for the attempt is over.
    TimedOut(String),
    /// Anything else on the way.
    Broken(String),
}

impl Failure {
    /// For the verdict.
    pub(super) fn answer(&self) -> Answer {
        match self {
            Self::Denied(_) => Answer::Denied,
            Self::TimedOut(_) => Answer::TimedOut,
            Self::Broken(_) => Answer::Broken,
        }
    }

    /// For people.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::Denied(sentence) | Self::TimedOut(sentence) | Self::Broken(sentence) => sentence.clone(),
        }
    }

    /// The address that the URL spells out.
    pub(super) fn denied_literal(denied: Denied) -> Self {
        Self::Denied(denied.to_string())
    }

    /// What the host's name resolves to. Which address that is stays unsaid: it would tell a tenant how names
    /// within the platform resolve.
    pub(super) fn denied_name() -> Self {
        Self::Denied("the host name resolves to addresses that deliveries may not reach".to_owned())
    }

    /// No answer within the endpoint's limit.
    pub(super) fn no_answer(limit: Duration) -> Self {
        Self::TimedOut(format!("no answer within {}", seconds(limit)))
    }

    /// The answer began and did not end within the endpoint's limit.
    pub(super) fn no_end(limit: Duration) -> Self {
        Self::TimedOut(format!("the answer did not end within {}", seconds(limit)))
    }

    /// Why there was no connection, or no answer on it.
    pub(super) fn explain(error: &connection::Error, endpoint: &Endpoint, connect_limit: Duration) -> Self {
        let target = &endpoint.target;
        let to = authority(target);
        let stage = match error {
            connection::Error::Material(error) => return Self::Broken(format!("TLS: {error}")),
            connection::Error::Resolve(error) => return unresolved(error),
            connection::Error::TooSlow => {
                return Self::TimedOut(format!("no connection to {to} within {}", seconds(connect_limit)));
            }
            connection::Error::Url(_) => return Self::Broken(error.to_string()),
            connection::Error::Silent => return Self::Broken(SILENT.to_owned()),
            connection::Error::Dial(_) => format!("no connection to {to}"),
            connection::Error::Handshake(_) => format!("TLS: the handshake with {to} failed"),
            connection::Error::Http1(_) | connection::Error::Http2(_) => {
                format!("the connection to {to} failed")
            }
        };
        if let Some(error) = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
            let host = host(target);
            return Self::Broken(format!("TLS: {}", tls_failure::sentence(error, &endpoint.tls, &host)));
        }
        if let connection::Error::Handshake(error) = error
            && is_end(error.kind())
        {
            return Self::Broken(format!(
                "TLS: {to} ended the connection in the handshake; is TLS on this port?"
            ));
        }
        let said = causes(error).find_map(|cause| {
            if let Some(error) = cause.downcast_ref::<hyper::Error>() {
                return http1(error);
            }
            if let Some(error) = cause.downcast_ref::<h2::Error>() {
                return http2(error, &to);
            }
            cause.downcast_ref::<io::Error>().and_then(|error| network(error.kind(), &to))
        });
        Self::Broken(said.unwrap_or(stage))
    }
}

/// An error and what caused it, outermost first. What an `io::Error` wraps is among them, which `source` skips.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        let error = *error;
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inside.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source())
    })
}

fn unresolved(error: &egress::Error) -> Failure {
    match error {
        egress::Error::Denied(_) => Failure::denied_name(),
        egress::Error::TimedOut => Failure::TimedOut(error.to_string()),
        egress::Error::Unconfigured(_)
        | egress::Error::NoSuchName
        | egress::Error::NoAddress
        | egress::Error::Failed(_) => Failure::Broken(error.to_string()),
    }
}

const CLOSED: &str = "the connection was closed before the answer was complete";

const SILENT: &str = "the connection went silent";

fn http1(error: &hyper::Error) -> Option<String> {
    let sentence = if error.is_parse_too_large() {
        "the head of the answer is too large"
    } else if error.is_parse() || error.is_parse_status() {
        "the answer is not HTTP"
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        CLOSED
    } else if error.is_timeout() {
        SILENT
    } else {
        return None;
    };
    Some(sentence.to_owned())
}

fn http2(error: &h2::Error, to: &str) -> Option<String> {
    if let Some(error) = error.get_io() {
        return network(error.kind(), to);
    }
    let is_orderly = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    is_orderly.then(|| CLOSED.to_owned())
}

fn network(kind: io::ErrorKind, to: &str) -> Option<String> {
    Some(match kind {
        io::ErrorKind::ConnectionRefused => format!("connection refused by {to}"),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
            format!("connection reset by {to}")
        }
        io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => CLOSED.to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => format!("no route to {to}"),
        io::ErrorKind::TimedOut => format!("the connection to {to} went silent"),
        _ => return None,
    })
}

const fn is_end(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
    )
}

fn host(target: &Target) -> String {
    match target.host() {
        Host::Name(name) => name.to_string(),
        Host::Address(address) => address.to_string(),
    }
}

fn authority(target: &Target) -> String {
    match target.host() {
        Host::Name(name) => format!("{name}:{}", target.port()),
        Host::Address(address) => std::net::SocketAddr::new(*address, target.port()).to_string(),
    }
}

fn seconds(limit: Duration) -> String {
    format!("{}s", limit.as_secs_f32())
}
