//! Label selectors, as Kubernetes writes them: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.

use std::collections::BTreeMap;

use crate::server::status::{Failure, Reason};

/// The labels of an object.
pub(super) type Labels = BTreeMap<String, String>;

/// What one label must be.
#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    key: String,
    /// None: it must be there, whatever its value.
    values: Option<Vec<String>>,
    /// Whether it must not.
    negated: bool,
}

/// What the labels must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Reads one.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let parts = split(text).ok_or_else(|| refusal(text, "a parenthesis has no other"))?;
        let parts = parts.into_iter().map(str::trim).filter(|part| !part.is_empty());
        parts
            .map(|part| Requirement::parse(part).ok_or_else(|| refusal(part, "not a requirement")))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether everything is admitted.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether these labels are.
    pub(super) fn admits(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.admits(labels))
    }
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        if let Some(key) = text.strip_prefix('!') {
            return Self::new(key, None, true);
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Self::new(key, Some(vec![value]), true);
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return Self::new(key, Some(vec![value]), false);
        }
        let Some((key, set)) = text.split_once(char::is_whitespace) else {
            return Self::new(text, None, false);
        };
        let set = set.trim();
        let (negated, list) = match (set.strip_prefix("in"), set.strip_prefix("notin")) {
            (Some(list), _) => (false, list),
            (None, Some(list)) => (true, list),
            (None, None) => return None,
        };
        let list = list.trim().strip_prefix('(')?.strip_suffix(')')?;
        Self::new(key, Some(list.split(',').collect()), negated)
    }

    fn new(key: &str, values: Option<Vec<&str>>, negated: bool) -> Option<Self> {
        let key = key.trim();
        let values = values.map(|all| all.into_iter().map(str::trim).collect::<Vec<_>>());
        let fine = |text: &str, more: &str| {
            text.len() <= 317 && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let valid = !key.is_empty()
            && fine(key, "-_./")
            && values.as_ref().is_none_or(|all| all.iter().all(|value| fine(value, "-_.")));
        let values = values.map(|all| all.into_iter().map(ToOwned::to_owned).collect());
        valid.then(|| Self { key: key.to_owned(), values, negated })
    }

    fn admits(&self, labels: &Labels) -> bool {
        let is = labels.get(&self.key);
        let named = match &self.values {
            None => is.is_some(),
            Some(values) => is.is_some_and(|is| values.contains(is)),
        };
        named != self.negated
    }
}

/// At the commas outside of parentheses.
fn split(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '(' if inside => return None,
            '(' => inside = true,
            ')' if !inside => return None,
            ')' => inside = false,
            ',' if !inside => {
                parts.push(text.get(start..at)?);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..)?);
    (!inside).then_some(parts)
}

fn refusal(part: &str, what: &str) -> Failure {
    let shown: String = part.chars().filter(|c| !c.is_control()).take(100).collect();
    let message = format!(
        "labelSelector cannot be read at {shown:?}: {what}; write KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY notin (A,B), KEY or !KEY"
    );
    Failure::new(Reason::BadRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_admitted_as_kubernetes_does() {
        let labels: Labels =
            [("app", "a"), ("x.dev/tier", "web")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (selector, admitted) in [
            ("", true),
            ("app=a", true),
            ("app == a", true),
            ("app=b", false),
            ("app!=b", true),
            ("app!=a", false),
            ("none!=a", true),
            ("app", true),
            ("none", false),
            ("!none", true),
            ("!app", false),
            ("app in (a, b)", true),
            ("app in (b)", false),
            ("app notin (b,c)", true),
            ("none notin (b)", true),
            ("none in (b)", false),
            ("app in (a,b),x.dev/tier=web", true),
            ("app in (a,b),x.dev/tier!=web", false),
            ("app=", false),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap().admits(&labels), admitted, "{selector:?}");
        }
    }

    #[test]
    fn what_is_no_label_selector_is_refused_with_what_is() {
        for bad in
            ["app in (a", "app in a", "app of (a)", "a)b", "((a))", "=a", "app=a b", "a b", "app>3", "!"]
        {
            let failure = LabelSelector::parse(bad).unwrap_err();
            assert_eq!(failure.reason, Reason::BadRequest, "{bad}");
            assert!(failure.message.contains("KEY in (A,B)"), "{}", failure.message);
        }
    }
}
