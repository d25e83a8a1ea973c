//! Answers: what succeeds as JSON, what fails as a Kubernetes `Status`, so that kubectl and client-go read it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status, StatusCause, StatusDetails};
use serde::Serialize;

use super::reply::Reply;
use crate::api::DELIVERY_GROUP;

/// An answer.
pub type Answer = Response<Reply>;

/// Why a request is refused: `reason` of a `Status`, each with its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// 400: it cannot be understood.
    BadRequest,
    /// 401: nobody that is known asks.
    Unauthorized,
    /// 403: who asks has no right to.
    Forbidden,
    /// 404: there is no such thing.
    NotFound,
    /// 405: not by this method.
    MethodNotAllowed,
    /// 406: in no form that the client takes.
    NotAcceptable,
    /// 408: its body did not come in time.
    RequestTimeout,
    /// 409: what it is about is not in a state for that.
    Conflict,
    /// 410: what a list was to go on from is no more.
    Expired,
    /// 410: it was there, and was erased.
    Gone,
    /// 413: it is too large.
    RequestEntityTooLarge,
    /// 415: its content type is none that is read here.
    UnsupportedMediaType,
    /// 429: too much, later again.
    TooManyRequests,
    /// 431: its head is too large.
    RequestHeaderFieldsTooLarge,
    /// 500: our fault.
    InternalError,
    /// 503: not now, later again.
    ServiceUnavailable,
}

impl Reason {
    /// Its HTTP status.
    pub const fn code(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Expired | Self::Gone => StatusCode::GONE,
            Self::RequestEntityTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::RequestHeaderFieldsTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// As Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::RequestTimeout => "RequestTimeout",
            Self::Conflict => "Conflict",
            Self::Expired => "Expired",
            Self::Gone => "Gone",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::TooManyRequests => "TooManyRequests",
            Self::RequestHeaderFieldsTooLarge => "RequestHeaderFieldsTooLarge",
            Self::InternalError => "InternalError",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }
}

/// A refusal, on its way to becoming an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// What is wrong and what to do, as a person reads it.
    pub message: String,
    causes: Vec<StatusCause>,
    resource: Option<&'static str>,
    name: Option<Box<str>>,
    retry_after: Option<Duration>,
    allow: Option<&'static str>,
}

impl Failure {
    /// A refusal with nothing but a reason and a message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            reason,
            message,
            causes: Vec::new(),
            resource: None,
            name: None,
            retry_after: None,
            allow: None,
        }
    }

    /// 404 of an object.
    pub fn no_such_object(resource: &'static str, name: &str) -> Self {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
        let message = format!("{resource}.{DELIVERY_GROUP} \"{shown}\" not found");
        Self { name: Some(shown.into()), ..Self::new(Reason::NotFound, message).of(resource) }
    }

    /// 404 of a namespace, as kube-apiserver says it.
    pub fn no_such_namespace(name: &str) -> Self {
        let message =
            format!("namespaces \"{name}\" not found: events are published into a namespace that exists");
        Self::new(Reason::NotFound, message)
    }

    /// 404 of a path.
    pub fn no_such_path(path: &str) -> Self {
        let shown: String = path.chars().filter(|c| !c.is_control()).take(200).collect();
        Self::new(Reason::NotFound, format!("there is nothing at {shown}"))
    }

    /// 405: only the methods in `allow` are.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let failure = Self::new(Reason::MethodNotAllowed, format!("the method must be one of: {allow}"));
        Self { allow: Some(allow), ..failure }
    }

    /// 405 of what is done to the log in another way, or not at all.
    pub fn log_is_read_only() -> Self {
        // The same for each: kubectl delete asks for one after the other, and prints what it is told.
        let message = "deliveries are a log, and cannot be created, changed or deleted: those that have ended go by \
                       themselves (retention.age, retention.bytes), all of a Webhook with the Webhook; to erase an event's \
                       payload now, create deliveries/NAME/expunge; to send it again, create deliveries/NAME/redeliver";
        let failure = Self::new(Reason::MethodNotAllowed, message).of("deliveries");
        Self { allow: Some("GET"), ..failure }
    }

    /// 503 or 429, with the time after which to try again.
    pub fn later(reason: Reason, message: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(reason, message) }
    }

    /// Names a field that must be otherwise.
    #[must_use]
    pub fn cause(mut self, reason: &str, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.causes.push(StatusCause {
            reason: Some(reason.to_owned()),
            field: Some(field.into()),
            message: Some(message.into()),
        });
        self
    }

    /// Names the resource of this API that was asked for.
    #[must_use]
    pub fn of(mut self, resource: &'static str) -> Self {
        self.resource = Some(resource);
        self
    }

    /// Names the object that it is about, which must be one that exists.
    #[must_use]
    pub fn named(mut self, name: impl Into<Box<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The `Status` and its HTTP headers.
    pub fn into_answer(self) -> Answer {
        let Self { reason, message, causes, resource, name, retry_after, allow } = self;
        let seconds = retry_after.map(|after| i32::try_from(after.as_secs().max(1)).unwrap_or(i32::MAX));
        let details = StatusDetails {
            causes: (!causes.is_empty()).then_some(causes),
            group: resource.map(|_| DELIVERY_GROUP.to_owned()),
            kind: resource.map(ToOwned::to_owned),
            name: name.map(Into::into),
            retry_after_seconds: seconds,
            ..StatusDetails::default()
        };
        let status = Status {
            code: Some(reason.code().as_u16().into()),
            reason: Some(reason.as_str().to_owned()),
            status: Some("Failure".to_owned()),
            message: Some(message),
            details: (details != StatusDetails::default()).then_some(details),
            metadata: ListMeta::default(),
        };
        let mut answer = json(reason.code(), &status);
        if let Some(seconds) = seconds {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = allow {
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        if reason == Reason::Unauthorized {
            let challenge = HeaderValue::from_static("Bearer realm=\"hookwright\"");
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        answer
    }
}

/// An answer with a JSON body. No cache may keep it.
pub fn json(code: StatusCode, body: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut answer = Response::new(Reply::from(Bytes::from(body)));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    use super::*;

    async fn read(failure: Failure) -> (http::response::Parts, Value) {
        let (parts, body) = failure.into_answer().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_refusal_is_a_status_with_code_reason_and_causes() {
        let failure = Failure::new(Reason::BadRequest, "no").of("cloudevents").cause(
            "FieldValueInvalid",
            "[3].source",
            "must be a URI reference",
        );
        let (parts, body) = read(failure).await;
        assert_eq!(parts.status, 400);
        assert_eq!(parts.headers[CONTENT_TYPE], "application/json");
        assert_eq!(
            body,
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "reason": "BadRequest", "code": 400, "message": "no",
                "details": {
                    "group": "delivery.hookwright.dev",
                    "kind": "cloudevents",
                    "causes": [{
                        "reason": "FieldValueInvalid",
                        "field": "[3].source",
                        "message": "must be a URI reference",
                    }],
                },
            })
        );
    }

    #[tokio::test]
    async fn what_helps_to_go_on_is_in_the_headers_too() {
        let later = Failure::later(Reason::ServiceUnavailable, "soon", Duration::from_millis(200));
        let (parts, body) = read(later).await;
        assert_eq!((parts.status.as_u16(), &parts.headers[RETRY_AFTER]), (503, &HeaderValue::from(1)));
        assert_eq!(body["details"]["retryAfterSeconds"], 1);

        let (parts, body) = read(Failure::method_not_allowed("POST, OPTIONS")).await;
        assert_eq!((parts.status.as_u16(), parts.headers[ALLOW].to_str().unwrap()), (405, "POST, OPTIONS"));
        assert_eq!(body.get("details"), None);

        let (parts, _) = read(Failure::new(Reason::Unauthorized, "who?")).await;
        assert!(parts.headers.contains_key(WWW_AUTHENTICATE));

        let (parts, body) = read(Failure::no_such_path("/a\u{1b}[31m")).await;
        assert_eq!((parts.status.as_u16(), &body["message"]), (404, &json!("there is nothing at /a[31m")));
    }

    #[test]
    fn each_reason_has_its_code() {
        for (reason, code) in [
            (Reason::BadRequest, 400),
            (Reason::Unauthorized, 401),
            (Reason::Forbidden, 403),
            (Reason::NotFound, 404),
            (Reason::MethodNotAllowed, 405),
            (Reason::NotAcceptable, 406),
            (Reason::RequestTimeout, 408),
            (Reason::Conflict, 409),
            (Reason::Expired, 410),
            (Reason::Gone, 410),
            (Reason::RequestEntityTooLarge, 413),
            (Reason::UnsupportedMediaType, 415),
            (Reason::TooManyRequests, 429),
            (Reason::RequestHeaderFieldsTooLarge, 431),
            (Reason::InternalError, 500),
            (Reason::ServiceUnavailable, 503),
        ] {
            assert_eq!(reason.code().as_u16(), code, "{}", reason.as_str());
        }
    }
}
