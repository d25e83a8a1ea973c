//! From the derived CRDs to those that are shipped: what the derives cannot say.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::{Webhook, WebhookReplay, WebhookTest};

/// The CRDs, in the order in which `hookwright crds` prints them.
///
/// # Panics
/// When a derived schema is not a CRD's, which a unit test would show first.
pub fn crds() -> Vec<CustomResourceDefinition> {
    [Webhook::crd(), WebhookTest::crd(), WebhookReplay::crd()].iter().map(finish).collect()
}

/// The CRDs as one YAML stream, as `hookwright crds` prints it.
pub fn crds_yaml() -> String {
    crds().iter().flat_map(|crd| ["---\n".to_owned(), to_yaml(crd)]).collect()
}

/// The schema of a kind that no CRD carries, in the words that `kubectl explain` shows.
pub fn explained<K: CustomResourceExt>() -> Value {
    let crd = serde_json::to_value(K::crd()).unwrap_or_default();
    let mut schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned().unwrap_or_default();
    tidy(&mut schema);
    whole_numbers(&mut schema);
    describe(&mut schema, "/properties/spec", "What it is.");
    describe(&mut schema, "/properties/status", "What became of it so far.");
    schema
}

/// One CRD as YAML.
#[expect(clippy::expect_used, reason = "a CRD is plain data: maps with string keys, strings, numbers")]
fn to_yaml(crd: &CustomResourceDefinition) -> String {
    let mut value = serde_json::to_value(crd).expect("a CRD serializes");
    whole_numbers(&mut value);
    serde_saphyr::to_string(&value).expect("a CRD serializes")
}

/// Bounds are floats in Rust's type and whole numbers here: written as the apiserver answers them, so that nobody's
/// diff finds a change.
fn whole_numbers(value: &mut Value) {
    match value {
        #[expect(clippy::cast_possible_truncation, reason = "checked: it is whole and small")]
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e15) {
                *value = Value::from(float as i64);
            }
        }
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Array(list) => list.iter_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[expect(clippy::expect_used, reason = "the unit tests of this module run it on every CRD there is")]
fn finish(crd: &CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a CRD serializes");
    if let Some(schema) = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        tidy(schema);
        if let Some(status) = schema.pointer_mut("/properties/status") {
            drop_defaults(status);
            status["default"] = json!({ "observedGeneration": -1 });
        }
        describe(schema, "/properties/spec", "What is wanted.");
        say_defaults(schema);
    }
    serde_json::from_value(value).expect("a CRD with small changes is a CRD")
}

/// Null means absent everywhere, so nothing is nullable: the apiserver then drops a null and sets the default.
/// Line breaks within a paragraph of a description are those of the source, not the reader's.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.split("\n\n").map(|p| p.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A status is what was written, nothing else: the one default is that of the whole.
fn drop_defaults(schema: &mut Value) {
    if let Value::Object(map) = schema {
        map.remove("default");
        if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
            properties.values_mut().for_each(drop_defaults);
        }
        if let Some(items) = map.get_mut("items") {
            drop_defaults(items);
        }
    }
}

/// Ends the description of each field that has a default with it: `kubectl explain` shows no other. A default of several
/// fields is said at each.
fn say_defaults(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    let default = map.get("default").and_then(|default| match default {
        Value::String(text) => Some(text.clone()),
        Value::Array(_) | Value::Bool(_) | Value::Number(_) => Some(default.to_string().replace('"', "")),
        Value::Object(_) | Value::Null => None,
    });
    if let (Some(default), Some(Value::String(text))) = (default, map.get_mut("description")) {
        *text = format!("{text} Default: {default}.");
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(say_defaults);
    }
    if let Some(items) = map.get_mut("items") {
        say_defaults(items);
    }
}

fn describe(schema: &mut Value, pointer: &str, text: &str) {
    if let Some(Value::Object(map)) = schema.pointer_mut(pointer) {
        map.entry("description").or_insert_with(|| Value::from(text));
    }
}

/// `status.conditions` as `metav1.Condition` has them, keyed by type, each field with its maximum.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    let condition_type = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?\
                          ([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$";
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One aspect of the object's state.",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": properties([
                ("type", json!({ "type": "string", "maxLength": 316, "pattern": condition_type,
                    "description": "Which aspect." })),
                ("status", json!({ "type": "string", "enum": ["True", "False", "Unknown"],
                    "description": "True, False or Unknown." })),
                ("observedGeneration", json!({ "type": "integer", "format": "int64", "minimum": 0,
                    "description": "The generation of the spec that this speaks of." })),
                ("lastTransitionTime", json!({ "type": "string", "format": "date-time",
                    "description": "When the condition's status last changed." })),
                ("reason", json!({ "type": "string", "minLength": 1, "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "Why, in one CamelCase word, for programs." })),
                ("message", json!({ "type": "string", "maxLength": 32768,
                    "description": "Why, for people; what is wrong also says what mends it." })),
            ]),
        },
    })
}

fn properties<const N: usize>(list: [(&str, Value); N]) -> Map<String, Value> {
    list.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schemas() -> Vec<(String, Value)> {
        let crds = crds().into_iter().map(|crd| {
            let name = crd.metadata.name.clone().unwrap();
            let schema = &crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema;
            (name, serde_json::to_value(schema).unwrap())
        });
        crds.collect()
    }

    /// Every property of a schema, with its path.
    fn each_property(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            visit(&path, property);
            each_property(property, &path, visit);
        }
        if schema["items"].is_object() {
            visit(&format!("{path}[]"), &schema["items"]);
            each_property(&schema["items"], &format!("{path}[]"), visit);
        }
    }

    fn complaints(mut complaint: impl FnMut(&str, &Value) -> Option<String>) -> Vec<String> {
        let mut found = Vec::new();
        for (name, schema) in schemas() {
            for part in ["spec", "status"] {
                let schema = &schema["properties"][part];
                each_property(schema, &format!("{name}.{part}"), &mut |path, property| {
                    found.extend(complaint(path, property).map(|what| format!("{path}: {what}")));
                });
            }
        }
        found
    }

    #[test]
    fn the_files_are_what_the_types_say() {
        let file = include_str!("../../crds/hookwright.dev.yaml");
        assert!(
            file == crds_yaml(),
            "crds/ is not current; run: cargo run -- crds > crds.yaml && mv crds.yaml crds/hookwright.dev.yaml"
        );
    }

    #[test]
    fn every_field_is_described() {
        let found = complaints(|path, property| {
            let item = path.ends_with("[]");
            let text = property["description"].as_str().unwrap_or_default();
            (text.len() < 8 && !item).then(|| format!("description {text:?}"))
        });
        assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn every_string_list_and_number_is_bounded() {
        let found = complaints(|_, property| {
            let has = |keyword: &str| !property[keyword].is_null();
            match property["type"].as_str() {
                Some("string") if has("enum") || has("maxLength") || property["format"] == "date-time" => {
                    None
                }
                Some("string") => Some("no maxLength".to_owned()),
                Some("array") if has("maxItems") && has("x-kubernetes-list-type") => None,
                Some("array") => Some("no maxItems or no list type".to_owned()),
                Some("integer") if has("minimum") => None,
                Some("integer") => Some("no minimum".to_owned()),
                Some("object" | "boolean") => None,
                None if has("x-kubernetes-preserve-unknown-fields") => None,
                other => Some(format!("type {other:?}")),
            }
        });
        assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn numbers_of_the_spec_have_a_maximum_and_formats_are_those_that_kubernetes_knows() {
        let found = complaints(|path, property| {
            let format = property["format"].as_str();
            if !matches!(format, None | Some("int32" | "int64" | "date-time")) {
                return Some(format!("format {format:?}"));
            }
            let unbounded = property["type"] == "integer" && property["maximum"].is_null();
            (path.contains(".spec.") && unbounded).then(|| "no maximum".to_owned())
        });
        assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn enum_values_are_pascal_case_and_nothing_is_nullable() {
        let found = complaints(|_, property| {
            let values = property["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let lower =
                values.filter(|v| !v.starts_with(|c: char| c.is_ascii_uppercase())).collect::<Vec<_>>();
            let nullable = property["nullable"] == true;
            (nullable || !lower.is_empty()).then(|| format!("nullable {nullable}, enum {lower:?}"))
        });
        assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn conditions_are_a_map_by_type_and_a_status_is_in_progress_from_birth() {
        for (name, schema) in schemas() {
            let status = &schema["properties"]["status"];
            assert_eq!(status["default"], json!({ "observedGeneration": -1 }), "{name}");
            let conditions = &status["properties"]["conditions"];
            assert_eq!(conditions["x-kubernetes-list-type"], "map", "{name}");
            assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]), "{name}");
            let defaults = status.to_string().matches("\"default\"").count();
            assert_eq!(defaults, 1, "{name}: only the whole status has a default");
        }
    }

    #[test]
    fn every_default_that_the_documents_show_is_in_the_schema() {
        let schemas = schemas();
        let spec = &schemas[0].1["properties"]["spec"]["properties"];
        for (pointer, default) in [
            ("/active", json!(true)),
            ("/maxRetries", json!(3)),
            ("/backoff", json!({ "initial": "10s", "factor": 6, "max": "24h" })),
            ("/backoff/properties/initial", json!("10s")),
            ("/backoff/properties/factor", json!(6)),
            ("/backoff/properties/max", json!("24h")),
            ("/timeout", json!("15s")),
            ("/maxInFlight", json!(64)),
            ("/rateLimit/properties/per", json!("1s")),
            ("/rateLimit/properties/burst", json!(1)),
            ("/tls/properties/caRef/properties/key", json!("ca.crt")),
            ("/historyLimit", json!(10)),
        ] {
            let found = spec.pointer(pointer).map(|property| &property["default"]);
            assert_eq!(found, Some(&default), "{pointer}");
        }
        let event_type = &schemas[1].1["properties"]["spec"]["properties"]["eventType"]["default"];
        assert_eq!(event_type, "webhook.test");
    }

    #[test]
    fn every_description_says_the_default() {
        let found = complaints(|path, property| {
            let text = property["description"].as_str().unwrap_or_default();
            let said = text.split(" Default: ").nth(1);
            let expected = match &property["default"] {
                Value::Null | Value::Object(_) => None,
                Value::String(text) => Some(format!("{text}.")),
                other => Some(format!("{}.", other.to_string().replace('"', ""))),
            };
            let only = path.contains(".spec") || expected.is_none();
            (said != expected.as_deref() || !only).then(|| format!("{text:?}"))
        });
        assert!(found.is_empty(), "{found:#?}");
        let (_, webhook) = schemas().remove(0);
        let text = webhook["properties"]["spec"]["properties"]["maxRetries"]["description"].clone();
        assert!(text.as_str().unwrap().ends_with(" Default: 3."), "{text}");
    }

    #[test]
    fn a_crd_fits_into_the_annotation_of_kubectl_apply_and_survives_substitution() {
        for crd in crds() {
            let json = serde_json::to_string(&crd).unwrap();
            assert!(json.len() < 130_000, "{} bytes", json.len());
        }
        assert!(!crds_yaml().contains("${"));
    }

    #[test]
    fn every_rule_says_what_must_be() {
        for (name, schema) in schemas() {
            let text = schema.to_string();
            let messages = text.split(r#""message":""#).skip(1).map(|rest| rest.split('"').next().unwrap());
            for message in messages {
                assert!(message.contains("must"), "{name}: {message}");
            }
        }
    }
}
