//! What of a request and of an answer goes on over the next connection, and how the user is named there.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::server::auth::User;
use crate::server::status::{Failure, Reason};

/// Of one connection only (RFC 9110, 7.6.1), beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];
/// Was said to us alone, or is said anew: a front vouches for the user, so his token goes no further.
const OURS: [HeaderName; 5] = [AUTHORIZATION, CONTENT_LENGTH, COOKIE, EXPECT, HOST];
/// Begins each header by which a front says for whom it asks.
const REMOTE: &str = "x-remote-";
/// What of the key of an extra stands in a header's name as it is. Upper-case letters do not: a header's name has
/// no case.
const IN_A_NAME: &AsciiSet = &without_upper_case(NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_'));

const fn without_upper_case(mut set: AsciiSet) -> AsciiSet {
    let mut letter = b'A';
    while letter <= b'Z' {
        set = set.add(letter);
        letter += 1;
    }
    set
}

/// Leaves out what belongs to the connection that a message came by.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let stays =
        |name: &HeaderName| HOP_BY_HOP.contains(name) || named.iter().any(|other| other == name.as_str());
    headers
        .iter()
        .filter(|(name, _)| !stays(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The headers of a request as it goes on in this user's name.
pub(super) fn request(headers: &HeaderMap, user: &User) -> Result<HeaderMap, Failure> {
    let mut kept = HeaderMap::with_capacity(headers.len() + user.groups.len() + 4);
    for (name, value) in &end_to_end(headers) {
        if !OURS.contains(name) && !name.as_str().starts_with(REMOTE) {
            kept.append(name, value.clone());
        }
    }
    let User { username, uid, groups, extra, .. } = user;
    append(&mut kept, "user", username)?;
    if let Some(uid) = uid {
        append(&mut kept, "uid", uid)?;
    }
    for group in groups {
        append(&mut kept, "group", group)?;
    }
    for (key, values) in extra {
        let name = format!("extra-{}", utf8_percent_encode(key, IN_A_NAME));
        for value in values {
            append(&mut kept, &name, value)?;
        }
    }
    Ok(kept)
}

fn append(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), Failure> {
    let name = HeaderName::try_from(format!("{REMOTE}{name}"));
    let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) else {
        let message =
            "the name, a group or another attribute of the user has characters that no header can carry";
        return Err(Failure::new(Reason::Forbidden, message));
    };
    headers.append(name, value);
    Ok(())
}

/// The headers of an answer as it goes back. Its length is said anew.
pub(super) fn answer(headers: &HeaderMap) -> HeaderMap {
    let mut kept = end_to_end(headers);
    kept.remove(CONTENT_LENGTH);
    kept
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    fn user(extra: &[(&str, &[&str])]) -> User {
        let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let extra: BTreeMap<String, Vec<String>> =
            extra.iter().map(|(key, all)| ((*key).to_owned(), values(all))).collect();
        User::new(UserInfo {
            username: Some("älice".to_owned()),
            uid: Some("u-1".to_owned()),
            groups: Some(vec!["devs".to_owned(), "system:authenticated".to_owned()]),
            extra: Some(extra),
        })
        .unwrap()
    }

    fn map(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in all {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn lines(map: &HeaderMap) -> Vec<String> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut lines: Vec<_> = map.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_request_goes_on_without_its_hop_its_token_and_whatever_says_who_asks() {
        let came = map(&[
            ("accept", "application/json"),
            ("authorization", "Bearer secret"),
            ("ce-id", "7"),
            ("connection", "close, X-Mine"),
            ("connection", "keep-alive"),
            ("content-length", "3"),
            ("content-type", "a/b"),
            ("cookie", "session=secret"),
            ("expect", "100-continue"),
            ("host", "hookwright.ns.svc"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic secret"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-mine", "of this connection"),
            ("x-remote-extra-scopes", "forged"),
            ("x-remote-group", "system:masters"),
            ("x-remote-other", "forged"),
            ("x-remote-uid", "0"),
            ("x-remote-user", "admin"),
        ]);
        let kept = request(&came, &user(&[("a.io/Pod", &["p", "q"])])).unwrap();
        assert_eq!(
            lines(&kept),
            [
                "accept: application/json",
                "ce-id: 7",
                "content-type: a/b",
                "x-remote-extra-a.io%2f%50od: p",
                "x-remote-extra-a.io%2f%50od: q",
                "x-remote-group: devs",
                "x-remote-group: system:authenticated",
                "x-remote-uid: u-1",
                "x-remote-user: älice",
            ]
        );
    }

    #[test]
    fn an_answer_goes_back_without_its_hop_and_its_length() {
        let came = map(&[
            ("connection", "close, x-mine"),
            ("content-length", "3"),
            ("content-type", "application/json"),
            ("etag", "\"a\""),
            ("retry-after", "5"),
            ("transfer-encoding", "chunked"),
            ("x-mine", "of this connection"),
        ]);
        let kept = answer(&came);
        assert_eq!(lines(&kept), ["content-type: application/json", "etag: \"a\"", "retry-after: 5"]);
    }

    #[test]
    fn a_user_whom_no_header_can_carry_is_refused() {
        let failure =
            request(&HeaderMap::new(), &user(&[("a", &["b\r\nx-remote-user: admin"])])).unwrap_err();
        assert_eq!(failure.reason, Reason::Forbidden);
    }
}
