//! The log lines of one thread.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default};
use tracing::{Dispatch, Level};

/// Keeps the lines that this thread writes at the usual level, while it lives.
pub(crate) struct Lines {
    written: Written,
    _guard: DefaultGuard,
    /// While there is one subscriber only, a line that another thread reaches first is off for all of them.
    _second: Dispatch,
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap()
    }
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    pub(crate) fn capture() -> Self {
        let second = Dispatch::new(NoSubscriber::new());
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self { written, _guard: set_default(subscriber), _second: second }
    }

    /// All of them so far.
    pub(crate) fn all(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.written.bytes()).lines().map(str::to_owned).collect()
    }
}
