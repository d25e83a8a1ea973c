//! Two doors, one meaning: through kube-apiserver and straight, each role may do the same, and nobody may claim
//! to be kube-apiserver.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use hookwright_harness::kubectl::Kubectl;
use hookwright_harness::pki::Authority;
use hookwright_harness::publisher::Publisher;
use hookwright_harness::receiver::Answer;
use hookwright_harness::wait::eventually;
use http::Method;
use serde_json::{Value, json};

use crate::world::{SOON, Team, door, newest, unique};

const BASE: &str = "/apis/delivery.hookwright.dev/v1alpha1";

/// The operations of a row of the matrix, in this order.
const OPERATIONS: [&str; 8] =
    ["list", "list all", "get", "payload", "usage", "redeliver", "expunge", "publish"];

/// What the kinds allow: nothing, looking, or everything.
const NONE: &[&str] = &[];
const LOOK: &[&str] = &["get", "list", "watch"];
const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Binds a role to a new account of the team's, in another namespace if it is given.
async fn account(team: &Team, name: &str, role: Option<&str>, namespace: &str) -> anyhow::Result<()> {
    team.kubectl.ok(&["create", "serviceaccount", name, "-n", &team.namespace]).await?;
    let Some(role) = role else { return Ok(()) };
    let (role, subject) =
        (format!("--clusterrole={role}"), format!("--serviceaccount={}:{name}", team.namespace));
    let binding = unique(name);
    team.kubectl.ok(&["create", "rolebinding", &binding, &role, &subject, "-n", namespace]).await.map(drop)
}

/// Waits until a binding is in force.
pub(crate) async fn in_force(
    kubectl: &Kubectl,
    user: &str,
    namespace: &str,
    verb: &str,
    resource: &str,
) -> anyhow::Result<()> {
    let (user, resource) = (format!("--as={user}"), format!("{resource}.delivery.hookwright.dev"));
    eventually(SOON, "the role to be in force", async || {
        let asked = kubectl.run(&["auth", "can-i", verb, &resource, "-n", namespace, &user]).await;
        let answer = asked.map_err(|error| error.to_string())?;
        if answer.stdout.trim() == "yes" {
            Ok(())
        } else {
            Err(format!("{}{}", answer.stdout, answer.stderr))
        }
    })
    .await
}

/// What each operation answers through a door.
async fn operations(door_client: &Publisher, namespace: &str, delivery: &str) -> anyhow::Result<Vec<u16>> {
    let in_namespace = format!("{BASE}/namespaces/{namespace}/deliveries");
    let mut codes = Vec::new();
    for path in [
        in_namespace.clone(),
        format!("{BASE}/deliveries"),
        format!("{in_namespace}/{delivery}"),
        format!("{in_namespace}/{delivery}/payload"),
        format!("{BASE}/namespaces/{namespace}/usages/current"),
    ] {
        codes.push(door_client.send(Method::GET, &path, &[], "").await?.status);
    }
    // Dry, since each of the others is to find the line as it is; the rights are the same.
    for change in ["redeliver", "expunge"] {
        let path = format!("{in_namespace}/{delivery}/{change}?dryRun=All");
        codes.push(door_client.send(Method::POST, &path, &[], "").await?.status);
    }
    let event = json!({"specversion": "1.0", "id": unique("e"), "source": "/a", "type": "a"}).to_string();
    let headers = [("content-type", "application/cloudevents+json")];
    codes.push(door_client.send(Method::POST, &door(namespace), &headers, event).await?.status);
    Ok(codes)
}

/// The verbs that an account has in a namespace for each of the kinds that people declare, as `kubectl auth can-i` says.
async fn verbs(kubectl: &Kubectl, user: &str, namespace: &str) -> anyhow::Result<[BTreeSet<String>; 3]> {
    let user = format!("--as={user}");
    let text = kubectl.ok(&["auth", "can-i", "--list", "-n", namespace, &user]).await?;
    Ok(["webhooks", "webhooktests", "webhookreplays"].map(|kind| {
        let rows =
            text.lines().filter(|row| row.split(' ').next() == Some(&format!("{kind}.hookwright.dev")));
        let verbs = rows.filter_map(|row| row.rsplit_once('[')).map(|(_, verbs)| verbs.trim_end_matches(']'));
        verbs.flat_map(str::split_whitespace).map(ToOwned::to_owned).collect()
    }))
}

#[tokio::test]
async fn each_role_may_do_the_same_through_both_doors() -> anyhow::Result<()> {
    matrix(&Team::new("roles").await?, &Team::new("others").await?).await
}

/// Asserts each cell: who may do what through which door.
pub(crate) async fn matrix(team: &Team, other: &Team) -> anyhow::Result<()> {
    team.webhook("orders", json!({})).await?;
    team.publish("a", &json!({})).await?;
    let success = |webhook: &Value| newest(webhook)["state"] == "Success";
    let webhook = team.await_webhook("orders", "Success", success).await?;
    let delivery = newest(&webhook)["id"].as_str().unwrap_or_default().to_owned();
    team.through_kube_apiserver().await?;

    let (here, there) = (&*team.namespace, &*other.namespace);
    let see = Some(("list", "deliveries"));
    let publish = Some(("create", "cloudevents"));
    for (name, role, namespace, right, expected, kinds) in [
        ("nobody", None, here, None, [403; 8], NONE),
        ("viewer", Some("hookwright-viewer"), here, see, [200, 403, 200, 403, 200, 403, 403, 403], LOOK),
        ("view", Some("view"), here, see, [200, 403, 200, 403, 200, 403, 403, 403], LOOK),
        ("edit", Some("edit"), here, see, [200, 403, 200, 403, 200, 403, 403, 403], LOOK),
        (
            "publisher",
            Some("hookwright-publisher"),
            here,
            publish,
            [403, 403, 403, 403, 403, 403, 403, 202],
            NONE,
        ),
        ("admin", Some("hookwright-admin"), here, see, [200, 403, 200, 200, 200, 200, 200, 202], ALL),
        ("owner", Some("admin"), here, see, [200, 403, 200, 200, 200, 200, 200, 202], ALL),
        ("elsewhere", Some("hookwright-admin"), there, see, [403; 8], NONE),
    ] {
        account(team, name, role, namespace).await?;
        let user = format!("system:serviceaccount:{here}:{name}");
        if let Some((verb, resource)) = right {
            in_force(&team.kubectl, &user, namespace, verb, resource).await?;
        }
        for (what, client) in team.both_doors(name).await? {
            let codes = operations(&client, here, &delivery).await?;
            assert_eq!(codes, expected, "{name} {what}: {OPERATIONS:?}");
        }
        for verbs in verbs(&team.kubectl, &user, here).await? {
            assert_eq!(verbs, kinds.iter().map(ToString::to_string).collect(), "{name}");
        }
    }
    Ok(())
}

/// Asks the door at this address straight, with a client certificate.
pub(crate) async fn with_certificate(
    team: &Team,
    address: SocketAddr,
    identity: Option<&str>,
    user: &str,
    groups: &str,
) -> anyhow::Result<(u16, Value)> {
    let operator = team.world.operator.lock().await;
    let (name, ca) = (operator.server_name(), operator.ca_pem().await?);
    drop(operator);
    let mut client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(ca.as_bytes())?)
        .resolve(&name, address);
    if let Some(identity) = identity {
        client = client.identity(reqwest::Identity::from_pem(identity.as_bytes())?);
    }
    let url = format!("https://{name}:{}{BASE}/namespaces/{}/deliveries", address.port(), team.namespace);
    let request = client.build()?.get(url).header("x-remote-user", user).header("x-remote-group", groups);
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), serde_json::from_slice(&answer.bytes().await?)?))
}

#[tokio::test]
async fn nobody_but_the_front_proxy_may_say_for_whom_it_asks() -> anyhow::Result<()> {
    let team = Team::new("forged").await?;
    let address = team.world.operator.lock().await.address();
    team.receiver.answer("/orders", Answer::status(200));
    let foreign = Authority::new("front-proxy")?.client("front-proxy-client", None)?;
    let foreign = format!("{}{}", foreign.certificate, foreign.key);
    for (what, identity) in [("without a certificate", None), ("of another CA", Some(&*foreign))] {
        let (code, status) = with_certificate(&team, address, identity, "admin", "system:masters").await?;
        assert_eq!((code, &status["reason"]), (401, &json!("Unauthorized")), "{what}: {status}");
    }
    let file = |name: &str| std::fs::read_to_string(team.world.plane.folder().join(name));
    let front_proxy = format!("{}{}", file("front-proxy.crt")?, file("front-proxy.key")?);
    let (code, list) =
        with_certificate(&team, address, Some(&front_proxy), "somebody", "system:masters").await?;
    assert_eq!((code, &list["kind"]), (200, &json!("DeliveryList")), "{list}");
    let (code, status) = with_certificate(&team, address, Some(&front_proxy), "somebody", "nobodies").await?;
    assert_eq!(code, 403, "the certificate alone gives no right: {status}");
    Ok(())
}

/// That a user in so many groups that their names fill more than any usual header is answered through kube-apiserver.
pub(crate) async fn many_groups(team: &Team) -> anyhow::Result<()> {
    team.through_kube_apiserver().await?;
    let mut arguments = vec!["get".to_owned(), "dlv".to_owned(), "-n".to_owned(), team.namespace.clone()];
    arguments.push("--as=alice".to_owned());
    for number in 0..3_000 {
        arguments.push(format!("--as-group=oidc:a-group-with-quite-a-long-name-{number:04}"));
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let refused = team.kubectl.run(&arguments).await?;
    assert!(refused.stderr.contains("cannot list resource"), "{}{}", refused.stdout, refused.stderr);
    let arguments = [&*arguments, &["--as-group=system:masters"]].concat();
    let answer = team.kubectl.run(&arguments).await?;
    assert!(answer.stderr.contains("No resources found"), "{}{}", answer.stdout, answer.stderr);
    Ok(())
}

#[tokio::test]
async fn a_user_in_3000_groups_is_answered_through_kube_apiserver() -> anyhow::Result<()> {
    many_groups(&Team::new("groups").await?).await
}
