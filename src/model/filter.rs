//! Which event types a Webhook wants.

use std::collections::HashSet;

use super::legible::is_hidden;

/// Most characters of an event type or pattern.
const LONGEST: usize = 256;

/// Whether this is one exact event type, as the CRD's rules admit it.
pub fn is_exact(text: &str) -> bool {
    let of_type = |c: char| !(matches!(c, '*' | ' ') || is_hidden(c));
    !text.is_empty() && text.chars().all(of_type) && text.chars().nth(LONGEST).is_none()
}

/// Whether this is an exact type, a prefix or `*`, as the CRD's rules admit it.
pub fn is_pattern(text: &str) -> bool {
    let prefix = || text.strip_suffix(".*").is_some_and(is_exact) && text.chars().nth(LONGEST).is_none();
    text == "*" || is_exact(text) || prefix()
}

/// Compiled `spec.eventTypes`: exact names, `prefix.*`, or `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    all: bool,
    exact: HashSet<Box<str>>,
    /// With the final dot: `invoice.` for `invoice.*`.
    prefixes: Vec<Box<str>>,
}

impl Filter {
    /// Compiles patterns that the CRD's rules have accepted; any other is taken as an exact name.
    pub fn compile<S: AsRef<str>>(patterns: &[S]) -> Self {
        let mut filter = Self::default();
        for pattern in patterns.iter().map(AsRef::as_ref) {
            match pattern.strip_suffix('*') {
                Some("") => filter.all = true,
                Some(prefix) if prefix.ends_with('.') => filter.prefixes.push(prefix.into()),
                _ => {
                    filter.exact.insert(pattern.into());
                }
            }
        }
        filter
    }

    /// The types that are wanted, when these are all; none: there is a pattern, so [`Filter::wants`] has to be asked.
    pub fn exact_types(&self) -> Option<impl Iterator<Item = &str>> {
        (!self.all && self.prefixes.is_empty()).then(|| self.exact.iter().map(|name| &**name))
    }

    /// Whether an event of this type is wanted. `invoice.*` wants `invoice.paid` and `invoice.a.b`, not
    /// `invoice` or `invoice.`.
    pub fn wants(&self, event_type: &str) -> bool {
        self.all
            || self.exact.contains(event_type)
            || self
                .prefixes
                .iter()
                .any(|prefix| event_type.strip_prefix(&**prefix).is_some_and(|rest| !rest.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_that_the_rules_admit() {
        for (text, exact, pattern) in [
            ("order.created", true, true),
            ("注文.作成", true, true),
            ("invoice.*", false, true),
            ("*", false, true),
            ("..*", false, true),
            (".*", false, false),
            ("**", false, false),
            ("a*", false, false),
            ("a.*.b", false, false),
            ("", false, false),
            ("a b", false, false),
            ("a\u{a0}b", false, false),
            ("a\u{85}", false, false),
            ("a\u{202e}b", false, false),
            ("a\u{fffe}", false, false),
            (&"x".repeat(256), true, true),
            (&"ä".repeat(257), false, false),
            (&("x".repeat(255) + ".*"), false, false),
        ] {
            assert_eq!((is_exact(text), is_pattern(text)), (exact, pattern), "{text:?}");
        }
    }

    #[test]
    fn a_type_is_wanted_exactly_by_prefix_or_always() {
        let filter = Filter::compile(&["order.created", "invoice.*"]);
        for (event_type, wanted) in [
            ("order.created", true),
            ("order.created.v2", false),
            ("order.Created", false),
            ("invoice.paid", true),
            ("invoice.a.b", true),
            ("invoice", false),
            ("invoice.", false),
            ("invoices.paid", false),
        ] {
            assert_eq!(filter.wants(event_type), wanted, "{event_type}");
        }
        assert!(Filter::compile(&["*"]).wants("anything"));
        assert!(!Filter::compile::<&str>(&[]).wants("anything"));
    }
}
