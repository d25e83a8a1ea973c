//! An error with what caused it, in one line.

/// The error's text and those of its causes, one after the other.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write")]
    struct Outer(#[from] std::io::Error);

    #[test]
    fn every_cause_is_said_after_what_it_caused() {
        let full = std::io::Error::other("the disk is full");
        assert_eq!(chain(&full), "the disk is full");
        assert_eq!(chain(&Outer(full)), "cannot write: the disk is full");
    }
}
