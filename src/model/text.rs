//! Cutting and masking of what receivers answer.

/// Values that must never be kept of an answer: every Secret value that is sent.
#[derive(Clone, Default)]
pub struct Masks {
    values: Vec<Box<[u8]>>,
}

impl std::fmt::Debug for Masks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Masks")
    }
}

impl Masks {
    /// Masks these values.
    pub fn new<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Self {
        Self { values: values.into_iter().map(|value| value.as_ref().into()).collect() }
    }
}
