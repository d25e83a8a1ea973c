use http::header::ACCEPT;
use http_body_util::BodyExt as _;

use super::*;

async fn read(document: Document, headers: &[(http::HeaderName, &str)]) -> (http::response::Parts, Value) {
    let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
    let (parts, body) = Documents::new().answer(document, &headers).unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn the_resources_are_what_kubectl_needs_and_no_more() {
    let (parts, list) = read(Document::Resources, &[]).await;
    assert_eq!(parts.headers[CONTENT_TYPE], "application/json");
    assert_eq!(
        list,
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "delivery.hookwright.dev/v1alpha1",
            "resources": [
                {
                    "name": "cloudevents", "singularName": "cloudevent", "namespaced": true,
                    "kind": "CloudEvent", "verbs": ["create"],
                },
                {
                    "name": "deliveries", "singularName": "delivery", "namespaced": true, "kind": "Delivery",
                    "verbs": ["get", "list"], "shortNames": ["dlv"],
                },
                {
                    "name": "deliveries/expunge", "singularName": "", "namespaced": true,
                    "kind": "DeliveryExpunge", "verbs": ["create"],
                },
                {
                    "name": "deliveries/payload", "singularName": "", "namespaced": true,
                    "kind": "DeliveryPayload", "verbs": ["get"],
                },
                {
                    "name": "deliveries/redeliver", "singularName": "", "namespaced": true,
                    "kind": "DeliveryRedelivery", "verbs": ["create"],
                },
                {
                    "name": "usages", "singularName": "usage", "namespaced": true, "kind": "Usage",
                    "verbs": ["get", "list"],
                },
            ],
        })
    );
}

#[tokio::test]
async fn groups_are_aggregated_for_those_who_take_that() {
    let taken = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let (parts, aggregated) = read(Document::Groups, &[(ACCEPT, taken)]).await;
    assert_eq!(parts.headers[CONTENT_TYPE], AGGREGATED);
    assert_eq!(aggregated["kind"], "APIGroupDiscoveryList");
    let version = &aggregated["items"][0]["versions"][0];
    assert_eq!((&version["version"], &version["freshness"]), (&json!("v1alpha1"), &json!("Current")));
    let resource = &version["resources"][1];
    assert_eq!((&resource["resource"], &resource["verbs"]), (&json!("deliveries"), &json!(["get", "list"])));
    assert_eq!(resource["subresources"][1]["subresource"], "payload");
    assert_eq!(version.pointer("/resources/0/subresources"), None);

    for accept in
        ["application/json", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,*/*"]
    {
        let (_, list) = read(Document::Groups, &[(ACCEPT, accept)]).await;
        assert_eq!(list["kind"], "APIGroupList", "{accept}");
        assert_eq!(list["groups"][0]["preferredVersion"]["version"], "v1alpha1");
    }
    let (_, group) = read(Document::Group, &[]).await;
    assert_eq!((&group["kind"], &group["name"]), (&json!("APIGroup"), &json!(GROUP)));
}

#[tokio::test]
async fn who_has_a_document_already_is_not_sent_it_again() {
    let (first, _) = read(Document::Groups, &[(ACCEPT, AGGREGATED)]).await;
    let etag = first.headers[ETAG].to_str().unwrap().to_owned();
    for (tags, code) in [
        (etag.clone(), 304),
        (format!("\"x\", W/{etag}"), 304),
        ("*".to_owned(), 304),
        ("\"x\"".to_owned(), 200),
    ] {
        let (parts, body) = read(Document::Groups, &[(ACCEPT, AGGREGATED), (IF_NONE_MATCH, &tags)]).await;
        assert_eq!((parts.status.as_u16(), body.is_null()), (code, code == 304), "{tags}");
        assert_eq!(parts.headers[ETAG], etag);
    }
    let (legacy, _) = read(Document::Groups, &[(IF_NONE_MATCH, &etag)]).await;
    assert_eq!(legacy.status, 200, "another form is another document");
}

#[test]
fn a_form_that_there_is_not_is_a_406() {
    let documents = Documents::new();
    let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/yaml"))]);
    for document in
        [Document::Groups, Document::Group, Document::Resources, Document::OpenApi2, Document::OpenApi3]
    {
        let failure = documents.answer(document, &headers).unwrap_err();
        assert_eq!(failure.reason.code(), 406, "{document:?}");
    }
}

#[tokio::test]
async fn the_schema_explains_every_field_that_is_served() {
    let (_, index) = read(Document::OpenApi3, &[]).await;
    let url = index["paths"]["apis/delivery.hookwright.dev/v1alpha1"]["serverRelativeURL"].as_str().unwrap();
    assert!(url.starts_with("/openapi/v3/apis/delivery.hookwright.dev/v1alpha1?hash="), "{url}");
    let (_, document) = read(Document::OpenApi3Group, &[]).await;
    let schemas = &document["components"]["schemas"];
    let delivery = &schemas["dev.hookwright.delivery.v1alpha1.Delivery"];
    let attempt =
        delivery.pointer("/properties/status/properties/attempts/items/properties/errorMessage").unwrap();
    assert_eq!(
        attempt["description"],
        "Why it failed, or what became of an answer whose status had arrived (cut, late, reset)."
    );
    let state = delivery.pointer("/properties/status/properties/state").unwrap();
    assert_eq!((&state["type"], state["enum"].as_array().unwrap().len()), (&json!("string"), 5), "{state}");
    let text = document.to_string();
    let references = text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap());
    for reference in references {
        assert!(schemas.get(reference).is_some(), "{reference} is nowhere");
    }
    let usage = &schemas["dev.hookwright.delivery.v1alpha1.Usage"];
    let pending = usage.pointer("/properties/status/properties/pendingBytes/description").unwrap();
    assert_eq!(pending, "Bytes of events that wait, counted once for each Webhook.");
    assert_eq!(
        usage.pointer("/properties/spec/description").unwrap(),
        "The limits, which are the same for each namespace."
    );
    for operation in
        ["/deliveries", "/namespaces/{namespace}/deliveries", "/namespaces/{namespace}/deliveries/{name}"]
    {
        let path = format!("/apis/delivery.hookwright.dev/v1alpha1{operation}");
        assert_eq!(
            document["paths"][&path]["get"]["x-kubernetes-group-version-kind"]["kind"], "Delivery",
            "{path}"
        );
    }
}
