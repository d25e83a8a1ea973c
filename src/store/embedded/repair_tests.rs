//! Damage is repaired as far as it goes, and what is lost is said.

use std::fs;

use super::damage_tests::{Killed, bytes_of, content, files_of, publish};
use super::purge::Cursor;
use super::repair::{prepare, repair};
use super::tests::{NOW, event, options, outcome};
use super::{Command, Embedded, journal};
use crate::model::ids::{NamespaceUid, WebhookRef};
use crate::store::behaviour::webhook;
use crate::store::records::Summary;
use crate::store::{ClaimRequest, Error, Next, Store as _};

/// Repairs, and checks what must hold of any repair; its report, and how many deliveries have gone.
async fn repaired(killed: &Killed) -> (String, usize) {
    let before = bytes_of(&killed.store());
    let repaired = repair(killed.dir.path(), NOW).unwrap().unwrap();
    let kept = repaired.kept.join("store");
    let kept = bytes_of(&kept)
        .into_iter()
        .map(|(path, bytes)| (path.strip_prefix(&kept).unwrap().to_owned(), bytes));
    let before = before
        .into_iter()
        .map(|(path, bytes)| (path.strip_prefix(killed.store()).unwrap().to_owned(), bytes));
    assert!(kept.collect::<Vec<_>>() == before.collect::<Vec<_>>(), "the damaged store is kept as it was");
    assert_eq!(fs::read_to_string(repaired.kept.join("REPORT")).unwrap(), repaired.report);
    assert!(!killed.dir.path().join("repair.work").exists());
    assert!(repair(killed.dir.path(), NOW).unwrap().is_none(), "nothing is damaged any more");

    let store = Embedded::open(options(&killed.dir)).unwrap();
    let after = content(&store).await;
    for (line, event) in &after.lines {
        let (was, event_was) = killed.content.lines.iter().find(|(was, _)| was.name == line.name).unwrap();
        if line.expunged.is_some() {
            assert!(line.state.is_final() && event.is_none());
        } else {
            assert!(event == event_was && was.event == line.event);
        }
    }
    let waiting = |summary: &crate::store::Summary| summary.pending;
    for summary in after.summaries.iter().filter(|summary| !summary.erasing) {
        let claim = ClaimRequest {
            webhook: summary.webhook.uid,
            now: NOW + std::time::Duration::from_hours(1),
            limit: 100,
            order: crate::store::Order::default(),
            lease: std::time::Duration::from_secs(9),
        };
        assert_eq!(store.claim(claim).await.unwrap().deliveries.len() as u64, waiting(summary));
    }
    assert_eq!(after.usage.deliveries, after.lines.len() as u64);
    assert_eq!(
        after.usage.pending_bytes,
        after
            .summaries
            .iter()
            .filter(|summary| !summary.erasing && &*summary.webhook.namespace == "team-a")
            .map(|summary| summary.pending_bytes)
            .sum::<u64>()
    );
    store.close().await.unwrap();
    (repaired.report, killed.content.lines.len() - after.lines.len())
}

#[tokio::test]
async fn of_a_damaged_journal_all_but_the_damaged_commit_is_saved() {
    let killed = Killed::new().await;
    let path = killed.store().join("1.jnl");
    let whole = journal::read(&path, true).unwrap();
    let mut commits = Vec::new();
    journal::walk(&whole, |commit| {
        commits.push(commit.clone());
        Ok(())
    })
    .unwrap();
    // An append is damaged, if the one behind it is an outcome; else its delivery is there all the same.
    let mut bytes = fs::read(&path).unwrap();
    bytes[commits[1].start] ^= 4;
    fs::write(&path, bytes).unwrap();
    let (report, gone) = repaired(&killed).await;
    assert!(gone <= 1, "{report}");
    let (from, to) = (commits[1].start, commits[1].end);
    let (before, behind) = (commits[0].seqno, commits[2].seqno);
    let line =
        format!("1.jnl, bytes {from} to {to}: what was committed between number {before} and {behind}");
    assert!(report.contains(&line), "{report}");
    assert!(report.contains("delete") && report.contains("damaged-"), "{report}");
}

#[tokio::test]
async fn what_can_be_read_of_a_damaged_table_or_file_of_bodies_is_saved() {
    for (folder, byte) in [("keyspaces/2/blobs", 60), ("keyspaces/3/tables", 60), ("keyspaces/4/tables", 60)]
    {
        let killed = Killed::new().await;
        let path = files_of(&killed.store().join(folder)).remove(0);
        let mut bytes = fs::read(&path).unwrap();
        bytes[byte] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (report, gone) = repaired(&killed).await;
        assert!(report.contains(folder), "{report}");
        match folder {
            "keyspaces/2/blobs" => {
                assert_eq!(gone, 0);
                assert!(report.contains("1 payloads"), "{report}");
                assert!(report.contains("accepted from 2027-01-15T08:00:00.000Z to"), "{report}");
            }
            // All of them are in one block.
            "keyspaces/3/tables" => {
                assert!(report.contains(&format!("{gone} deliveries of which nothing is left")), "{report}");
                assert!(gone > 0 && report.contains("Saved: "), "{report}");
            }
            // It is made anew.
            _ => assert_eq!(gone, 0, "{report}"),
        }
    }
}

/// Changes a byte of the first block of a table of the log.
#[tokio::test]
async fn a_repair_that_was_interrupted_is_made_again() {
    let killed = Killed::new().await;
    break_table(&killed, 0);
    let before = bytes_of(&killed.store());
    let earlier = NOW - std::time::Duration::from_secs(1);
    let unfinished = prepare(killed.dir.path(), earlier).unwrap().unwrap();
    assert!(
        bytes_of(&killed.store()) == before,
        "the damaged store is in its place until the other is whole"
    );
    assert_eq!(fs::read_to_string(unfinished.kept.join("REPORT")).unwrap(), unfinished.report);
    repaired(&killed).await;
}

fn break_table(killed: &Killed, number: usize) {
    let path = files_of(&killed.store().join("keyspaces/3/tables")).remove(number);
    let mut bytes = fs::read(&path).unwrap();
    bytes[60] ^= 1;
    fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn what_lies_between_two_damaged_places_is_saved() {
    let killed = Killed::filled(async |store, minter| {
        for table in 0..3 {
            for number in 0..4 {
                publish(store, minter, 4 * table + number).await;
            }
            store.shared.disk().unwrap().flush_and_wait().unwrap();
        }
    });
    let killed = killed.await;
    break_table(&killed, 0);
    break_table(&killed, 2);
    let (report, gone) = repaired(&killed).await;
    assert_eq!(gone, 8, "{report}");
    assert!(report.contains("Saved: 4 deliveries"), "{report}");
}

#[tokio::test]
async fn who_took_over_who_is_gone_and_who_is_erased_stay_so() {
    let named = |number| WebhookRef { name: "orders".into(), ..webhook("team-a", number) };
    let (former, heir, gone) = (named(7), named(8), webhook("team-a", 9));
    let erased = webhook("team-b", 10);
    let killed = Killed::filled(async |store, minter| {
        for number in 0..4 {
            publish(store, minter, number).await;
        }
        let adopt = async |hook: &WebhookRef| {
            let namespace_uid = Some(NamespaceUid::from_bytes([1; 16]));
            store.adopt(Summary { namespace_uid, ..Summary::new(hook.clone()) }).await.unwrap();
        };
        for hook in [&former, &gone] {
            adopt(hook).await;
            for next in [None, Some(Next::Success), Some(Next::Retry(NOW))] {
                let one = event(minter, &[hook]);
                let name = one.deliveries[0].name;
                store.append(vec![one]).await.unwrap();
                if let Some(next) = next {
                    store.record(vec![outcome(hook, name, next)]).await.unwrap();
                }
            }
        }
        store.set_gone(former.uid, true);
        adopt(&heir).await;
        let events = (0..300)
            .map(|_| crate::store::NewEvent { namespace: "team-b".into(), ..event(minter, &[&erased]) });
        store.append(events.collect()).await.unwrap();
        store.ask(|reply| Command::Purge(erased.uid, Cursor::default(), reply)).await.unwrap();
        store.shared.disk().unwrap().flush_and_wait().unwrap();
    });
    let killed = killed.await;
    // It is made anew from all that there is.
    let index = files_of(&killed.store().join("keyspaces/4/tables")).remove(0);
    let mut bytes = fs::read(&index).unwrap();
    bytes[60] ^= 1;
    fs::write(index, bytes).unwrap();
    let (report, lost) = repaired(&killed).await;
    assert_eq!(lost, 0, "{report}");

    let store = Embedded::open(options(&killed.dir)).unwrap();
    for was in &killed.content.summaries {
        let now = store.summary(was.webhook.uid);
        let now = now.unwrap_or_else(|| panic!("{} is not known any more", was.webhook.name));
        assert_eq!(
            (&now.webhook, now.namespace_uid, now.erasing),
            (&was.webhook, was.namespace_uid, was.erasing)
        );
        if !was.erasing {
            assert_eq!((now.pending, now.success_count), (was.pending, was.success_count));
        }
    }
    assert_eq!(store.summary(heir.uid).unwrap().pending, 2);
    assert_eq!(store.known().len(), killed.content.summaries.len(), "nobody has come");
    assert_eq!(store.usage("team-a"), killed.content.usage);
    store.purge(erased.uid).await.unwrap();
    assert_eq!(store.usage("team-b").deliveries, 0);
}

#[tokio::test]
async fn a_number_that_was_changed_and_the_name_of_a_manifest_lose_nothing() {
    let killed = Killed::new().await;
    let path = killed.store().join("1.jnl");
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    let current = killed.store().join("keyspaces/3/current");
    let mut bytes = fs::read(&current).unwrap();
    bytes[0] ^= 0x40;
    fs::write(&current, bytes).unwrap();
    assert_eq!(repaired(&killed).await.1, 0);
}

#[tokio::test]
async fn what_cannot_be_repaired_is_left_as_it_is() {
    let killed = Killed::new().await;
    let path = files_of(&killed.store().join("keyspaces/3/tables")).remove(0);
    fs::remove_file(&path).unwrap();
    let before = bytes_of(killed.dir.path());
    let error = repair(killed.dir.path(), NOW).unwrap_err().to_string();
    assert!(error.contains("cannot be repaired") && error.contains("restore a backup"), "{error}");
    assert!(before == bytes_of(killed.dir.path()), "something was changed");
    let open = Embedded::open(options(&Killed::new().await.dir)).unwrap();
    drop(open);
    let empty = hookwright_harness::scratch::scratch();
    assert!(matches!(repair(empty.path(), NOW), Err(Error::Unusable(_))));
}
