//! What is where: paths to resources, without a word about what they do.

use http::Method;

use super::status::Failure;
use crate::api::{DELIVERY_GROUP, DELIVERY_VERSION};

/// A resource that a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'p> {
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
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }
}

/// What a method and a path ask for.
pub(super) fn find<'p>(method: &Method, path: &'p str) -> Result<Target<'p>, Failure> {
    let target = target(path).ok_or_else(|| Failure::no_such_path(path))?;
    if target.allows(method) { Ok(target) } else { Err(Failure::method_not_allowed(target.allow())) }
}

fn target(path: &str) -> Option<Target<'_>> {
    let rest = path.strip_prefix("/apis/")?.strip_prefix(DELIVERY_GROUP)?.strip_prefix('/')?;
    let rest = rest.strip_prefix(DELIVERY_VERSION)?.strip_prefix("/namespaces/")?;
    match rest.split_once('/')? {
        (namespace, "cloudevents") if is_namespace(namespace) => Some(Target::CloudEvents { namespace }),
        _ => None,
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
        ] {
            let expected = namespace.map(|namespace| Target::CloudEvents { namespace });
            assert_eq!(find(&Method::POST, &path).ok(), expected, "{path}");
        }
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
