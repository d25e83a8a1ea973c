//! Stops replays whose object is gone. No finalizer: the store says which replays there are, and the apiserver whether
//! their objects still are, also after a restart.

use std::time::Duration;

use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Context;
use crate::api::WebhookReplay;
use crate::cli::chain;
use crate::controller::Error;
use crate::routes::watch::why;
use crate::store::Replay;

/// Between two looks, which cost no call while all objects are there.
const LOOK: Duration = Duration::from_millis(200);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(2);
/// No answer within this is a failure.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Looks from time to time, until it is told to stop.
pub(super) async fn run(context: &Context, stop: CancellationToken) {
    let mut wait = LOOK;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = LOOK;
        for replay in context.deps.store.replays() {
            if let Err(error) = look(context, &replay).await {
                let (namespace, name) = (&*replay.selection.namespace, &*replay.name);
                warn!(
                    namespace,
                    replay = name,
                    error = chain(&error),
                    "cannot tell whether a replay is deleted"
                );
                wait = AGAIN;
            }
        }
    }
}

async fn look(context: &Context, replay: &Replay) -> Result<(), Error> {
    // Of a namespace that cannot be read, nobody knows what is missing: what is to be done there waits as it is.
    let namespace = &*replay.selection.namespace;
    let is_ours = context.deps.scope.serves(namespace) && context.deps.table.serves(namespace);
    if replay.finished_at.is_some() || !is_ours || (!replay.cancelled && exists(context, replay).await?) {
        return Ok(());
    }
    context.forget(replay.id);
    context.memory.forget(&replay.id.to_string());
    context.deps.store.cancel_replay(replay.id, context.deps.clock.now()).await?;
    // From now on nothing waits: only attempts that are under way come to their end.
    if !replay.cancelled {
        let (namespace, name) = (&*replay.selection.namespace, &*replay.name);
        info!(namespace, replay = name, "stopped, since it was deleted");
    }
    Ok(())
}

/// Whether the very object is there, and is not being deleted. One that the watch does not show is asked for: it may
/// not have been listed yet.
async fn exists(context: &Context, replay: &Replay) -> Result<bool, Error> {
    let (namespace, name) = (&*replay.selection.namespace, &*replay.name);
    let is_it = |object: &WebhookReplay| {
        let uid = object.uid().and_then(|uid| uid.parse().ok());
        uid == Some(replay.id) && object.metadata.deletion_timestamp.is_none()
    };
    if context.replays.get(&ObjectRef::new(name).within(namespace)).is_some_and(|object| is_it(&object)) {
        return Ok(true);
    }
    let api: Api<WebhookReplay> = Api::namespaced(context.deps.client.clone(), namespace);
    let failed = |why| Error::Api { what: "read a WebhookReplay", why };
    match tokio::time::timeout(TIMEOUT, api.get_opt(name)).await {
        Ok(Ok(object)) => Ok(object.is_some_and(|object| is_it(&object))),
        Ok(Err(error)) => Err(failed(why(&error))),
        Err(_) => Err(failed("no answer".to_owned())),
    }
}
