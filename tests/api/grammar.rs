//! Admission and the operator have one grammar: what a real kube-apiserver takes, the operator's own parsers take, with
//! the same meaning, and what it refuses they refuse. Strings that nobody gave are thrown at both.

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
use proptest::prelude::*;
use serde_json::{Value, json};

use super::admission::{AT_ONCE, Admission, Case, Verdict, cases, strings};
use super::spellings::{DURATIONS, TIMES, TYPES, URLS};

fn webhook(changes: &Value) -> Value {
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

fn durations() -> Vec<String> {
    let generated = [
        "([0-9]{1,8}(ms|s|m|h)){1,4}",
        "[1-9][0-9]?(s|m)",
        "[0-9]{1,3}h[0-5]?[0-9]m",
        "[0-9]{1,4}[.,]?[0-9]{0,3} ?(ms|s|m|h|d|us|µs|ns|S|H)",
        "\\PC{1,6}",
    ];
    strings(DURATIONS, &generated.map(strategy))
}

fn strategy(pattern: &str) -> BoxedStrategy<String> {
    proptest::string::string_regex(pattern).unwrap().boxed()
}

#[tokio::test]
async fn durations_are_read_alike() {
    let admission = Admission::new().await;
    let texts = durations();
    let mut specs = cases(&texts, |text| webhook(&json!({ "timeout": text })));
    specs.extend(cases(&texts, |text| webhook(&json!({ "backoff": { "initial": text, "max": "168h" } }))));
    specs.extend(cases(&texts, |text| webhook(&json!({ "backoff": { "initial": "100ms", "max": text } }))));
    specs.extend(cases(&texts, |text| webhook(&json!({ "rateLimit": { "requests": 1, "per": text } }))));
    let order = |(initial, max): (&str, &str)| {
        let what = format!("{initial} before {max}");
        Case { what, spec: webhook(&json!({ "backoff": { "initial": initial, "max": max } })) }
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
    let texts = strings(TIMES, &generated.map(strategy));
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

fn types() -> Vec<String> {
    let long = [
        "x".repeat(256),
        "ä".repeat(256),
        "x".repeat(257),
        format!("{}.*", "x".repeat(254)),
        format!("{}.*", "x".repeat(255)),
    ];
    let generated = ["[a-z.*]{1,6}", "\\PC{1,8}", "[\\s\\S]{1,4}", "[a-z]{1,3}[\\x{80}-\\x{2070}][.]?[*]?"];
    let mut texts = strings(TYPES, &generated.map(strategy));
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
    let specs = cases(&texts, |text| webhook(&json!({ "eventTypes": [text] })));
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
    let mut texts = strings(&names, &generated.map(strategy));
    texts.extend(["x".repeat(128), "x".repeat(129)]);
    let header = |name: &str, value: &str| webhook(&json!({ "headers": [{ "name": name, "value": value }] }));
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
    let mut texts = strings(&values, &generated.map(strategy));
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
    let mut texts = strings(&listed, &generated.map(strategy));
    texts.extend(["a".repeat(253), "a".repeat(254)]);
    let from = |name: &str, key: &str| {
        let source = json!({ "secretKeyRef": { "name": name, "key": key } });
        webhook(&json!({ "headers": [{ "name": "X-Team", "valueFrom": source }],
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
    let mut texts = strings(URLS, &generated.map(strategy));
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
    admission.compare("Webhook", cases(&texts, |text| webhook(&json!({ "url": text }))), operator).await;
    for undecodable in ["https://xn--a.com/", "https://a.xn--a/"] {
        let verdict = admission.judge("Webhook", &webhook(&json!({ "url": undecodable }))).await;
        let Verdict::Taken(object) = verdict else {
            panic!("{undecodable} is refused: the exception is none any more")
        };
        let why = compiled(&serde_json::from_value(object).unwrap()).err().unwrap();
        assert!(why.contains("punycode"), "{why}");
    }
}

/// A number of a spec: its name, a spec with it, where it is read, and its bounds.
type Bounded = (&'static str, fn(Value) -> Value, fn(&Webhook) -> i64, (i64, i64));

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
    let bounded: [Bounded; 6] = [
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
            let Verdict::Taken(object) = admission.judge("Webhook", &webhook(&spec(value))).await else {
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
        ("Webhook", webhook(&json!({ "timeout": "9999999h" })), "timeout must be a duration from 1s to 60s"),
        (
            "Webhook",
            webhook(&json!({ "backoff": { "max": "9999999h" } })),
            "max must be a duration from 100ms to 168h",
        ),
        ("Webhook", webhook(&json!({ "eventTypes": ["a\u{a0}b"] })), "characters that cannot be seen"),
        ("Webhook", webhook(&json!({ "eventTypes": ["a\u{85}b"] })), "characters that cannot be seen"),
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
