//! The options of a list, and of what changes something, as Kubernetes' clients put them into the query.

use crate::server::status::{Failure, Reason};

/// Most that one answer has, when a client says how many it wants.
pub(super) const MOST: usize = 500;

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListOptions {
    /// None: all of them.
    pub(super) limit: Option<usize>,
    pub(super) from: String,
    pub(super) fields: String,
    pub(super) labels: String,
    pub(super) include: Include,
}

/// What stands beside each row of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl ListOptions {
    /// Reads a query. What means nothing here is left aside.
    pub(super) fn parse(query: &str) -> Result<Self, Failure> {
        let mut options = Self::default();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "limit" => options.limit = limit(&value)?,
                "continue" => options.from = value.into_owned(),
                "fieldSelector" => options.fields = value.into_owned(),
                "labelSelector" => options.labels = value.into_owned(),
                "includeObject" => options.include = include(&value)?,
                "watch" if !matches!(&*value, "" | "0" | "false") => {
                    let mut failure = Failure::method_not_allowed("GET");
                    "the delivery log cannot be watched: list it, or watch the Webhook's status"
                        .clone_into(&mut failure.message);
                    return Err(failure);
                }
                "resourceVersion" if !value.bytes().all(|b| b.is_ascii_digit()) => {
                    return Err(bad("resourceVersion", "must be a number"));
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

/// Whether the query asks for a dry run. What else Kubernetes' clients put there means nothing here.
pub(in crate::server) fn dry_run(query: &str, resource: &'static str) -> Result<bool, Failure> {
    let mut asked = false;
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if name == "dryRun" {
            if value != "All" {
                let failure = Failure::new(Reason::BadRequest, "dryRun must be All");
                return Err(failure.of(resource).cause("FieldValueNotSupported", "dryRun", "must be All"));
            }
            asked = true;
        }
    }
    Ok(asked)
}

fn limit(value: &str) -> Result<Option<usize>, Failure> {
    match value.parse::<i64>() {
        Ok(0) => Ok(None),
        Ok(limit) if limit > 0 => Ok(Some(usize::try_from(limit).unwrap_or(MOST).min(MOST))),
        _ => Err(bad("limit", "must be a number, and not negative")),
    }
}

fn include(value: &str) -> Result<Include, Failure> {
    match value {
        "None" => Ok(Include::None),
        "" | "Metadata" => Ok(Include::Metadata),
        "Object" => Ok(Include::Object),
        _ => Err(bad("includeObject", "must be None, Metadata or Object")),
    }
}

fn bad(field: &str, what: &str) -> Failure {
    Failure::new(Reason::BadRequest, format!("{field} {what}")).cause("FieldValueInvalid", field, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_how_many_from_where_and_which() {
        let all = ListOptions::default();
        for (query, expected) in [
            ("", all.clone()),
            ("limit=0&resourceVersion=&watch=false", all.clone()),
            (
                "limit=20&resourceVersion=0&resourceVersionMatch=NotOlderThan",
                ListOptions { limit: Some(20), ..all.clone() },
            ),
            ("limit=100000&timeoutSeconds=9", ListOptions { limit: Some(MOST), ..all.clone() }),
            ("continue=abc&resourceVersion=17", ListOptions { from: "abc".to_owned(), ..all.clone() }),
            (
                "fieldSelector=spec.webhook%3Dorders&labelSelector=a+in+%28b%29",
                ListOptions {
                    fields: "spec.webhook=orders".to_owned(),
                    labels: "a in (b)".to_owned(),
                    ..all.clone()
                },
            ),
            ("includeObject=Object", ListOptions { include: Include::Object, ..all.clone() }),
            ("includeObject=None", ListOptions { include: Include::None, ..all }),
        ] {
            assert_eq!(ListOptions::parse(query), Ok(expected), "{query}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (query, reason) in [
            ("limit=-1", Reason::BadRequest),
            ("limit=ten", Reason::BadRequest),
            ("resourceVersion=abc", Reason::BadRequest),
            ("includeObject=All", Reason::BadRequest),
            ("watch=true", Reason::MethodNotAllowed),
            ("watch=1", Reason::MethodNotAllowed),
        ] {
            assert_eq!(ListOptions::parse(query).unwrap_err().reason, reason, "{query}");
        }
    }
}
