//! Who may publish, and what is answered.

use hookwright_harness::publisher::Event;
use serde_json::{Value, json};

use crate::world::{SOON, Team, newest};

async fn attempt(team: &Team, namespace: &str, token: &str) -> anyhow::Result<(u16, Value)> {
    let event = Event::new("1", "order.created", json!({}));
    let answer = team.publisher.with_token(token).publish_binary(namespace, &event).await?;
    Ok((answer.status, answer.json()))
}

#[tokio::test]
async fn only_a_token_for_us_of_an_account_with_the_role_in_that_namespace_may_publish() -> anyhow::Result<()>
{
    let (team, other) = (Team::new("mine").await?, Team::new("theirs").await?);
    team.webhook("orders", json!({})).await?;
    other.webhook("orders", json!({})).await?;
    team.kubectl.ok(&["create", "serviceaccount", "nobody", "-n", &team.namespace]).await?;
    let plane = &team.world.plane;
    let wrong_audience = plane.token(&team.namespace, "producer", Some("somebody-else")).await?;
    let without_role = plane.token(&team.namespace, "nobody", Some("hookwright")).await?;
    let right = plane.token(&team.namespace, "producer", Some("hookwright")).await?;

    for (case, namespace, token, expected) in [
        ("no token", &team.namespace, "", 401),
        ("a wrong token", &team.namespace, "nonsense", 401),
        ("a wrong audience", &team.namespace, &*wrong_audience, 401),
        ("no role", &team.namespace, &*without_role, 403),
        ("a role in another namespace", &other.namespace, &*right, 403),
    ] {
        let (code, status) = attempt(&team, namespace, token).await?;
        assert_eq!(code, expected, "{case}: {status}");
        assert_eq!(status["kind"], "Status", "{case}: {status}");
        assert_eq!(status["code"], expected, "{case}: {status}");
        assert!(status["message"].as_str().is_some_and(|message| message.len() > 10), "{case}: {status}");
    }
    let (code, receipt) = attempt(&team, &team.namespace, &right).await?;
    assert_eq!((code, &receipt["matched"]), (202, &json!(1)), "{receipt}");
    assert!(receipt["duplicate"].is_null(), "nothing of the refused ones was stored: {receipt}");
    team.receiver.await_requests("/orders", 1, SOON).await?;
    let webhook =
        team.await_webhook("orders", "one delivery", |webhook| newest(webhook)["state"] == "Success").await?;
    assert_eq!(webhook["status"]["deliveries"].as_array().map(Vec::len), Some(1));
    assert_eq!(other.receiver.count("/orders"), 0);
    Ok(())
}

#[tokio::test]
async fn admins_declare_viewers_read_and_edit_is_not_enough() -> anyhow::Result<()> {
    let team = Team::new("roles").await?;
    for role in ["view", "edit", "admin"] {
        let (cluster_role, user) = (format!("--clusterrole={role}"), format!("--user={role}"));
        team.kubectl
            .ok(&["create", "rolebinding", role, "-n", &team.namespace, &cluster_role, &user])
            .await?;
    }
    let may = async |user: &str, verb: &str, kind: &str| {
        let user = format!("--as={user}");
        team.kubectl.ok(&["auth", "can-i", verb, kind, "-n", &team.namespace, &user]).await.is_ok()
    };
    for kind in ["webhooks.hookwright.dev", "webhooktests.hookwright.dev", "webhookreplays.hookwright.dev"] {
        // The aggregation takes a moment.
        hookwright_harness::wait::eventually(SOON, "the roles to be aggregated", async || {
            let aggregated = may("admin", "create", kind).await && may("view", "get", kind).await;
            if aggregated { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await?;
        for (user, verb, expected) in [
            ("admin", "delete", true),
            ("edit", "get", true),
            ("edit", "create", false),
            ("edit", "update", false),
            ("view", "create", false),
            ("nobody", "get", false),
        ] {
            assert_eq!(may(user, verb, kind).await, expected, "{user} {verb} {kind}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_nobody_wanted_may_come_again_and_a_namespace_must_exist() -> anyhow::Result<()> {
    let team = Team::new("unwanted").await?;
    let event = Event::new("order-1", "order.created", json!({}));
    let publish = async || team.publisher.publish_binary(&team.namespace, &event).await?.accepted();
    for _ in 0..2 {
        let receipt = publish().await?;
        assert_eq!((&receipt["matched"], &receipt["duplicate"]), (&json!(0), &Value::Null), "{receipt}");
    }
    team.webhook("orders", json!({})).await?;
    let first = publish().await?;
    assert_eq!((&first["matched"], &first["duplicate"]), (&json!(1), &Value::Null), "{first}");
    team.receiver.await_requests("/orders", 1, SOON).await?;
    let again = publish().await?;
    assert_eq!((&again["duplicate"], &again["id"]), (&json!(true), &first["id"]), "{again}");

    let account = format!("--serviceaccount={}:producer", team.namespace);
    let binding =
        ["create", "clusterrolebinding", &*team.namespace, "--clusterrole=hookwright-publisher", &*account];
    team.kubectl.ok(&binding).await?;
    let nowhere = format!("{}-no-more", team.namespace);
    hookwright_harness::wait::eventually(SOON, "a 404", async || {
        let answer =
            team.publisher.publish_binary(&nowhere, &event).await.map_err(|error| error.to_string())?;
        let status = answer.json();
        let said = status["message"].as_str().unwrap_or_default();
        let is_it = answer.status == 404 && said.starts_with(&format!("namespaces \"{nowhere}\" not found"));
        if is_it && status["reason"] == "NotFound" { Ok(()) } else { Err(status.to_string()) }
    })
    .await?;
    team.kubectl.ok(&["create", "namespace", &nowhere]).await?;
    hookwright_harness::wait::eventually(SOON, "a 202", async || {
        let answer =
            team.publisher.publish_binary(&nowhere, &event).await.map_err(|error| error.to_string())?;
        answer.accepted().map(drop).map_err(|error| error.to_string())
    })
    .await
}

#[tokio::test]
async fn nothing_crosses_a_namespace() -> anyhow::Result<()> {
    let (team, other) = (Team::new("here").await?, Team::new("there").await?);
    team.webhook("orders", json!({})).await?;
    other.webhook("orders", json!({})).await?;
    let receipt = team.publish("order.created", &json!({})).await?;
    assert_eq!(receipt["matched"], 1);
    team.receiver.await_requests("/orders", 1, SOON).await?;
    other.publish("order.created", &json!({})).await?;
    other.receiver.await_requests("/orders", 1, SOON).await?;
    assert_eq!((team.receiver.count("/orders"), other.receiver.count("/orders")), (1, 1));
    Ok(())
}

#[tokio::test]
async fn all_three_modes_and_duplicates() -> anyhow::Result<()> {
    let team = Team::new("modes").await?;
    team.webhook("orders", json!({})).await?;
    let first = Event::new("s", "a.b", json!({"mode": "structured"}));
    let receipt = team.publisher.publish_structured(&team.namespace, &first).await?.accepted()?;
    assert_eq!(receipt["matched"], 1, "{receipt}");
    let again = team.publisher.publish_structured(&team.namespace, &first).await?.accepted()?;
    assert_eq!((&again["duplicate"], &again["id"]), (&json!(true), &receipt["id"]), "{again}");

    let second = Event { id: "b".to_owned(), ..first.clone() };
    let receipts = team.batch(&[second.clone(), first, second]).await?;
    let duplicates: Vec<_> = receipts.iter().map(|receipt| receipt["duplicate"] == true).collect();
    assert_eq!(duplicates, [false, true, true], "{receipts:?}");
    let requests = team.receiver.await_requests("/orders", 2, SOON).await?;
    assert_eq!(requests[0].json()?, json!({"mode": "structured"}));

    let bad = [Event::new("x", "a", json!({})), Event::new("", "a", json!({}))];
    let answer = team.publisher.publish_batch(&team.namespace, &bad).await?;
    let status = answer.json();
    assert_eq!(answer.status, 400, "{status}");
    assert!(status["message"].as_str().is_some_and(|message| message.contains("[1]")), "{status}");
    let dry = team.dry_run("a").await?;
    assert_eq!(dry["matched"], 1, "{dry}");
    // A duplicate that was stored all the same would be a third.
    let webhook = team
        .await_webhook("orders", "two deliveries", |webhook| {
            let deliveries = webhook["status"]["deliveries"].as_array().map_or(0, Vec::len);
            newest(webhook)["state"] == "Success" && deliveries >= 2
        })
        .await?;
    assert_eq!(webhook["status"]["deliveries"].as_array().map(Vec::len), Some(2));
    Ok(())
}
