//! In which form an object or a list is wanted.

use http::HeaderMap;

use crate::server::accept;
use crate::server::status::Failure;

/// The forms that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The objects themselves.
    Whole,
    /// Rows and columns, for people.
    Table,
    /// Metadata alone.
    Metadata,
}

/// Whether one object or a list is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    One,
    Many,
}

const META: &str = "meta.k8s.io";

/// The first form that the client takes and we have.
pub(super) fn form(headers: &HeaderMap, count: Count) -> Result<Form, Failure> {
    let Some(ranges) = accept::ranges(headers) else { return Ok(Form::Whole) };
    let metadata = match count {
        Count::One => "PartialObjectMetadata",
        Count::Many => "PartialObjectMetadataList",
    };
    let form = ranges.iter().find_map(|range| {
        if range.is_as("Table", META, "v1") {
            Some(Form::Table)
        } else if range.is_as(metadata, META, "v1") {
            Some(Form::Metadata)
        } else {
            range.is_plain_json().then_some(Form::Whole)
        }
    });
    form.ok_or_else(|| accept::refusal("application/json, alone or with as=Table;v=v1;g=meta.k8s.io"))
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT;

    use super::*;

    #[test]
    fn the_form_is_the_first_that_is_taken_and_known() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                       application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                        application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        for (accept, count, expected) in [
            (None, Count::Many, Some(Form::Whole)),
            (Some(kubectl), Count::Many, Some(Form::Table)),
            (Some(kubectl), Count::One, Some(Form::Table)),
            (Some(metadata), Count::Many, Some(Form::Metadata)),
            (Some(metadata), Count::One, Some(Form::Whole)),
            (Some("application/json;as=Table;v=v1beta1;g=meta.k8s.io"), Count::Many, None),
            (
                Some("application/json;as=Table;v=v1;g=meta.k8s.io;q=0.1, application/json"),
                Count::One,
                Some(Form::Whole),
            ),
            (Some("application/json;stream=watch"), Count::Many, Some(Form::Whole)),
            (Some("*/*"), Count::Many, Some(Form::Whole)),
            (Some("application/yaml"), Count::Many, None),
            (Some("application/vnd.kubernetes.protobuf"), Count::One, None),
            (Some("application/cbor, application/json"), Count::One, Some(Form::Whole)),
        ] {
            let headers = accept.map(|accept| (ACCEPT, accept.parse().unwrap())).into_iter().collect();
            assert_eq!(form(&headers, count).ok(), expected, "{accept:?}");
        }
    }
}
