//! Admission and the operator have one grammar: what a real kube-apiserver takes, the operator's own parsers take, with
//! the same meaning, and what it refuses they refuse. Strings that nobody gave are thrown at both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use hookwright::api::{Webhook, WebhookReplay, WebhookTest};
use hookwright::model::address::Policy;
use hookwright::model::filter::{Filter, is_exact, is_pattern};
use hookwright::model::time::UnixMillis;
use hookwright::routes::compile::{Compiler, MasterKey};
use hookwright::routes::references::References;
use hookwright::routes::{Endpoint, Route};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plane;

/// Generated strings of one kind, beside those that are listed.
const GENERATED: usize = 120;
/// Requests under way at once.
const AT_ONCE: usize = 16;

/// A spec to be judged, and what it is called when it is judged differently.
#[derive(Clone, Debug)]
struct Case {
    what: String,
    spec: Value,
}

/// What kube-apiserver says.
enum Verdict {
    /// The object as it would be stored.
    Taken(Value),
    Refused(String),
}

struct Admission {
    client: Client,
    namespace: String,
}

impl Admission {
    async fn new() -> Self {
        let plane = plane().await;
        let kubeconfig = Kubeconfig::read_from(plane.kubeconfig_path()).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let namespace = plane.namespace("grammar").await.unwrap();
        Self { client: Client::try_from(config).unwrap(), namespace }
    }

    /// Would it be stored?
    async fn judge(&self, kind: &str, spec: &Value) -> Verdict {
        let (plural, version) = (format!("{}s", kind.to_lowercase()), "v1alpha1".to_owned());
        let group = "hookwright.dev".to_owned();
        let api_version = format!("{group}/{version}");
        let resource =
            ApiResource { group, version, api_version: api_version.clone(), kind: kind.to_owned(), plural };
        let object =
            json!({ "apiVersion": api_version, "kind": kind, "metadata": { "name": "one" }, "spec": spec });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        match api.create(&PostParams { dry_run: true, field_manager: None }, &object).await {
            Ok(object) => Verdict::Taken(serde_json::to_value(object).unwrap()),
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                Verdict::Refused(status.message)
            }
            Err(error) => panic!("{spec}: {error}"),
        }
    }

    /// Sets both verdicts beside each other. `operator` says what is wrong with an object as the operator sees it, and
    /// `meaning` what it means otherwise than it says.
    async fn compare<K: DeserializeOwned>(
        &self,
        kind: &str,
        cases: Vec<Case>,
        operator: impl Fn(&K) -> Result<(), String>,
    ) {
        let verdicts = stream::iter(cases).map(async |case| {
            let verdict = self.judge(kind, &case.spec).await;
            (case, verdict)
        });
        let verdicts: Vec<_> = verdicts.buffer_unordered(AT_ONCE).collect().await;
        let (mut wrong, mut counts) = (Vec::new(), BTreeMap::<_, usize>::new());
        for (case, verdict) in verdicts {
            let (taken, object) = match verdict {
                Verdict::Taken(object) => (Ok(()), object),
                Verdict::Refused(why) => (Err(why), raw(kind, &case.spec)),
            };
            let read = serde_json::from_value::<K>(object).map_err(|error| error.to_string());
            let judged = read.and_then(|object| operator(&object));
            *counts.entry(taken.is_ok()).or_default() += 1;
            if taken.is_ok() != judged.is_ok() {
                wrong.push(format!("{}: admission {taken:?}, operator {judged:?}", case.what));
            }
        }
        assert!(wrong.is_empty(), "{} of {counts:?}:\n{}", wrong.len(), wrong.join("\n"));
        let both = [true, false].map(|taken| counts.get(&taken).copied().unwrap_or_default());
        assert!(
            both.iter().all(|count| *count >= 10),
            "too few that are taken, or too few that are refused: {both:?}"
        );
    }
}

/// As the operator would read it if it were stored.
fn raw(kind: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "hookwright.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": { "name": "one", "namespace": "grammar", "uid": "7d9f4d0e-5c1b-4d3e-9b53-6d2f5f2c0a11" } })
}

fn webhook(changes: Value) -> Value {
    let mut spec = json!({ "url": "https://hooks.example.com/orders", "eventTypes": ["order.created"] });
    spec.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    spec
}

/// What the operator makes of a Webhook; what is wrong with it, if that is the spec's fault.
fn compiled(webhook: &Webhook) -> Result<(Route, Option<Arc<Endpoint>>), String> {
    let compiler = Compiler::new(MasterKey::new([7; 32]), Policy::default());
    let route = compiler.compile(webhook, &References::default()).unwrap();
    match &route.endpoint {
        Ok(endpoint) => {
            let endpoint = Arc::clone(endpoint);
            Ok((route, Some(endpoint)))
        }
        Err(unready) if ["SpecInvalid", "UrlInvalid", "HeaderValueInvalid"].contains(&unready.reason) => {
            Err(format!("{}: {}", unready.reason, unready.message))
        }
        // The grammar is fine; the address is not, or the Secret is not there.
        Err(_) => Ok((route, None)),
    }
}

/// Listed and generated strings, the same in every run unless the seed is another.
fn strings(listed: &[&str], generated: &[BoxedStrategy<String>]) -> Vec<String> {
    let mut runner = TestRunner::default();
    let mut all: Vec<String> = listed.iter().map(|text| (*text).to_owned()).collect();
    for strategy in generated {
        let of_each = GENERATED / generated.len();
        all.extend((0..of_each).map(|_| strategy.new_tree(&mut runner).unwrap().current()));
    }
    all
}

fn cases(texts: &[String], spec: impl Fn(&str) -> Value) -> Vec<Case> {
    texts.iter().map(|text| Case { what: format!("{text:?}"), spec: spec(text) }).collect()
}

/// As Go reads what the grammar admits.
fn go_duration(text: &str) -> Duration {
    let (mut sum, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(char::is_alphabetic).unwrap());
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let number: u32 = number.parse().unwrap();
        let unit =
            [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)].iter().find(|(name, _)| *name == unit);
        sum += Duration::from_millis(unit.unwrap().1) * number;
        rest = after;
    }
    sum
}

const DURATIONS: &[&str] = &[
    "1h30m",
    "90m",
    "1.5h",
    "1d",
    "1w",
    "1 h",
    " 1h",
    "1h ",
    "1h\n",
    "",
    "s",
    "0",
    "0s",
    "1",
    "+1s",
    "-1s",
    "1S",
    "1H",
    "1MS",
    "1us",
    "1µs",
    "1μs",
    "1ns",
    "1e3s",
    "0x1s",
    "1_0s",
    "٣s",
    "１s",
    "१s",
    "1s\u{0}",
    "∞",
    "9999999h",
    "999999h",
    "999999h999999h",
    "9999999m",
    "99999999s",
    "99ms",
    "100ms",
    "101ms",
    "0s100ms",
    "999ms",
    "1s",
    "1000ms",
    "01s",
    "60s",
    "1m",
    "60s1ms",
    "59s1000ms",
    "1m0s",
    "61s",
    "24h",
    "1440m",
    "86400s",
    "24h1ms",
    "23h59m60s",
    "168h",
    "168h0ms",
    "168h1ms",
    "10080m",
    "604800s",
    "0h0m0s0ms1s",
    "0s0s0s0s0s0s0s1s",
    "0s0s0s0s0s0s0s01s",
    "1h1h1h",
    "30m1h",
    "1m1ms",
    "1ms1m",
    "infinity",
    "PT15S",
    "15",
    "15 s",
    "15sec",
    "1h-30m",
    "1h+30m",
    "1,5s",
    ".5s",
    "5.s",
    "1\u{a0}s",
    "1s\u{85}",
];

fn durations() -> Vec<String> {
    let generated = [
        "([0-9]{1,8}(ms|s|m|h)){1,4}",
        "[1-9][0-9]?(s|m)",
        "[0-9]{1,3}h[0-5]?[0-9]m",
        "[0-9]{1,4}[.,]?[0-9]{0,3} ?(ms|s|m|h|d|us|µs|ns|S|H)",
        "\\PC{1,6}",
    ];
    strings(DURATIONS, &generated.map(|pattern| strategy(pattern)))
}

fn strategy(pattern: &str) -> BoxedStrategy<String> {
    proptest::string::string_regex(pattern).unwrap().boxed()
}

#[tokio::test]
async fn durations_are_read_alike() {
    let admission = Admission::new().await;
    let texts = durations();
    let mut specs = cases(&texts, |text| webhook(json!({ "timeout": text })));
    specs.extend(cases(&texts, |text| webhook(json!({ "backoff": { "initial": text, "max": "168h" } }))));
    specs.extend(cases(&texts, |text| webhook(json!({ "backoff": { "initial": "100ms", "max": text } }))));
    specs.extend(cases(&texts, |text| webhook(json!({ "rateLimit": { "requests": 1, "per": text } }))));
    let order = |(initial, max): (&str, &str)| {
        let what = format!("{initial} before {max}");
        Case { what, spec: webhook(json!({ "backoff": { "initial": initial, "max": max } })) }
    };
    specs.extend(
        [("1m", "60s"), ("1m1ms", "60s"), ("1h", "59m60s"), ("1h", "59m59s"), ("x", "1h"), ("1h", "x")]
            .map(order),
    );
    let operator = |webhook: &Webhook| {
        let (_, endpoint) = compiled(webhook)?;
        let Some(endpoint) = endpoint else { return Err("not compiled".to_owned()) };
        let (spec, retry) = (&webhook.spec, &endpoint.retry);
        let mut read = vec![
            (&spec.timeout, endpoint.timeout),
            (&spec.backoff.initial, retry.initial),
            (&spec.backoff.max, retry.max),
        ];
        if let (Some(limit), Some(made)) = (&spec.rate_limit, &endpoint.rate_limit) {
            read.push((&limit.per, made.per));
        }
        for (text, is) in read {
            assert_eq!(is, go_duration(text), "{text:?} means something else");
        }
        Ok(())
    };
    admission.compare("Webhook", specs, operator).await;
}

const TIMES: &[&str] = &[
    "2026-11-24T22:00:00Z",
    "2026-11-24t22:00:00z",
    "2026-11-24T22:00:00z",
    "2026-11-24 22:00:00Z",
    "2026-11-24T22:00:00",
    "2026-11-24T22:00Z",
    "2026-11-24",
    "2026-W48-2",
    "2026-328",
    "20261124T220000Z",
    "2026-11-24T22:00:00.5Z",
    "2026-11-24T22:00:00,5Z",
    "2026-11-24T22:00:00.Z",
    "2026-11-24T22:00:00x5Z",
    "2026-11-24T22:00:00.123456789Z",
    "2026-11-24T22:00:00.1234567890Z",
    "2026-11-24T22:00:00+01:00",
    "2026-11-24T22:00:00-00:00",
    "2026-11-24T22:00:00+0100",
    "2026-11-24T22:00:00+01",
    "2026-11-24T22:00:00+23:59",
    "2026-11-24T22:00:00+24:00",
    "2026-11-24T22:00:00+01:60",
    "2026-11-24T22:00:00−01:00",
    "2026-11-24T22:00:00[Europe/Berlin]",
    "2026-11-24T22:00:00+01:00[Europe/Berlin]",
    "2026-11-24T23:59:60Z",
    "2016-12-31T23:59:60Z",
    "2026-11-24T24:00:00Z",
    "2026-11-24T22:60:00Z",
    "2026-00-24T22:00:00Z",
    "2026-13-24T22:00:00Z",
    "2026-11-00T22:00:00Z",
    "2026-11-31T22:00:00Z",
    "2026-02-29T00:00:00Z",
    "2024-02-29T00:00:00Z",
    "2000-02-29T00:00:00Z",
    "2100-02-29T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "0999-12-31T00:00:00Z",
    "1000-01-01T00:00:00Z",
    "1000-01-01T00:00:00+23:59",
    "1969-12-31T23:59:59Z",
    "9999-12-31T23:59:59Z",
    "9999-12-30T22:00:01Z",
    "9999-12-31T23:59:59.999999999Z",
    "9999-12-31T23:59:59+23:59",
    "10000-01-01T00:00:00Z",
    "+2026-11-24T22:00:00Z",
    "-2026-11-24T22:00:00Z",
    "2026-11-24T22:00:00Z ",
    " 2026-11-24T22:00:00Z",
    "2026-11-24T22:00:00Z\n",
    "2026-11-24T22:00:00 Z",
    "٢٠٢٦-11-24T22:00:00Z",
    "２０２６-11-24T22:00:00Z",
    "now",
    "1795514400",
    "",
    "2026-1-24T22:00:00Z",
    "2026-11-24T2:00:00Z",
    "Tue, 24 Nov 2026 22:00:00 GMT",
    "2026-11-24T22:00:00Z\u{0}",
    "2026-11-24T22:00:00UTC",
];

/// The digits of a fraction after the third.
fn beyond_millis(time: &str) -> String {
    let fraction = time.split('.').nth(1).unwrap_or_default();
    let digits: String = fraction.chars().take_while(char::is_ascii_digit).skip(3).collect();
    format!("{digits:0<6}")
}

#[tokio::test]
async fn times_are_read_alike() {
    let admission = Admission::new().await;
    let generated = [
        "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
        "(1[0-9]|20|99)[0-9]{2}-02-(28|29|30)T00:00:00Z",
        "20[0-9]{2}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9]([.,][0-9]{0,12})?(Z|z|[+-][0-2][0-9]:?[0-6][0-9])?",
    ];
    let texts = strings(TIMES, &generated.map(|pattern| strategy(pattern)));
    // On both sides of something that is always good.
    let select = |from: &str, to: &str| json!({ "select": { "from": from, "to": to } });
    let mut specs = cases(&texts, |text| select("1000-01-01T00:00:00Z", text));
    specs.extend(cases(&texts, |text| select(text, "9999-12-31T23:59:59.999Z")));
    specs.extend(
        texts
            .iter()
            .zip(texts.iter().rev())
            .map(|(from, to)| Case { what: format!("{from:?} before {to:?}"), spec: select(from, to) }),
    );
    // CEL knows no later time, and admission refuses what it cannot compare.
    let last = UnixMillis::parse("9999-12-31T23:59:59.999Z").unwrap();
    let operator = |replay: &WebhookReplay| {
        let select = &replay.spec.select;
        let time = |text: &str| UnixMillis::parse(text).ok_or_else(|| format!("no time: {text:?}"));
        let (from, to) = (time(&select.from)?, time(&select.to)?);
        if from.max(to) > last {
            return Err("out of CEL's reach".to_owned());
        }
        // The operator keeps milliseconds, CEL compares nanoseconds.
        let fine = (from, beyond_millis(&select.from)) < (to, beyond_millis(&select.to));
        if fine { Ok(()) } else { Err("from is not before to".to_owned()) }
    };
    admission.compare("WebhookReplay", specs, operator).await;
}

const TYPES: &[&str] = &[
    "order.created",
    "a",
    "A.b-c_d/e",
    "注文.作成",
    "émoji.🎉",
    "*",
    "**",
    "a*",
    "*a",
    "a.*",
    "a.b.*",
    ".*",
    "..*",
    "a.*.b",
    "a.**",
    "",
    " ",
    "a b",
    " a",
    "a ",
    "a\tb",
    "a\n",
    "\u{0}",
    "a\u{7f}",
    "a\u{80}",
    "a\u{85}b",
    "a\u{9f}",
    "a\u{a0}b",
    "\u{a0}",
    "a\u{ad}b",
    "a\u{34f}b",
    "a\u{61c}b",
    "a\u{1680}b",
    "a\u{180e}b",
    "a\u{2000}",
    "a\u{200a}b",
    "a\u{200b}b",
    "a\u{200c}b",
    "a\u{200d}b",
    "a\u{200e}b",
    "a\u{2010}b",
    "a\u{2027}b",
    "a\u{2028}b",
    "a\u{2029}b",
    "a\u{202a}b",
    "a\u{202e}b",
    "a\u{202f}b",
    "a\u{2030}b",
    "a\u{205e}b",
    "a\u{205f}b",
    "a\u{2060}b",
    "a\u{2066}b",
    "a\u{2069}b",
    "a\u{206f}b",
    "a\u{2070}b",
    "a\u{3000}b",
    "a\u{3001}b",
    "a\u{fdcf}b",
    "a\u{fdd0}b",
    "a\u{fdef}b",
    "a\u{fdf0}b",
    "\u{feff}a",
    "a\u{fff8}b",
    "a\u{fff9}b",
    "a\u{fffd}b",
    "a\u{fffe}b",
    "a\u{ffff}b",
    "a\u{1fffd}b",
    "a\u{1fffe}b",
    "a\u{e0001}b",
    "a\u{e0080}b",
    "a\u{10fffd}b",
    "a\u{10ffff}b",
    "a\\b",
    "a\"b",
    "a'b",
    "$(a)",
    "${a}",
    "%00",
    "a]b",
    "a^b",
    "a-z",
];

fn types() -> Vec<String> {
    let long = [
        "x".repeat(256),
        "ä".repeat(256),
        "x".repeat(257),
        format!("{}.*", "x".repeat(254)),
        format!("{}.*", "x".repeat(255)),
    ];
    let generated = ["[a-z.*]{1,6}", "\\PC{1,8}", "[\\s\\S]{1,4}", "[a-z]{1,3}[\\x{80}-\\x{2070}][.]?[*]?"];
    let mut texts = strings(TYPES, &generated.map(|pattern| strategy(pattern)));
    texts.extend(long);
    texts
}

#[tokio::test]
async fn event_types_are_read_alike() {
    let admission = Admission::new().await;
    let texts = types();
    let operator = |webhook: &Webhook| {
        let (route, _) = compiled(webhook)?;
        let wanted = |pattern: &str| match pattern {
            "*" => route.filter.wants("anything"),
            prefix if prefix.ends_with(".*") => {
                route.filter.wants(&prefix.replace('*', "x"))
                    && !route.filter.wants(prefix.trim_end_matches('*'))
            }
            exact => route.filter.wants(exact) && !route.filter.wants(&format!("{exact}x")),
        };
        assert!(
            webhook.spec.event_types.iter().all(|pattern| wanted(pattern)),
            "{:?}",
            webhook.spec.event_types
        );
        Ok(())
    };
    let specs = cases(&texts, |text| webhook(json!({ "eventTypes": [text] })));
    admission.compare("Webhook", specs, operator).await;

    let times = json!({ "from": "2026-11-24T22:00:00Z", "to": "2026-11-25T22:00:00Z" });
    let specs = cases(&texts, |text| {
        let mut select = times.clone();
        select["eventTypes"] = json!([text]);
        json!({ "select": select })
    });
    let operator = |replay: &WebhookReplay| {
        let types = replay.spec.select.event_types.clone().unwrap_or_default();
        let _ = Filter::compile(&types);
        if types.iter().all(|one| is_pattern(one)) { Ok(()) } else { Err("no pattern".to_owned()) }
    };
    admission.compare("WebhookReplay", specs, operator).await;

    let specs = cases(&texts, |text| json!({ "webhookRef": { "name": "orders" }, "eventType": text }));
    let operator =
        |test: &WebhookTest| if is_exact(&test.spec.event_type) { Ok(()) } else { Err("no type".to_owned()) };
    admission.compare("WebhookTest", specs, operator).await;
}

#[tokio::test]
async fn headers_are_read_alike() {
    let admission = Admission::new().await;
    let names = [
        "X-Team",
        "x",
        "Host",
        "hOsT",
        "Content-Type",
        "Webhook-Id",
        "webhook",
        "Ce-Id",
        "ce",
        "Proxy-Authorization",
        "Date",
        "Datex",
        "TE",
        "",
        " X",
        "X ",
        "X:",
        "X Y",
        "X\n",
        "X\u{0}",
        "Ⅹ",
        "K",
        "ſ",
        "é",
        "!#$%&'*+-.^_`|~09",
        "(x)",
        "x/y",
        "x@y",
        "\"x\"",
        "x\u{212a}",
        "ho\u{17f}t",
    ];
    let generated = ["[!-~]{1,10}", "[A-Za-z][A-Za-z-]{0,12}", "\\PC{1,4}"];
    let mut texts = strings(&names, &generated.map(|pattern| strategy(pattern)));
    texts.extend(["x".repeat(128), "x".repeat(129)]);
    let header = |name: &str, value: &str| webhook(json!({ "headers": [{ "name": name, "value": value }] }));
    let mut specs = cases(&texts, |text| header(text, "value"));
    let values = [
        "",
        " ",
        "a",
        " a",
        "a ",
        "a b",
        "\t",
        "a\tb",
        "a\n",
        "a\r\nb: c",
        "é",
        "\u{0}",
        "\u{7f}",
        "~",
        "!",
        "\u{a0}",
        "a\u{a0}",
    ];
    let generated = ["[ -~]{0,8}", "\\PC{0,4}", "[!-~]{1,8}"];
    let mut texts = strings(&values, &generated.map(|pattern| strategy(pattern)));
    texts.extend(["v".repeat(4096), "v".repeat(4097)]);
    specs.extend(cases(&texts, |text| header("X-Team", text)));
    let operator = |webhook: &Webhook| {
        let (_, endpoint) = compiled(webhook)?;
        let (name, value) = &endpoint.ok_or("not compiled")?.headers[0];
        let said = &webhook.spec.headers[0];
        assert!(said.name.eq_ignore_ascii_case(name.as_str()), "{said:?}");
        assert_eq!(said.value.as_deref().map(str::as_bytes), Some(value.as_bytes()), "{said:?}");
        Ok(())
    };
    admission.compare("Webhook", specs, operator).await;
}

#[tokio::test]
async fn names_of_what_is_referred_to_are_taken_by_the_operator_too() {
    let admission = Admission::new().await;
    let listed = [
        "a", "a.b", "a-b", "a..b", ".a", "-a", "a-", "A", "a_b", "a/b", "", "é", "..", "ca.crt", "a b",
        "a\u{0}",
    ];
    let generated = ["[a-z0-9.-]{1,8}", "[-._a-zA-Z0-9]{1,8}", "\\PC{1,4}"];
    let mut texts = strings(&listed, &generated.map(|pattern| strategy(pattern)));
    texts.extend(["a".repeat(253), "a".repeat(254)]);
    let from = |name: &str, key: &str| {
        let source = json!({ "secretKeyRef": { "name": name, "key": key } });
        webhook(json!({ "headers": [{ "name": "X-Team", "valueFrom": source }],
            "signing": { "secretRefs": [{ "name": name, "key": key }] },
            "tls": { "caRef": { "kind": "ConfigMap", "name": name, "key": key },
                "clientCertificateRef": { "name": name } } }))
    };
    let specs =
        cases(&texts, |text| from(text, "key")).into_iter().chain(cases(&texts, |text| from("name", text)));
    let judged = stream::iter(specs).map(async |case| (admission.judge("Webhook", &case.spec).await, case));
    let judged: Vec<_> = judged.buffer_unordered(AT_ONCE).collect().await;
    let mut taken = 0;
    for (verdict, Case { what, .. }) in judged {
        let Verdict::Taken(object) = verdict else { continue };
        taken += 1;
        let webhook: Webhook = serde_json::from_value(object).unwrap();
        let compiled =
            compiled(&webhook).map(|(route, _)| route.endpoint.err().map(|unready| unready.reason));
        assert_eq!(compiled, Ok(Some("SecretNotFound")), "{what}");
    }
    assert!(taken >= 20, "{taken}");
}

/// Every spelling that parsers read differently, and good ones.
const URLS: &[&str] = &[
    "https://hooks.example.com",
    "https://hooks.example.com:8443/a/b?c=d&e=%20",
    "https://hooks.example.com?x",
    "https://e.xn--p1ai/@user:x;y,~!$'()*+=",
    "https://a-b.1c.d/",
    "https://x.localhost:1/",
    "https://127.0.0.1:65535/",
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:7f00:1]:8443/",
    "https://[2606:4700:0:0:0:0:0:1]/",
    "https://[1:2:3:4:5:6:7::]/",
    "https://[::2:3:4:5:6:7:8]/",
    "https://[1::8]/",
    "https://[1:2:3:4:5:6:7:8:9]/",
    "https://[1::2::3]/",
    "https://[:]/",
    "https://[:::]/",
    "https://[1:2]/",
    "https://[12345::]/",
    "https://[1:2:3:4:5:6:7:8::]/",
    "https://[::1:2:3:4:5:6:7:8]/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://0x7f.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://127.0.0.01/",
    "https://127/",
    "https://0/",
    "https://0x/",
    "https://4294967296/",
    "https://256.0.0.1/",
    "https://1.2.3.4.5/",
    "https://08.0.0.1/",
    "https://foo.1/",
    "https://foo.0x7f/",
    "https://127.0.0.1./",
    "https://127.0.0.1../",
    "https://１２７.0.0.1/",
    "https://127。0．0｡1/",
    "https://①②⑦.0.0.1/",
    "https://%31%32%37.0.0.1/",
    "https://127%2e0.0.1/",
    "https://%6c%6fcalhost/",
    "https://ex%41mple.com/",
    "https://Ⓛocalhost/",
    "https://loc\u{ad}alhost/",
    "https://loca\u{200b}lhost/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::127.0.0.1]/",
    "https://[2002:7f00:1::]/",
    "https://[fe80::1%25eth0]/",
    "https://[::ffff:127.1]/",
    "https://[::ffff:0177.0.0.1]/",
    "https://[::1]x/",
    "https://[]/",
    "https://[127.0.0.1]/",
    "https://[v1.a]/",
    "https://[00000::1]/",
    "https://[::FFFF:7F00:1]/",
    "https:127.0.0.1",
    "https:/127.0.0.1/",
    "https:///127.0.0.1/",
    "https:\\\\127.0.0.1\\",
    "https:example.com",
    "https://127.0.0.1\\@good.com/",
    "https://good.com#@127.0.0.1/",
    "https://good@127.0.0.1/",
    "https://good.com:443@127.0.0.1/",
    "https://a@b@127.0.0.1/",
    "https://good.com%23@127.0.0.1/",
    "https://@127.0.0.1/",
    "https://:@127.0.0.1/",
    "ht\ttps://example.com/",
    "https://exam\tple.com/",
    "https://example.com/\r\n",
    " https://example.com/",
    "https://example.com/ ",
    "\0https://example.com/",
    "https://localhost/",
    "https://localhost./",
    "https://kubernetes/",
    "https://metadata/",
    "https://instance-data/",
    "https://kubernetes.default.svc/",
    "https://metadata.google.internal/",
    "https://127.0.0.1.nip.io/",
    "https://bücher.example/",
    "https://XN--BCHER-KVA.example/",
    "https://xn--bcher-kva.example/",
    "https://-a.com/",
    "https://a-.com/",
    "https://a*b.com/",
    "https://a;b.com/",
    "https://a_b.com/",
    "https://a{b}.com/",
    "https://a\"b.com/",
    "https://example..com/",
    "https://.example.com/",
    "https://./",
    "https://",
    "https:///",
    "https://:443/",
    "https://?x",
    "https://@/",
    "https://example.com:/",
    "https://example.com:0443/",
    "https://example.com:0/",
    "https://example.com:1/",
    "https://example.com:65535/",
    "https://example.com:65536/",
    "//example.com/",
    "/path",
    "*",
    "http://example.com/",
    "HTTPS://example.com/",
    "",
    "https://example.com/%",
    "https://example.com/%4",
    "https://example.com/%zz",
    "https://example.com/a b",
    "https://example.com/é",
    "https://example.com/?a={b}",
    "https://example.com/?a=b?c",
    "https://example.com/[",
    "https://example.com/#",
    "https://example.com/..",
];

#[tokio::test]
async fn urls_are_read_alike() {
    let admission = Admission::new().await;
    let generated = [
        "https://[a-z0-9.:@%\\[\\]/?#\\\\é-]{0,24}",
        "https://\\[[0-9a-f:]{2,24}\\](:[0-9]{1,6})?/?",
        "https://([a-z0-9-]{1,6}[.]){0,3}[a-z0-9-]{1,6}(:[0-9]{1,6})?(/[!-~]{0,8})?",
        "https://([a-z]{1,6}[.]){1,3}[a-z]{1,6}(:[1-9][0-9]{0,4})?(/[a-z0-9%?&=._~-]{0,8})?",
        "https://([0-9]{1,3}[.]){3}[0-9]{1,3}/",
    ];
    let label = "a".repeat(63);
    let mut texts = strings(URLS, &generated.map(|pattern| strategy(pattern)));
    texts.extend([
        format!("https://{label}.com/"),
        format!("https://{label}a.com/"),
        format!("https://{label}.{label}.{label}.{}.com/", "b".repeat(57)),
        format!("https://{label}.{label}.{label}.{}.com/", "b".repeat(58)),
        format!("https://example.com/{}", "p".repeat(2048 - 20)),
        format!("https://example.com/{}", "p".repeat(2048 - 19)),
    ]);
    // Whether punycode can be decoded is what no rule of CEL can say: the operator alone judges that.
    texts.retain(|text| !text.contains("xn--") || URLS.contains(&text.as_str()));
    let operator = |webhook: &Webhook| {
        let (_, endpoint) = compiled(webhook)?;
        if let Some(endpoint) = endpoint {
            let (text, url) = (&webhook.spec.url, endpoint.target.url());
            let host = url.host_str().unwrap();
            let same = text["https://".len()..].starts_with(host) || host.starts_with('[');
            assert!(same && url.scheme() == "https", "{text:?} is read as {url}");
        }
        Ok(())
    };
    admission.compare("Webhook", cases(&texts, |text| webhook(json!({ "url": text }))), operator).await;
    for undecodable in ["https://xn--a.com/", "https://a.xn--a/"] {
        let verdict = admission.judge("Webhook", &webhook(json!({ "url": undecodable }))).await;
        let Verdict::Taken(object) = verdict else {
            panic!("{undecodable} is refused: the exception is none any more")
        };
        let why = compiled(&serde_json::from_value(object).unwrap()).err().unwrap();
        assert!(why.contains("punycode"), "{why}");
    }
}

#[tokio::test]
async fn numbers_are_read_alike() {
    let admission = Admission::new().await;
    let values = [
        "-1",
        "0",
        "1",
        "3",
        "20",
        "21",
        "25",
        "26",
        "64",
        "100",
        "101",
        "1024",
        "1025",
        "100000",
        "100001",
        "2592000",
        "2592001",
        "2147483647",
        "2147483648",
        "-2147483649",
        "9223372036854775807",
        "9223372036854775808",
        "1.0",
        "3.0",
        "1.5",
        "1e1",
        "1E2",
        "1e-1",
        "1e400",
        "-0",
        "-0.0",
        "\"3\"",
        "true",
        "[]",
        "{}",
        "null",
    ];
    let bounded: [(&str, fn(Value) -> Value, fn(&Webhook) -> i64, (i64, i64)); 6] = [
        ("maxRetries", |n| json!({ "maxRetries": n }), |hook| hook.spec.max_retries.into(), (0, 20)),
        ("maxInFlight", |n| json!({ "maxInFlight": n }), |hook| hook.spec.max_in_flight.into(), (1, 1024)),
        ("historyLimit", |n| json!({ "historyLimit": n }), |hook| hook.spec.history_limit.into(), (0, 25)),
        (
            "factor",
            |n| json!({ "backoff": { "factor": n } }),
            |hook| hook.spec.backoff.factor.into(),
            (1, 100),
        ),
        (
            "requests",
            |n| json!({ "rateLimit": { "requests": n } }),
            |hook| hook.spec.rate_limit.as_ref().map_or(1, |limit| limit.requests.into()),
            (1, 100_000),
        ),
        (
            "burst",
            |n| json!({ "rateLimit": { "requests": 1, "burst": n } }),
            |hook| hook.spec.rate_limit.as_ref().map_or(1, |limit| limit.burst.into()),
            (1, 100_000),
        ),
    ];
    for (field, spec, read, (least, most)) in bounded {
        for text in values {
            // What JSON cannot hold, no client of these can send.
            let Ok(value) = serde_json::from_str::<Value>(text) else { continue };
            let Verdict::Taken(object) = admission.judge("Webhook", &webhook(spec(value))).await else {
                continue;
            };
            let webhook: Webhook =
                serde_json::from_value(object).unwrap_or_else(|error| panic!("{field} {text}: {error}"));
            let number = read(&webhook);
            assert!((least..=most).contains(&number), "{field} {text}: {number}");
            assert!(compiled(&webhook).is_ok(), "{field} {text}");
            if let Ok(said) = text.parse::<f64>() {
                #[expect(clippy::cast_precision_loss, clippy::float_cmp, reason = "small and whole")]
                let same = said == number as f64;
                assert!(same, "{field} {text}: {number}");
            }
        }
    }
}

/// What the issue of a spec is about in each example that the documents show.
#[tokio::test]
async fn a_refusal_says_what_must_be_and_not_how_a_rule_failed() {
    let admission = Admission::new().await;
    let times = |from: &str, to: &str| json!({ "select": { "from": from, "to": to } });
    let good = "2026-11-24T22:00:00Z";
    for (kind, spec, says) in [
        ("Webhook", webhook(json!({ "timeout": "9999999h" })), "timeout must be a duration from 1s to 60s"),
        (
            "Webhook",
            webhook(json!({ "backoff": { "max": "9999999h" } })),
            "max must be a duration from 100ms to 168h",
        ),
        ("Webhook", webhook(json!({ "eventTypes": ["a\u{a0}b"] })), "characters that cannot be seen"),
        ("Webhook", webhook(json!({ "eventTypes": ["a\u{85}b"] })), "characters that cannot be seen"),
        (
            "WebhookTest",
            json!({ "webhookRef": { "name": "a" }, "eventType": "a\u{85}b" }),
            "characters that cannot be seen",
        ),
        ("WebhookReplay", times(good, "2026-02-30T00:00:00Z"), "to must be a time that exists"),
        (
            "WebhookReplay",
            times("2026-11-24t22:00:00z", "2026-11-25T22:00:00Z"),
            "from must be a time that exists",
        ),
        ("WebhookReplay", times(good, "2026-11-24T23:00:00+01:00"), "from must be before to"),
    ] {
        let Verdict::Refused(message) = admission.judge(kind, &spec).await else { panic!("{spec} is taken") };
        assert!(message.contains(says), "{spec}: {message}");
        assert!(!message.contains("error"), "{spec}: {message}");
    }
    let for_ever = admission.judge("WebhookReplay", &times(good, "9999-12-31T23:59:59Z")).await;
    assert!(matches!(for_ever, Verdict::Taken(_)));
    assert!(UnixMillis::parse("9999-12-31T23:59:59Z").is_some());
}
