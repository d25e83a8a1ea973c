//! The sentences of every engine, and those of this one.

use std::sync::Arc;

use tempfile::TempDir;

use super::{Embedded, Options};
use crate::store::behaviour::{Engine, suite};
use crate::store::{Error, Store};

struct InDirectory(TempDir);

impl InDirectory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Engine for InDirectory {
    fn open(&self) -> Arc<dyn Store> {
        Embedded::open(Options::new(self.0.path())).unwrap()
    }
}

mod every_engine {
    use super::*;
    suite!(InDirectory::new());
}

#[test]
fn a_second_opening_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let first = Embedded::open(Options::new(dir.path())).unwrap();
    let error = Embedded::open(Options::new(dir.path())).unwrap_err();
    assert!(matches!(&error, Error::Unusable(why) if why.contains("another process")), "{error}");
    drop(first);
    Embedded::open(Options::new(dir.path())).unwrap();
}
