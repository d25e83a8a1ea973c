//! Discovery and OpenAPI: answers that are made once and kept whole in memory. No store, no routes: an API that
//! does not answer here stops every namespace deletion of the cluster.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::{API_VERSION, GROUP, RESOURCES, Resource, VERSION, openapi, set};
use crate::server::accept;
use crate::server::reply::Reply;
use crate::server::status::{Answer, Failure};

const JSON: &str = "application/json";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// One of the documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Document {
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group,
    /// `/apis/GROUP/VERSION`, by which kube-apiserver also judges whether we are there.
    Resources,
    /// `/openapi/v2`.
    OpenApi2,
    /// `/openapi/v3`.
    OpenApi3,
    /// `/openapi/v3/apis/GROUP/VERSION`.
    OpenApi3Group,
}

impl Document {
    /// What stands at a path.
    pub(in crate::server) fn at(path: &str) -> Option<Self> {
        let path = path.strip_suffix('/').unwrap_or(path);
        if let Some(rest) = path.strip_prefix("/openapi/v3") {
            return match rest.strip_prefix("/apis/") {
                None => rest.is_empty().then_some(Self::OpenApi3),
                Some(group) => (group == API_VERSION).then_some(Self::OpenApi3Group),
            };
        }
        match path.strip_prefix("/apis") {
            Some("") => Some(Self::Groups),
            Some(rest) => match rest.strip_prefix('/')? {
                GROUP => Some(Self::Group),
                API_VERSION => Some(Self::Resources),
                _ => None,
            },
            None => (path == "/openapi/v2").then_some(Self::OpenApi2),
        }
    }
}

/// A document as it is sent.
#[derive(Debug)]
struct Made {
    content_type: &'static str,
    body: Bytes,
    etag: HeaderValue,
}

impl Made {
    fn new(content_type: &'static str, document: &Value) -> Self {
        let body = Bytes::from(document.to_string());
        let hash = hash(&body);
        let etag =
            HeaderValue::try_from(format!("\"{hash}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        Self { content_type, body, etag }
    }

    fn answer(&self, headers: &HeaderMap) -> Answer {
        let mut answer = Response::new(Reply::default());
        let known = headers.get_all(IF_NONE_MATCH).iter().any(|tags| matches(tags, &self.etag));
        if known {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            *answer.body_mut() = Reply::from(self.body.clone());
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        }
        answer.headers_mut().insert(ETAG, self.etag.clone());
        answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        answer
    }
}

fn hash(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, bytes))
}

/// Whether `If-None-Match` names this tag, weakly compared.
fn matches(tags: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(tags), Ok(etag)) = (tags.to_str(), etag.to_str()) else { return false };
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// All documents.
#[derive(Debug)]
pub(in crate::server) struct Documents {
    groups: Made,
    aggregated: Made,
    group: Made,
    resources: Made,
    openapi_2: Made,
    openapi_3: Made,
    openapi_3_group: Made,
}

impl Documents {
    pub(in crate::server) fn new() -> Self {
        let openapi_3_group = Made::new(JSON, &openapi::v3());
        let openapi_3 = json!({"paths": {format!("apis/{API_VERSION}"): {
            "serverRelativeURL": format!("/openapi/v3/apis/{API_VERSION}?hash={}", hash(&openapi_3_group.body)),
        }}});
        let mut list = json!({"kind": "APIGroupList", "apiVersion": "v1"});
        set(&mut list, "groups", json!([group()]));
        let mut alone = json!({"kind": "APIGroup", "apiVersion": "v1"});
        if let (Value::Object(alone), Value::Object(group)) = (&mut alone, group()) {
            alone.extend(group);
        }
        Self {
            groups: Made::new(JSON, &list),
            aggregated: Made::new(AGGREGATED, &aggregated()),
            group: Made::new(JSON, &alone),
            resources: Made::new(JSON, &resources()),
            openapi_2: Made::new(JSON, &openapi::v2()),
            openapi_3: Made::new(JSON, &openapi_3),
            openapi_3_group,
        }
    }

    /// A document in the form that the client takes.
    pub(in crate::server) fn answer(
        &self,
        document: Document,
        headers: &HeaderMap,
    ) -> Result<Answer, Failure> {
        let made = match document {
            Document::Groups => self.groups_as_taken(headers)?,
            Document::Group => plain(&self.group, headers)?,
            Document::Resources => plain(&self.resources, headers)?,
            Document::OpenApi2 => plain(&self.openapi_2, headers)?,
            Document::OpenApi3 => plain(&self.openapi_3, headers)?,
            Document::OpenApi3Group => plain(&self.openapi_3_group, headers)?,
        };
        Ok(made.answer(headers))
    }

    fn groups_as_taken(&self, headers: &HeaderMap) -> Result<&Made, Failure> {
        let Some(ranges) = accept::ranges(headers) else { return Ok(&self.groups) };
        let made = ranges.iter().find_map(|range| {
            if range.is_as("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") {
                return Some(&self.aggregated);
            }
            range.is_plain_json().then_some(&self.groups)
        });
        made.ok_or_else(|| accept::refusal(&format!("{JSON} or {AGGREGATED}")))
    }
}

fn plain<'m>(made: &'m Made, headers: &HeaderMap) -> Result<&'m Made, Failure> {
    let takes = accept::ranges(headers).is_none_or(|all| all.iter().any(accept::Range::is_plain_json));
    if takes { Ok(made) } else { Err(accept::refusal(JSON)) }
}

fn group() -> Value {
    let version = json!({"groupVersion": API_VERSION, "version": VERSION});
    json!({"name": GROUP, "versions": [version], "preferredVersion": version})
}

fn resources() -> Value {
    let mut all = Vec::new();
    for Resource { name, singular, kind, short, verbs, subresources } in RESOURCES {
        let mut resource = json!({
            "name": name, "singularName": singular, "namespaced": true, "kind": kind, "verbs": verbs,
        });
        if !short.is_empty() {
            set(&mut resource, "shortNames", json!(short));
        }
        all.push(resource);
        all.extend(subresources.iter().map(|sub| {
            json!({
                "name": format!("{name}/{}", sub.name), "singularName": "", "namespaced": true,
                "kind": sub.kind, "verbs": sub.verbs,
            })
        }));
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION, "resources": all})
}

fn aggregated() -> Value {
    let of_kind = |kind: &str| json!({"group": GROUP, "version": VERSION, "kind": kind});
    let describe = |resource: &Resource| {
        let Resource { name, singular, kind, short, verbs, subresources } = resource;
        let mut described = json!({
            "resource": name, "responseKind": of_kind(kind), "scope": "Namespaced",
            "singularResource": singular, "verbs": verbs,
        });
        if !short.is_empty() {
            set(&mut described, "shortNames", json!(short));
        }
        let below = subresources.iter().map(
            |sub| json!({"subresource": sub.name, "responseKind": of_kind(sub.kind), "verbs": sub.verbs}),
        );
        if !subresources.is_empty() {
            set(&mut described, "subresources", below.collect::<Value>());
        }
        described
    };
    let version = json!({
        "version": VERSION, "freshness": "Current",
        "resources": RESOURCES.iter().map(describe).collect::<Vec<_>>(),
    });
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": [{"metadata": {"name": GROUP, "creationTimestamp": null}, "versions": [version]}],
    })
}

#[cfg(test)]
mod tests;
