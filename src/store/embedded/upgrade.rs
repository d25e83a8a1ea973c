//! Bringing an older data directory up to the format of this program.
//!
//! Each step reads what it needs once, and can be made again: the version is written last, so that an upgrade that
//! was interrupted begins anew.

use fjall::PersistMode;

use super::disk::{Disk, engine};
use super::format;
use super::keys::{self, meta};
use super::usage::{self, Owner};
use crate::model::causes::chain;
use crate::store::Result;
use crate::store::records::Delivery;

/// Log lines of one commit.
const STEP: usize = 4096;

/// From an older format to this one. Format 4 reads what format 3 wrote as it is; a program of format 3 would take
/// namespaces of one name for one, so it must not open what this one has written.
pub(super) fn upgrade(disk: &Disk, from: u32) -> Result<()> {
    tracing::info!(from, to = format::VERSION, "bringing the data directory to a newer format");
    if from < 2 {
        count(disk)?;
    }
    if from < 3 {
        index_terms(disk)?;
    }
    disk.meta
        .insert(meta::FORMAT, format::VERSION.to_be_bytes())
        .map_err(engine("write the format version"))?;
    disk.db.persist(PersistMode::SyncAll).map_err(engine("sync"))
}

/// What namespaces use, which format 1 did not count.
fn count(disk: &Disk) -> Result<()> {
    let mut batch = disk.db.batch();
    for (namespace, usage) in usage::recount(disk)? {
        let owner = Owner { namespace, uid: None };
        batch.insert(&disk.meta, meta::usage(&owner), format::encode(&usage)?);
    }
    batch.commit().map_err(engine("write what namespaces use"))
}

/// By what deliveries are found, which format 2 did not know.
fn index_terms(disk: &Disk) -> Result<()> {
    let (mut batch, mut staged) = (disk.db.batch(), 0);
    for entry in disk.log.iter() {
        let (key, value) = entry.into_inner().map_err(engine("read from the store"))?;
        let Some(name) = keys::name_in_log(&key) else { continue };
        match format::decode::<Delivery>("a delivery", &value) {
            Ok(line) => {
                keys::terms(&line).for_each(|term| batch.insert(&disk.terms, term, b""));
                staged += 1;
            }
            Err(error) => {
                tracing::error!(delivery = %name, error = %chain(&error), "only found by Webhook and state");
            }
        }
        if staged >= STEP {
            let full = std::mem::replace(&mut batch, disk.db.batch());
            full.commit().map_err(engine("write what deliveries are found by"))?;
            staged = 0;
        }
    }
    batch.commit().map_err(engine("write what deliveries are found by"))
}
