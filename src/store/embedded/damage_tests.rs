//! Files that are not what was written: all is there, or the store refuses and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookwright_harness::scratch::scratch;
use tempfile::TempDir;

use super::tests::{NOW, copy_all, event, options, outcome};
use super::{Embedded, Options, check, journal};
use crate::model::ids::{EventUid, Minter};
use crate::store::behaviour::webhook;
use crate::store::records::{Delivery, Event};
use crate::store::{Error, NewEvent, Next, Query, Store as _};

/// A directory as a killed process leaves it, with files of every kind: journals, of which one is not the newest, tables
/// and files of bodies.
pub(super) struct Killed {
    pub(super) dir: TempDir,
    pub(super) content: Content,
}

#[derive(Debug, PartialEq)]
pub(super) struct Content {
    pub(super) lines: Vec<(Delivery, Option<Arc<Event>>)>,
    pub(super) summaries: Vec<Arc<crate::store::Summary>>,
    pub(super) usage: crate::store::Usage,
}

pub(super) async fn content(store: &Embedded) -> Content {
    let mut lines = Vec::new();
    for line in store.query(Query { limit: 1000, ..Query::default() }).await.unwrap().deliveries {
        let event = store.event(line.event).await.unwrap();
        lines.push((line, event));
    }
    let mut known = store.known();
    known.sort_unstable_by_key(|hook| hook.uid);
    let summaries = known.iter().map(|hook| store.summary(hook.uid).unwrap()).collect();
    Content { lines, summaries, usage: store.usage("team-a") }
}

/// What does not compress.
pub(super) fn noise(uid: EventUid, length: usize) -> Bytes {
    let words = (0..length as u64 / 8)
        .flat_map(|word| xxhash_rust::xxh3::xxh3_64_with_seed(uid.as_bytes(), word).to_be_bytes());
    words.collect::<Vec<_>>().into()
}

pub(super) async fn publish(store: &Embedded, minter: &Minter, number: u8) {
    let hook = webhook("team-a", number % 3);
    let one = event(minter, &[&hook]);
    let one = NewEvent { data: noise(one.uid, 64 + 300 * usize::from(number % 7)), ..one };
    let name = one.deliveries[0].name;
    store.append(vec![one]).await.unwrap();
    if number.is_multiple_of(2) {
        let next = if number.is_multiple_of(4) { Next::Success } else { Next::Retry(NOW) };
        store.record(vec![outcome(&hook, name, next)]).await.unwrap();
    }
}

impl Killed {
    pub(super) async fn new() -> Self {
        let killed = Self::filled(async |store, minter| {
            for number in 0..12 {
                publish(store, minter, number).await;
            }
            store.shared.disk().unwrap().flush_and_wait().unwrap();
            for number in 0..8 {
                publish(store, minter, number).await;
            }
        });
        let killed = killed.await;
        killed.split_journal();
        killed
    }

    /// With what somebody fills it with.
    pub(super) async fn filled(fill: impl AsyncFnOnce(&Embedded, &Minter)) -> Self {
        let (first, dir) = (scratch(), scratch());
        let store = Embedded::open(Options { memtable_bytes: 1 << 20, ..options(&first) }).unwrap();
        fill(&store, &Minter::default()).await;
        let content = content(&store).await;
        copy_all(first.path(), dir.path());
        Self { dir, content }
    }

    pub(super) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Another journal begins in the middle of what is in no table.
    fn split_journal(&self) {
        let path = self.store().join("0.jnl");
        let whole = journal::read(&path, true).unwrap();
        let mut ends = Vec::new();
        journal::walk(&whole, |commit| {
            ends.push(commit.end);
            Ok(())
        })
        .unwrap();
        let (first, second) = whole.written.split_at(ends[ends.len() - 6]);
        fs::write(path, [first, &[0; 3000]].concat()).unwrap();
        fs::write(self.store().join("1.jnl"), [second, &[0; 5000]].concat()).unwrap();
    }

    fn is_current(manifest: &Path) -> bool {
        let current = fs::read(manifest.with_file_name("current")).unwrap();
        let (number, _) = super::manifest::current(&current).unwrap();
        manifest.ends_with(format!("v{number}"))
    }

    fn copy(&self) -> TempDir {
        let copy = scratch();
        copy_all(self.dir.path(), copy.path());
        copy
    }

    /// What must hold of the directory as it is now.
    async fn judge(&self, what: &str) -> Verdict {
        let until = None;
        let damage = check::look(&self.store(), None, until).unwrap().damage;
        if damage.is_empty() {
            let copy = self.copy();
            let store = Embedded::open(options(&copy)).unwrap();
            assert!(content(&store).await == self.content, "{what}: something is not there");
            store.close().await.unwrap();
            return Verdict::AllThere;
        }
        let before = bytes_of(self.dir.path());
        match Embedded::open(options(&self.dir)) {
            Err(Error::Damaged(said)) => {
                assert_eq!(said.files, damage);
                let sentence = said.to_string();
                assert!(sentence.contains("hookwright repair --data-dir"), "{sentence}");
                assert!(sentence.contains(&damage[0].path.display().to_string()), "{sentence}");
            }
            other => panic!("{what}: {other:?}"),
        }
        assert!(before == bytes_of(self.dir.path()), "{what}: something was changed");
        Verdict::Refused(damage)
    }
}

#[derive(Debug)]
enum Verdict {
    AllThere,
    Refused(Vec<crate::store::Damage>),
}

pub(super) fn files_of(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_of(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

pub(super) fn bytes_of(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = files_of(folder).into_iter().filter(|path| !path.ends_with("lock"));
    files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// All bytes of a few commits, of manifests and their like; of others the beginning, the end, and some between.
fn positions(path: &Path, bytes: &[u8]) -> Vec<usize> {
    let (length, name) = (bytes.len(), path.file_name().unwrap().to_string_lossy());
    if name.ends_with("jnl") {
        let written = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let all = (0..length).filter(|at| *at < 330 || *at + 120 > written && *at < written || at % 211 == 0);
        return all.collect();
    }
    let is_old = name.starts_with('v') && name != "version" && !Killed::is_current(path);
    let (step, ends) =
        if is_old { (length, 1) } else { (1 + length / 24, if length < 400 { 20 } else { 70 }) };
    (0..length).filter(|at| *at < ends || at + ends > length || at % step == 0).collect()
}

#[tokio::test]
async fn a_changed_byte_in_any_file_loses_nothing_or_is_refused() {
    let killed = Killed::new().await;
    assert!(matches!(killed.judge("as it is").await, Verdict::AllThere));
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for path in files_of(&killed.store()).into_iter().filter(|path| !path.ends_with("lock")) {
        let whole = fs::read(&path).unwrap();
        let name = path.strip_prefix(killed.store()).unwrap().to_string_lossy().into_owned();
        let kind: String = name.chars().filter(|char| !char.is_ascii_digit()).collect();
        let written = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let is_needed = kind != "keyspaces//v" || Killed::is_current(&path);
        for at in positions(&path, &whole) {
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&path, &changed).unwrap();
            let (there, refused) = kinds.entry(kind.clone()).or_default();
            match killed.judge(&format!("byte {at} of {name}")).await {
                Verdict::AllThere => *there += usize::from(is_needed && at < written),
                Verdict::Refused(damage) => {
                    *refused += 1;
                    let is_named = damage[0].path == path || kind == "keyspaces//current";
                    assert!(is_named, "byte {at} of {name}: {damage:?}");
                    // The number of a commit is judged by the one that follows it, too.
                    let is_number = damage[0].what.contains("follow");
                    assert!(
                        is_number || damage[0].at.is_none_or(|from| from <= at as u64),
                        "{damage:?}, {at}"
                    );
                }
            }
        }
        fs::write(&path, &whole).unwrap();
    }
    eprintln!("{kinds:?}");
    for kind in ["version", "keyspaces//current", "keyspaces//v", "keyspaces//tables/", "keyspaces//blobs/"] {
        let (there, refused) = kinds[kind];
        assert!(there == 0 && refused > 3, "{kind}: {there} there, {refused} refused");
    }
    let (there, refused) = kinds[".jnl"];
    // The number of the very last commit may be another one that is higher than those before.
    assert!(there <= 8 && refused > 600, "journals: {there} there, {refused} refused");
}

#[tokio::test]
async fn a_file_that_is_missing_or_cut_is_refused() {
    let killed = Killed::new().await;
    for path in files_of(&killed.store()) {
        let name = path.strip_prefix(killed.store()).unwrap().to_string_lossy().into_owned();
        let whole = fs::read(&path).unwrap();
        let is_old = path.file_name().unwrap().to_string_lossy().starts_with('v') && name != "version";
        if name == "lock" || name == "1.jnl" || is_old && !Killed::is_current(&path) {
            continue;
        }
        fs::remove_file(&path).unwrap();
        // The oldest journal may have been let go; then something would have been written to tables.
        if name != "0.jnl" {
            assert!(matches!(killed.judge(&format!("without {name}")).await, Verdict::Refused(_)));
        }
        for length in [0, 1, whole.len() / 2, whole.len().saturating_sub(1)] {
            let cut = &whole[..length];
            fs::write(&path, cut).unwrap();
            let is_zeros = name.ends_with("jnl") && whole[length..].iter().all(|byte| *byte == 0);
            match killed.judge(&format!("{length} bytes of {name}")).await {
                Verdict::AllThere => assert!(is_zeros, "{length} bytes of {name}"),
                Verdict::Refused(_) => assert!(!is_zeros, "{length} bytes of {name}"),
            }
        }
        fs::write(&path, &whole).unwrap();
    }
    let folder = killed.store().join("keyspaces/3");
    let aside = killed.dir.path().join("aside");
    fs::rename(&folder, &aside).unwrap();
    assert!(matches!(killed.judge("without a keyspace").await, Verdict::Refused(_)));
    fs::rename(&aside, &folder).unwrap();
    assert!(matches!(killed.judge("as it was").await, Verdict::AllThere));
}

#[tokio::test]
async fn damage_is_named_with_file_and_position() {
    let killed = Killed::new().await;
    let folder = killed.store().join("keyspaces/2/blobs");
    let path = files_of(&folder).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let second = bytes.windows(4).enumerate().skip(1).find(|(_, four)| *four == b"BLOB").unwrap().0;
    bytes[second + 100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let Verdict::Refused(damage) = killed.judge("the second body").await else { panic!() };
    let sentence = damage[0].to_string();
    assert_eq!(sentence, format!("{}, byte {second}: its checksum is wrong", path.display()));
}

#[tokio::test]
async fn what_is_found_in_the_background_stops_the_store_and_is_refused_then() {
    let killed = Killed::new().await;
    let path = files_of(&killed.store().join("keyspaces/3/tables")).remove(0);
    let found = check::look(&killed.store(), None, Some(std::time::Instant::now())).unwrap();
    assert!(found.unread.iter().any(|file| file.path == path), "no time to read tables");
    assert!(found.damage.is_empty());
    let store = Embedded::open(options(&killed.dir)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let suspects = super::sound::Suspects::of(killed.dir.path(), found.unread);
    suspects.look_at_in_the_background(&store.shared);
    let stopped = async {
        while !store.shared.is_poisoned() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), stopped).await.unwrap();
    drop(store);
    let suspect = fs::read_to_string(killed.dir.path().join("suspect")).unwrap();
    assert_eq!(killed.store().join(&suspect), path);
    let found = check::look(&killed.store(), Some(&path), Some(std::time::Instant::now()));
    assert_eq!(found.unwrap().damage[0].path, path, "it is looked at first");
    let error = Embedded::open(options(&killed.dir)).unwrap_err().to_string();
    assert!(error.contains(&format!("{suspect}, byte 0: its checksum is wrong")), "{error}");
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = Embedded::open(options(&killed.dir)).unwrap();
    assert!(!killed.dir.path().join("suspect").exists());
    store.close().await.unwrap();
}
