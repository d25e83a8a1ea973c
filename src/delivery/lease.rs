//! A connection as one attempt has it, and a request as it goes over that.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, HOST, HeaderValue};
use http::{Method, Request, Uri};
use tokio::time::Instant;
use url::Position;

use super::connection::{Error, Line};
use super::http1;
use super::request::Request as Posted;
use crate::model::ids::WebhookUid;
use crate::model::target::Target;

/// The address that a connection goes to, if there are others to choose from.
pub(super) type Peer = Option<IpAddr>;

/// Where requests go, in the forms that HTTP wants.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) target: Target,
    absolute: Uri,
    path: Uri,
    host: HeaderValue,
}

impl Address {
    pub(super) fn of(target: &Target) -> Result<Self, Error> {
        let url = target.url();
        let uri = |text: &str| Uri::try_from(text).map_err(|error| Error::Url(error.into()));
        let host = HeaderValue::from_str(&url[Position::BeforeHost..Position::AfterPort]);
        Ok(Self {
            target: target.clone(),
            absolute: uri(url.as_str())?,
            path: uri(&url[Position::BeforePath..Position::AfterQuery])?,
            host: host.map_err(|error| Error::Url(error.into()))?,
        })
    }
}

/// A connection for one attempt.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) line: Line,
    pub(super) at: Arc<Address>,
    pub(super) webhook: WebhookUid,
    pub(super) made: Instant,
    pub(super) peer: Peer,
    /// It was there before: its peer may have closed it meanwhile.
    pub(super) is_reused: bool,
    /// It has brought an answer before, so its peer may have closed it just now because it was idle.
    pub(super) has_answered: bool,
}

impl Lease {
    /// What is heard of an answer below what speaks HTTP.
    pub(super) fn heard(&self) -> Option<Arc<http1::Heard>> {
        match &self.line {
            Line::Http1(connection) => Some(Arc::clone(connection.heard())),
            Line::Http2(_) => None,
        }
    }

    /// HTTP/2 wants the whole URL; HTTP/1.1 a path and the host as a header (RFC 9112, section 3.2.1).
    pub(super) fn address(&self, request: &mut Request<Bytes>) {
        match &self.line {
            Line::Http1(_) => {
                *request.uri_mut() = self.at.path.clone();
                request.headers_mut().insert(HOST, self.at.host.clone());
            }
            Line::Http2(_) => {
                *request.uri_mut() = self.at.absolute.clone();
                request.headers_mut().remove(HOST);
            }
        }
    }
}

/// A request as HTTP has it, but for where it goes.
pub(super) fn outgoing(Posted { headers, body, signatures: _ }: Posted) -> Request<Bytes> {
    // Of an empty body, too: HTTP/1.1 would go without, and some servers want it (RFC 9110, section 8.6).
    let length = HeaderValue::from(body.len());
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.headers_mut() = headers;
    request.headers_mut().insert(CONTENT_LENGTH, length);
    request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    request
}
