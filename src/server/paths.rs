//! What is where: paths to resources, without a word about what they do.

use http::Method;

use super::apis::deliveries::Change;
use super::apis::discovery::Document;
use super::status::Failure;
use crate::api::{DELIVERY_GROUP, DELIVERY_VERSION};

/// A resource that a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'p> {
    /// Discovery and OpenAPI.
    Document(Document),
    /// `…/deliveries` of all namespaces, or of one: the log.
    Deliveries {
        /// None: all.
        namespace: Option<&'p str>,
    },
    /// `…/namespaces/{namespace}/deliveries/{name}`: a line of the log.
    Delivery {
        /// A name that a namespace can have.
        namespace: &'p str,
        /// Not empty.
        name: &'p str,
    },
    /// `…/deliveries/{name}/payload`: what was sent and what came back.
    Payload {
        /// A name that a namespace can have.
        namespace: &'p str,
        /// Not empty.
        name: &'p str,
    },
    /// `…/deliveries/{name}/redeliver` and `…/expunge`: what can be done to a line of the log.
    Change {
        /// Which of them.
        change: Change,
        /// A name that a namespace can have.
        namespace: &'p str,
        /// Not empty.
        name: &'p str,
    },
    /// `…/usages` of all namespaces, or of one, and `…/usages/{name}`: what is used of the limits.
    Usages {
        /// None: all.
        namespace: Option<&'p str>,
        /// Of one, and not empty; none: a list.
        name: Option<&'p str>,
    },
    /// `…/namespaces/{namespace}/cloudevents`: where events are published.
    CloudEvents {
        /// A name that a namespace can have.
        namespace: &'p str,
    },
}

impl Target<'_> {
    /// The methods that it has, as the header `Allow` says them.
    pub(super) const fn allow(self) -> &'static str {
        match self {
            Self::CloudEvents { .. } => "POST, OPTIONS",
            Self::Change { .. } => "POST",
            Self::Document(_)
            | Self::Deliveries { .. }
            | Self::Delivery { .. }
            | Self::Payload { .. }
            | Self::Usages { .. } => "GET",
        }
    }

    /// The namespace that it is in; none: it is of all.
    pub(super) const fn namespace(&self) -> Option<&str> {
        match self {
            Self::Document(_) => None,
            Self::Deliveries { namespace } | Self::Usages { namespace, .. } => *namespace,
            Self::Delivery { namespace, .. }
            | Self::Payload { namespace, .. }
            | Self::Change { namespace, .. }
            | Self::CloudEvents { namespace } => Some(*namespace),
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }
}

/// What a method and a path ask for.
pub(super) fn find<'p>(method: &Method, path: &'p str) -> Result<Target<'p>, Failure> {
    let target = target(path).ok_or_else(|| Failure::no_such_path(path))?;
    match target {
        _ if target.allows(method) => Ok(target),
        Target::Deliveries { .. } | Target::Delivery { .. } => Err(Failure::log_is_read_only()),
        _ => Err(Failure::method_not_allowed(target.allow())),
    }
}

fn target(path: &str) -> Option<Target<'_>> {
    if let Some(document) = Document::at(path) {
        return Some(Target::Document(document));
    }
    let rest = path.strip_prefix("/apis/")?.strip_prefix(DELIVERY_GROUP)?.strip_prefix('/')?;
    let rest = rest.strip_prefix(DELIVERY_VERSION)?.strip_prefix('/')?;
    match rest {
        "deliveries" => return Some(Target::Deliveries { namespace: None }),
        "usages" => return Some(Target::Usages { namespace: None, name: None }),
        _ => {}
    }
    let (namespace, rest) = rest.strip_prefix("namespaces/")?.split_once('/')?;
    if !is_namespace(namespace) {
        return None;
    }
    match rest {
        "cloudevents" => Some(Target::CloudEvents { namespace }),
        "deliveries" => Some(Target::Deliveries { namespace: Some(namespace) }),
        "usages" => Some(Target::Usages { namespace: Some(namespace), name: None }),
        _ => match rest.strip_prefix("usages/") {
            Some(name) => usage(namespace, name),
            None => delivery(namespace, rest.strip_prefix("deliveries/")?),
        },
    }
}

fn usage<'p>(namespace: &'p str, name: &'p str) -> Option<Target<'p>> {
    let valid = !name.is_empty() && !name.contains('/');
    valid.then_some(Target::Usages { namespace: Some(namespace), name: Some(name) })
}

/// What is at a delivery's name and below.
fn delivery<'p>(namespace: &'p str, rest: &'p str) -> Option<Target<'p>> {
    let (name, below) = rest.split_once('/').map_or((rest, None), |(name, below)| (name, Some(below)));
    if name.is_empty() {
        return None;
    }
    match below {
        None => Some(Target::Delivery { namespace, name }),
        Some("payload") => Some(Target::Payload { namespace, name }),
        Some(below) => Change::called(below).map(|change| Target::Change { change, namespace, name }),
    }
}

/// Whether a namespace can have this name (RFC 1123 label).
fn is_namespace(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "/apis/delivery.hookwright.dev/v1alpha1";

    #[test]
    fn a_path_leads_to_one_resource_or_to_none() {
        let long = "n".repeat(63);
        for (path, namespace) in [
            (format!("{BASE}/namespaces/team-a/cloudevents"), Some("team-a")),
            (format!("{BASE}/namespaces/{long}/cloudevents"), Some(&*long)),
            (format!("{BASE}/namespaces/{long}n/cloudevents"), None),
            (format!("{BASE}/namespaces/Team/cloudevents"), None),
            (format!("{BASE}/namespaces/-a/cloudevents"), None),
            (format!("{BASE}/namespaces/a%2Fb/cloudevents"), None),
            (format!("{BASE}/namespaces//cloudevents"), None),
            (format!("{BASE}/namespaces/team-a/cloudevents/"), None),
            (format!("{BASE}/namespaces/team-a/events"), None),
            (format!("{BASE}/cloudevents"), None),
            ("/apis/delivery.hookwright.dev/v1/namespaces/team-a/cloudevents".to_owned(), None),
            ("/".to_owned(), None),
            (format!("{BASE}/namespaces/team-a/deliveries/x/cloudevents"), None),
        ] {
            let expected = namespace.map(|namespace| Target::CloudEvents { namespace });
            assert_eq!(find(&Method::POST, &path).ok(), expected, "{path}");
        }
    }

    #[test]
    fn the_log_and_the_documents_have_their_paths() {
        let (namespace, name) = ("team-a", "0190");
        for (path, expected) in [
            (format!("{BASE}/deliveries"), Some(Target::Deliveries { namespace: None })),
            (
                format!("{BASE}/namespaces/team-a/deliveries"),
                Some(Target::Deliveries { namespace: Some(namespace) }),
            ),
            (format!("{BASE}/namespaces/team-a/deliveries/0190"), Some(Target::Delivery { namespace, name })),
            (
                format!("{BASE}/namespaces/team-a/deliveries/0190/payload"),
                Some(Target::Payload { namespace, name }),
            ),
            (format!("{BASE}/namespaces/team-a/deliveries/0190/status"), None),
            (format!("{BASE}/namespaces/team-a/deliveries/"), None),
            (format!("{BASE}/namespaces/team-a/deliveries//payload"), None),
            (format!("{BASE}/deliveries/0190"), None),
            (format!("{BASE}/usages"), Some(Target::Usages { namespace: None, name: None })),
            (
                format!("{BASE}/namespaces/team-a/usages"),
                Some(Target::Usages { namespace: Some(namespace), name: None }),
            ),
            (
                format!("{BASE}/namespaces/team-a/usages/current"),
                Some(Target::Usages { namespace: Some(namespace), name: Some("current") }),
            ),
            (format!("{BASE}/namespaces/team-a/usages/"), None),
            (format!("{BASE}/namespaces/team-a/usages/current/status"), None),
            (format!("{BASE}/namespaces/team-a/usagesx"), None),
            (format!("{BASE}/usages/current"), None),
            ("/apis".to_owned(), Some(Target::Document(Document::Groups))),
            ("/apis/".to_owned(), Some(Target::Document(Document::Groups))),
            ("/apis/delivery.hookwright.dev".to_owned(), Some(Target::Document(Document::Group))),
            (BASE.to_owned(), Some(Target::Document(Document::Resources))),
            (format!("{BASE}1"), None),
            ("/apis/apps/v1".to_owned(), None),
            ("/apisx".to_owned(), None),
            ("/openapi/v2".to_owned(), Some(Target::Document(Document::OpenApi2))),
            ("/openapi/v3".to_owned(), Some(Target::Document(Document::OpenApi3))),
            (format!("/openapi/v3{BASE}"), Some(Target::Document(Document::OpenApi3Group))),
            ("/openapi/v3/apis/apps/v1".to_owned(), None),
            ("/openapi".to_owned(), None),
        ] {
            assert_eq!(find(&Method::GET, &path).ok(), expected, "{path}");
        }
    }

    #[test]
    fn what_can_be_done_to_a_line_is_below_it_and_is_done_by_post() {
        let base = format!("{BASE}/namespaces/team-a/deliveries");
        for (path, change) in [
            ("0190/redeliver", Some(Change::Redeliver)),
            ("0190/expunge", Some(Change::Expunge)),
            ("0190/forget", None),
            ("0190/redeliver/", None),
            ("/redeliver", None),
        ] {
            let expected = change.map(|change| Target::Change { change, namespace: "team-a", name: "0190" });
            assert_eq!(find(&Method::POST, &format!("{base}/{path}")).ok(), expected, "{path}");
        }
        let path = format!("{base}/0190/redeliver");
        assert_eq!(find(&Method::GET, &path), Err(Failure::method_not_allowed("POST")));
    }

    #[test]
    fn what_would_delete_or_change_the_log_is_told_what_does() {
        for path in ["deliveries", "namespaces/team-a/deliveries", "namespaces/team-a/deliveries/0190"] {
            for method in [Method::DELETE, Method::PUT, Method::PATCH, Method::POST] {
                let failure = find(&method, &format!("{BASE}/{path}")).unwrap_err();
                assert_eq!(failure, Failure::log_is_read_only(), "{method} {path}");
            }
        }
        let answer = Failure::log_is_read_only();
        for part in ["cannot be created, changed or deleted", "retention.age", "deliveries/NAME/expunge"] {
            assert!(answer.message.contains(part), "{}", answer.message);
        }
        assert_eq!(
            (answer.clone().into_answer().status(), &answer.into_answer().headers()["allow"]),
            (http::StatusCode::METHOD_NOT_ALLOWED, &"GET".parse().unwrap())
        );
    }

    #[test]
    fn a_method_that_a_resource_lacks_is_refused_with_those_it_has() {
        let path = format!("{BASE}/namespaces/team-a/cloudevents");
        assert!(find(&Method::OPTIONS, &path).is_ok());
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH, Method::HEAD] {
            assert_eq!(find(&method, &path), Err(Failure::method_not_allowed("POST, OPTIONS")), "{method}");
        }
    }
}
