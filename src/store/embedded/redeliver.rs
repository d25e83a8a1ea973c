//! Staging redeliveries.

use std::sync::Arc;

use super::group::Group;
use super::lane::Loaded;
use crate::model::time::UnixMillis;
use crate::store::Result;
use crate::store::records::{Asked, Delivery, PutByReplay, Redelivered, Redelivery, State, Waiting};

impl Group<'_> {
    /// Stages redeliveries; see [`crate::store::Store::redeliver`].
    pub(super) fn redeliver(&mut self, redeliveries: Vec<Redelivery>) -> Result<Vec<Redelivered>> {
        redeliveries.into_iter().map(|redelivery| self.redeliver_one(redelivery)).collect()
    }

    fn redeliver_one(&mut self, asked: Redelivery) -> Result<Redelivered> {
        let Redelivery { name, namespace, by, at } = asked;
        let Some(before) = self.line(name)?.filter(|line| line.webhook.namespace == namespace) else {
            return Ok(Redelivered::NotFound);
        };
        if before.expunged.is_some() {
            return Ok(Redelivered::Expunged);
        }
        if before.test {
            return Ok(Redelivered::Test);
        }
        if !before.state.is_final() {
            return Ok(Redelivered::NotFinished);
        }
        self.saw(at);
        let queued = self.wait_again(&before, Asked { by, at }, at, None)?;
        Ok(if queued { Redelivered::Queued } else { Redelivered::NotFound })
    }

    /// Stages that a finished delivery waits for one attempt more. False: its event or its Webhook is gone.
    pub(super) fn wait_again(
        &mut self,
        before: &Delivery,
        asked: Asked,
        due: UnixMillis,
        replay: Option<PutByReplay>,
    ) -> Result<bool> {
        let Some(event) = self.event(before.event)? else { return Ok(false) };
        let Some(summary) = self.summary(before.webhook.uid) else { return Ok(false) };
        summary.redelivers(event.data.len() as u64);
        let had_arrived = before.has_arrived();
        let after = Delivery {
            state: State::Pending,
            due: Some(due),
            reason: None,
            ended_at: None,
            redelivery: Some(Waiting { asked, had_arrived, replay }),
            ..before.clone()
        };
        self.put(before, Arc::new(Loaded::new(after, event, 1)))?;
        Ok(true)
    }
}
