//! The master key of all signing keys, which receivers know by what follows from it.

use serde_json::{Value, json};

use crate::world::{SOON, Team, World, newest};

const SECRET: &str = "hookwright-signing";

/// Starts, which is refused; what was said.
async fn refused(world: &World) -> anyhow::Result<String> {
    let mut operator = world.operator.lock().await;
    let before = operator.log().len();
    operator.spawn()?;
    let status = operator.ended(SOON).await?;
    anyhow::ensure!(status.code() == Some(1), "{status}");
    Ok(operator.log().split_off(before))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_signing_key_or_none_is_refused_until_it_is_restored_or_accepted() -> anyhow::Result<()> {
    let world = World::alone(&[]).await?;
    let team = Team::of(&world, "signing").await?;
    let admin = world.plane.kubectl();
    let namespace = world.operator.lock().await.namespace().to_owned();
    team.webhook("orders", json!({})).await?;
    team.publish("order.created", &json!({})).await?;
    let key = |webhook: &Value| webhook["status"]["publicKey"].clone();
    let before =
        team.await_webhook("orders", "Success", |webhook| newest(webhook)["state"] == "Success").await?;
    let backup = admin.get_json("secret", &namespace, SECRET).await?;
    let secret = |key: &Value| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": namespace},
            "data": {"master.key": key}})
        .to_string()
    };

    world.operator.lock().await.kill9();
    admin.delete("secret", &namespace, SECRET).await?;
    let said = refused(&world).await?;
    assert!(said.contains("hookwright-signing is missing"), "{said}");
    assert!(said.contains("Restore the Secret from a backup and restart"), "{said}");
    assert!(said.contains("--accept-new-signing-key"), "{said}");
    assert!(admin.get_json("secret", &namespace, SECRET).await.is_err(), "none is made");

    admin.apply(&secret(&json!("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="))).await?;
    let said = refused(&world).await?;
    assert!(said.contains("hookwright-signing holds another key than before"), "{said}");

    admin.apply(&secret(&backup["data"]["master.key"])).await?;
    world.operator.lock().await.start_process().await?;
    let restored = team.kubectl.get_json("hook", &team.namespace, "orders").await?;
    assert_eq!(key(&restored), key(&before));

    world.operator.lock().await.kill9();
    admin.delete("secret", &namespace, SECRET).await?;
    world.operator.lock().await.set_env("HOOKWRIGHT_ACCEPT_NEW_SIGNING_KEY", "true");
    world.operator.lock().await.start_process().await?;
    let is_new = |webhook: &Value| key(webhook).is_string() && key(webhook) != key(&before);
    team.await_webhook("orders", "another public key", is_new).await?;
    assert!(world.operator.lock().await.log().contains("a new master key is accepted"));
    // It is the one that is known now.
    world.operator.lock().await.set_env("HOOKWRIGHT_ACCEPT_NEW_SIGNING_KEY", "false");
    world.operator.lock().await.restart().await
}
