//! Cutting and masking of what receivers answer.

/// Values that must never be kept of an answer: every Secret value that is sent.
#[derive(Clone, Default)]
pub struct Masks {
    _values: Vec<Box<[u8]>>,
}

impl std::fmt::Debug for Masks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Masks")
    }
}
