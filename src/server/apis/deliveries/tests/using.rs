//! What each namespace uses, through the door.

use super::*;

#[tokio::test]
async fn usages_are_read_by_namespace_or_for_all_by_who_may() {
    let world = world();
    allow(&world, &["list usages team-a", "list usages ", "get usages team-a", "get usages team-c"]);
    let list = get(&world, "/usages").await;
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("UsageList"), &json!(API_VERSION)));
    let of = |usage: &Value| (usage["metadata"]["namespace"].clone(), usage["status"]["deliveries"].clone());
    let all: Vec<_> = list["items"].as_array().unwrap().iter().map(of).collect();
    assert_eq!(all, [(json!("team-a"), json!(6)), (json!("team-b"), json!(1))]);
    let list = get(&world, "/namespaces/team-a/usages?limit=500").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let one = get(&world, "/namespaces/team-a/usages/current").await;
    assert_eq!((&one["kind"], of(&one)), (&json!("Usage"), (json!("team-a"), json!(6))));
    for (path, code) in [
        ("/namespaces/team-b/usages", 403),
        ("/namespaces/team-b/usages/current", 403),
        ("/namespaces/team-a/usages/former", 404),
        ("/namespaces/team-c/usages/current", 404),
        ("/usages?fieldSelector=status.deliveries%3D6", 400),
        ("/usages?watch=true", 405),
    ] {
        let (answered, status) = get_as(&world, path, "application/json").await;
        assert_eq!((answered, &status["kind"]), (code, &json!("Status")), "{path}: {status}");
    }
    for (query, count) in [("labelSelector=a%3Db", 0), ("labelSelector=!a", 2)] {
        let list = get(&world, &format!("/usages?{query}")).await;
        assert_eq!(list["items"].as_array().unwrap().len(), count, "{query}");
    }
}

#[tokio::test]
async fn usages_come_in_each_form() {
    let world = world();
    allow(&world, &["list usages ", "get usages team-a"]);
    for (path, accept, kind) in [
        ("/usages", TABLE, "Table"),
        ("/namespaces/team-a/usages/current", TABLE, "Table"),
        (
            "/usages",
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            "PartialObjectMetadataList",
        ),
        (
            "/namespaces/team-a/usages/current",
            "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            "PartialObjectMetadata",
        ),
    ] {
        let (code, answer) = get_as(&world, path, accept).await;
        assert_eq!((code, &answer["kind"]), (200, &json!(kind)), "{path}");
    }
    let (code, _) = get_as(&world, "/usages", "application/yaml").await;
    assert_eq!(code, 406);
}

#[tokio::test]
async fn a_namespace_that_is_not_served_has_no_usage() {
    let scoped = World::with(Settings { max_body_bytes: 1, namespaces: vec!["team-b".to_owned()] });
    allow(&scoped, &["list usages team-a"]);
    let (code, status) = get_as(&scoped, "/namespaces/team-a/usages", "application/json").await;
    assert_eq!(code, 404, "{status}");
}
