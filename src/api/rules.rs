//! The CEL rules of the kinds, each with a message that says what must be.
//!
//! kube-apiserver evaluates them, so they hold with no operator running. It estimates their cost before it takes
//! a CRD: every string and list they touch has a maximum, and no rule looks into the parts of a URL but its
//! host name (their sizes are unknown to the estimate, which would refuse the CRD).

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::model::legible::HIDDEN;

/// A Kubernetes name: DNS-1123 subdomain.
const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// A key in the data of a Secret or ConfigMap.
const KEY: &str = "^[-._a-zA-Z0-9]+$";
/// A duration: whole numbers with units. In 16 characters, no sum of them is more than what CEL can hold.
const DURATION: &str = "^([0-9]{1,6}h|[0-9]{1,7}(ms|s|m))+$";
/// A time of RFC 3339, in upper case, that exists: of the years 1000 to 9999, without leap seconds. See
/// [`crate::model::time::UnixMillis::parse`].
const TIME: &str = "^([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|\
                    02-(0[1-9]|1[0-9]|2[0-8]))|([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-\
                    02-29)T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";
/// A token of RFC 9110, as header names are.
const TOKEN: &str = "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$";
/// Printable ASCII, no space at either end.
const HEADER_VALUE: &str = "^([!-~]([ -~]*[!-~])?)?$";
/// User information before the host.
const USER_INFO: &str = r"^https://[^/?#\\]*@";

/// Header names that Hookwright or HTTP itself sets.
pub const RESERVED_HEADERS: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
];
/// Beginnings of header names that Hookwright or HTTP itself sets.
pub const RESERVED_HEADER_PREFIXES: &[&str] = &["ce-", "hookwright-", "proxy-", "webhook-"];

fn rules<const N: usize>(rules: [(String, &str); N]) -> Value {
    rules.into_iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect()
}

fn matches(pattern: &str) -> String {
    format!(r#"self.matches(r"{pattern}")"#)
}

/// An IPv6 address of hexadecimal groups in lower case, with at most one `::`.
fn ipv6_pattern() -> String {
    let group = "[0-9a-f]{1,4}";
    let around = |before: usize| {
        let after = 7 - before;
        format!("({group}:){{1,{before}}}(:{group}){{1,{after}}}")
    };
    let between: Vec<String> = (1..7).map(around).collect();
    format!("({group}:){{7}}{group}|({group}:){{1,7}}:|{}|:((:{group}){{1,7}}|:)", between.join("|"))
}

/// A character of an event type: neither a star nor what cannot be seen.
fn of_event_type() -> String {
    let mut class = r"[^*\x{20}".to_owned();
    for (first, last) in HIDDEN {
        let _ = write!(class, r"\x{{{:X}}}-\x{{{:X}}}", u32::from(*first), u32::from(*last));
    }
    class + "]"
}

/// Every spelling of a URL on whose host two parsers could disagree is outside of this expression.
fn url_pattern() -> String {
    let octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
    let port = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
    let name = "([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?[.])+[a-z]([-a-z0-9]{0,61}[a-z0-9])?";
    let address = format!("{octet}([.]{octet}){{3}}|\\[({})\\]", ipv6_pattern());
    let (path, escape) = ("A-Za-z0-9._~!$&'()*+,;=:@/", "%[0-9A-Fa-f]{2}");
    format!("^https://({name}|{address})(:{port})?(/([{path}-]|{escape})*)?([?]([{path}?-]|{escape})*)?$")
}

/// `spec.url`.
pub(super) fn url() -> Value {
    let (https, user_info) = (r#"self.startsWith("https://")"#, matches(USER_INFO));
    rules([
        (https.to_owned(), "url must start with https://"),
        (
            format!("!{user_info}"),
            "url must not contain user information: credentials belong into a Secret, sent with headers.valueFrom",
        ),
        (
            format!("!{https} || {user_info} || {}", matches(&url_pattern())),
            "url must have a host that is a lower-case DNS name with a dot (international names as xn--...) or an \
             IP address in its usual form, an optional port, and a path and query in which everything else is \
             percent-encoded; no fragment",
        ),
        ("isURL(self)".to_owned(), "url must be a valid URL"),
        (
            "!isURL(self) || size(url(self).getHostname()) <= 253".to_owned(),
            "url must have a host name of at most 253 characters",
        ),
    ])
}

/// `spec.eventTypes`, as a list.
pub(super) fn event_type_patterns() -> Value {
    // An exact type, or a prefix that ends in a dot and a star.
    let pattern = format!("^([*]|{}+([.][*])?)$", of_event_type());
    rules([(
        format!(r#"self.all(t, t.matches(r"{pattern}"))"#),
        r#"each event type must be exact ("order.created"), a prefix ("invoice.*"), or "*" for all, without spaces and characters that cannot be seen"#,
    )])
}

/// One event type.
pub(super) fn event_type() -> Value {
    rules([(
        matches(&format!("^{}+$", of_event_type())),
        "eventType must be one exact event type, without spaces and without *, and without characters that cannot be seen",
    )])
}

/// The name of an object.
pub(super) fn name() -> Value {
    rules([(
        matches(NAME),
        "name must be the name of an object: lower-case letters, digits, '-' and '.', beginning and ending with a \
         letter or digit",
    )])
}

/// A key in the data of a Secret or ConfigMap.
pub(super) fn key() -> Value {
    rules([(matches(KEY), "key must consist of letters, digits, '-', '_' and '.'")])
}

/// A header's name.
pub(super) fn header_name() -> Value {
    let reserved = serde_json::to_string(RESERVED_HEADERS).unwrap_or_default();
    let prefixes = RESERVED_HEADER_PREFIXES.join("|");
    rules([
        (matches(TOKEN), "name must be a header name: letters, digits and any of !#$%&'*+-.^_`|~"),
        (
            format!(r#"!(self.lowerAscii() in {reserved}) && !self.lowerAscii().matches(r"^({prefixes})")"#),
            "name must not be a header that Hookwright or HTTP sets itself, such as Host, Content-Type, User-Agent, \
             Webhook-*, Ce-*, Hookwright-* or Proxy-*",
        ),
    ])
}

/// A header's value.
pub(super) fn header_value() -> Value {
    rules([(matches(HEADER_VALUE), "value must be printable ASCII without spaces at its ends")])
}

/// One header.
pub(super) fn header() -> Value {
    rules([(
        "has(self.value) != has(self.valueFrom)".to_owned(),
        "exactly one of value and valueFrom must be set",
    )])
}

/// `spec.headers`.
pub(super) fn headers() -> Value {
    rules([(
        "self.all(a, self.exists_one(b, a.name.lowerAscii() == b.name.lowerAscii()))".to_owned(),
        "header names must be unique; upper and lower case are the same",
    )])
}

/// A duration within bounds, which `message` names.
pub(super) fn duration(min: &str, max: &str, message: &str) -> Value {
    let within = format!(r#"duration(self) >= duration("{min}") && duration(self) <= duration("{max}")"#);
    rules([(format!("{} && {within}", matches(DURATION)), message)])
}

/// `spec.backoff`.
pub(super) fn backoff() -> Value {
    let valid = |field: &str| format!(r#"self.{field}.matches(r"{DURATION}")"#);
    rules([(
        format!("!{} || !{} || duration(self.max) >= duration(self.initial)", valid("initial"), valid("max")),
        "max must be at least as long as initial",
    )])
}

/// A time.
pub(super) fn time(message: &str) -> Value {
    rules([(matches(TIME), message)])
}

/// The times of a replay's selection.
pub(super) fn replay_times() -> Value {
    let valid = |field: &str| format!(r#"self.{field}.matches(r"{TIME}")"#);
    rules([(
        format!("!{} || !{} || timestamp(self.from) < timestamp(self.to)", valid("from"), valid("to")),
        "from must be before to",
    )])
}

/// The spec of a kind that is carried out once.
pub(super) fn immutable() -> Value {
    rules([(
        "self == oldSelf".to_owned(),
        "spec is immutable and must not be changed: create another object",
    )])
}
