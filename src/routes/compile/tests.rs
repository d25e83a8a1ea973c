use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::routes::references::{Data, Found, Reference};

const KEY: &str = "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
const UID: &str = "7d9f4d0e-5c1b-4d3e-9b53-6d2f5f2c0a11";

fn compiler() -> Compiler {
    let master = std::array::from_fn(|at| u8::try_from(at).unwrap());
    Compiler::new(MasterKey::new(master), Policy::default())
}

/// A Webhook with a simple spec in which `changes` (JSON merge) are made.
fn webhook(changes: &Value) -> Webhook {
    let mut spec = json!({ "url": "https://hooks.example.com/orders", "eventTypes": ["order.created"] });
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "hookwright.dev/v1alpha1",
        "kind": "Webhook",
        "metadata": { "name": "orders", "namespace": "team-a", "uid": UID, "generation": 3 },
        "spec": spec,
    }))
    .unwrap()
}

fn object(data: &[(&str, &[u8])]) -> Found {
    let data: BTreeMap<_, _> = data.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect();
    Found::Object(Data(data), "7".to_owned())
}

fn secret(name: &str, found: Found) -> References {
    [(Reference::secret(name), found)].into_iter().collect()
}

fn unready(changes: &Value, references: &References) -> Unready {
    compiler().compile(&webhook(changes), references).unwrap().unready().unwrap().clone()
}

fn signing() -> Value {
    json!({ "signing": { "secretRefs": [{ "name": "orders-signing", "key": "secret" }] } })
}

fn header_from_secret() -> Value {
    json!({ "headers": [{ "name": "Authorization",
        "valueFrom": { "secretKeyRef": { "name": "receiver", "key": "token" } } }] })
}

fn ca(kind: &str) -> Value {
    json!({ "tls": { "caRef": { "kind": kind, "name": "receiver-ca", "key": "ca.crt" } } })
}

fn client() -> Value {
    json!({ "tls": { "clientCertificateRef": { "name": "orders-client" } } })
}

fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["client.example.com".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_simple_webhook_has_an_endpoint_with_the_defaults() {
    let route = compiler().compile(&webhook(&json!({})), &References::default()).unwrap();
    assert_eq!(route.generation, 3);
    assert!(route.active);
    assert_eq!(route.webhook.to_string(), "team-a/orders");
    assert_eq!(&*route.public_key, "whpk_r+e28lCQvsQUMmnD7xjKI+XIvFsi7iJ0WYnNQ2c/wJA=");
    assert_eq!(route.gives_up_after, Some(Duration::from_secs(430)));
    let endpoint = route.endpoint.unwrap();
    assert_eq!(endpoint.timeout, Duration::from_secs(15));
    assert_eq!(endpoint.max_in_flight, 64);
    assert_eq!(endpoint.rate_limit, None);
    assert_eq!(endpoint.signer.public_key(), &*route.public_key);
    assert_eq!(endpoint.tls, TlsMaterial::default());
}

#[test]
fn everything_that_can_be_said_reaches_the_endpoint() {
    let (pem, key) = certificate();
    let spec = json!({
        "active": false,
        "headers": [
            { "name": "X-Team", "value": "a" },
            { "name": "Authorization", "valueFrom": { "secretKeyRef": { "name": "receiver", "key": "token" } } },
        ],
        "maxRetries": 1,
        "backoff": { "initial": "1s", "factor": 2, "max": "1m" },
        "timeout": "1m",
        "maxInFlight": 2,
        "rateLimit": { "requests": 10, "per": "1m", "burst": 3 },
        "signing": { "secretRefs": [{ "name": "orders-signing", "key": "secret" }] },
        "tls": {
            "caRef": { "kind": "ConfigMap", "name": "receiver-ca" },
            "clientCertificateRef": { "name": "orders-client" },
        },
    });
    let references: References = [
        (Reference::secret("receiver"), object(&[("token", b"Bearer s3cr3t-t0ken\n")])),
        (Reference::secret("orders-signing"), object(&[("secret", KEY.as_bytes())])),
        (Reference::config_map("receiver-ca"), object(&[("ca.crt", pem.as_bytes())])),
        (
            Reference::secret("orders-client"),
            object(&[("tls.crt", pem.as_bytes()), ("tls.key", key.as_bytes())]),
        ),
    ]
    .into_iter()
    .collect();
    let webhook = webhook(&spec);
    assert_eq!(crate::routes::references::of(&webhook.spec).len(), 4);
    let route = compiler().compile(&webhook, &references).unwrap();
    assert!(!route.active);
    let endpoint = route.endpoint.unwrap();
    let headers: Vec<_> =
        endpoint.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(headers, [("x-team", b"a".as_slice()), ("authorization", b"Bearer s3cr3t-t0ken")]);
    assert!(!endpoint.headers[0].1.is_sensitive() && endpoint.headers[1].1.is_sensitive());
    assert_eq!(endpoint.rate_limit.as_ref().unwrap().burst, 3);
    assert_eq!(endpoint.retry.initial, Duration::from_secs(1));
    let signature = endpoint.signer.sign("msg_hw0000000000000000000001", 1_700_000_000, b"");
    assert!(signature.ends_with(" v1,+P3OZmUQDctpMY0BzIGjwklb4mTCQdovMKFYYILz1Rw="), "{signature}");
    assert!(endpoint.tls.ca.is_some() && endpoint.tls.client.is_some());
    let debug = format!("{endpoint:?}");
    assert!(!debug.contains("s3cr3t"), "{debug}");
}

/// What is wrong: a sentence, the spec, what was found, the reason, whether it is stalled, and a part of the message.
type Case = (&'static str, Value, References, &'static str, bool, &'static str);

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let none = References::default;
    vec![
        (
            "a URL that two parsers read differently",
            json!({ "url": "https://127.1/" }),
            none(),
            "UrlInvalid",
            true,
            "host of spec.url must be",
        ),
        (
            "an address of a private network",
            json!({ "url": "https://10.0.0.1/" }),
            none(),
            "AddressDenied",
            true,
            "ask the platform team to allow it (--allow-cidr 10.0.0.1/32) or its range",
        ),
        (
            "a metadata service, which no range opens",
            json!({ "url": "https://169.254.169.254/latest" }),
            none(),
            "AddressDenied",
            true,
            "to allow exactly this address (--allow-cidr 169.254.169.254/32): no wider range opens it",
        ),
        (
            "a name that is this machine",
            json!({ "url": "https://a.localhost/" }),
            none(),
            "AddressDenied",
            true,
            "kubectl -n team-a edit hook orders",
        ),
        (
            "a time-out that the rules would have refused",
            json!({ "timeout": "2h" }),
            none(),
            "SpecInvalid",
            true,
            "spec.timeout must be",
        ),
        (
            "a header that Hookwright sets itself",
            json!({ "headers": [{ "name": "Webhook-Id", "value": "a" }] }),
            none(),
            "SpecInvalid",
            true,
            "spec.headers must not",
        ),
        (
            "a signing Secret that is not there",
            signing(),
            none(),
            "SecretNotFound",
            false,
            r#"kubectl -n team-a create secret generic orders-signing --from-literal=secret="whsec_$(openssl rand -base64 32)" && kubectl -n team-a label secret orders-signing hookwright.dev/use=true"#,
        ),
        (
            "a Secret without the label",
            signing(),
            secret("orders-signing", Found::NotLabelled),
            "SecretNotLabelled",
            false,
            "kubectl -n team-a label secret orders-signing hookwright.dev/use=true",
        ),
        (
            "a Secret without the key",
            signing(),
            secret("orders-signing", object(&[("other", b"x")])),
            "SecretKeyMissing",
            false,
            r#"kubectl -n team-a patch secret orders-signing --type=merge -p "{\"stringData\":{\"secret\":\"whsec_$(openssl rand -base64 32)\"}}""#,
        ),
        (
            "a signing key without its prefix",
            signing(),
            secret("orders-signing", object(&[("secret", b"canary-AAECAwQFBgcICQoLDA0ODxAREhMUFRYX")])),
            "SecretMalformed",
            true,
            r#"Secret "orders-signing", key "secret": the signing key must start with whsec_"#,
        ),
        (
            "a signing key that is too short",
            signing(),
            secret("orders-signing", object(&[("secret", b"whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRY=")])),
            "SecretMalformed",
            true,
            "must be base64 of 24 to 64 bytes, has 23",
        ),
        (
            "a signing key that lacks nothing but its prefix",
            signing(),
            secret("orders-signing", object(&[("secret", b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYX\n")])),
            "SecretMalformed",
            true,
            r#"-p "{\"stringData\":{\"secret\":\"whsec_$(kubectl -n team-a get secret orders-signing -o go-template='{{index .data "secret" | base64decode}}' | tr -d '[:space:]')\"}}""#,
        ),
        (
            "a signing key that only its receiver can correct",
            signing(),
            secret("orders-signing", object(&[("secret", b"whsec_canary")])),
            "SecretMalformed",
            true,
            "write the key that it has, as whsec_ and the base64 of its bytes: kubectl -n team-a edit secret orders-signing",
        ),
        (
            "a header value with a line break in the middle",
            header_from_secret(),
            secret("receiver", object(&[("token", b"canary\r\nX-Other: b")])),
            "HeaderValueInvalid",
            true,
            "which is the value of header authorization, must be printable ASCII",
        ),
        (
            "a header value that is too long",
            header_from_secret(),
            secret("receiver", object(&[("token", &[b'a'; 4097])])),
            "HeaderValueInvalid",
            true,
            "at most 4096 bytes",
        ),
        (
            "a CA that is not there",
            ca("ConfigMap"),
            none(),
            "CaNotFound",
            false,
            "kubectl -n team-a create configmap receiver-ca --from-file=ca.crt=ca.crt",
        ),
        (
            "a ConfigMap without the key",
            ca("ConfigMap"),
            [(Reference::config_map("receiver-ca"), object(&[]))].into_iter().collect(),
            "CaNotFound",
            false,
            r#"has no key "ca.crt": kubectl -n team-a create configmap receiver-ca --from-file=ca.crt=ca.crt --dry-run=client -o yaml | kubectl -n team-a apply -f -"#,
        ),
        (
            "a CA that is no certificate",
            ca("Secret"),
            secret("receiver-ca", object(&[("ca.crt", b"canary")])),
            "CaMalformed",
            true,
            "it is no PEM: it has no line -----BEGIN CERTIFICATE-----: kubectl -n team-a edit secret receiver-ca",
        ),
        (
            "a CA Secret that is not there",
            ca("Secret"),
            none(),
            "SecretNotFound",
            false,
            "create secret generic receiver-ca --from-file=ca.crt=ca.crt",
        ),
        (
            "a client certificate that is not there",
            client(),
            none(),
            "SecretNotFound",
            false,
            "kubectl -n team-a create secret tls orders-client --cert=tls.crt --key=tls.key",
        ),
        (
            "a client certificate without key",
            client(),
            secret("orders-client", object(&[("tls.crt", b"canary")])),
            "SecretKeyMissing",
            false,
            "must have the keys tls.crt and tls.key",
        ),
        (
            "a client certificate that is none",
            client(),
            secret("orders-client", object(&[("tls.crt", b"canary"), ("tls.key", b"canary")])),
            "ClientCertificateMalformed",
            true,
            "tls.crt is no PEM: it has no line -----BEGIN CERTIFICATE-----: kubectl -n team-a create secret tls orders-client",
        ),
        (
            "a Secret that could not be read",
            signing(),
            secret("orders-signing", Found::Unreadable("no answer in 5s".to_owned())),
            "ReferenceUnreadable",
            false,
            "could not be read, trying again: no answer in 5s",
        ),
    ]
}

#[test]
fn what_is_wrong_has_a_reason_and_the_command_that_mends_it_and_no_part_of_a_value() {
    for (sentence, spec, references, reason, stalled, part) in cases() {
        let unready = unready(&spec, &references);
        assert_eq!(unready.reason, reason, "{sentence}: {}", unready.message);
        assert_eq!(unready.stalled, stalled, "{sentence}");
        assert!(unready.message.contains(part), "{sentence}: {}", unready.message);
        assert!(!unready.message.contains("canary"), "{sentence}: {}", unready.message);
        assert!(!unready.message.contains("delete it"), "{sentence}: {}", unready.message);
        let is_random = unready.message.contains("openssl rand");
        assert!(!is_random || unready.reason != "SecretMalformed", "{sentence}: {}", unready.message);
    }
}

#[test]
fn a_client_certificate_of_another_key_is_refused() {
    let ((pem, _), (_, other)) = (certificate(), certificate());
    let found = object(&[("tls.crt", pem.as_bytes()), ("tls.key", other.as_bytes())]);
    let unready = unready(&client(), &secret("orders-client", found));
    assert_eq!(unready.reason, "ClientCertificateMalformed");
    assert!(unready.message.contains("tls.key is not the key of tls.crt"), "{}", unready.message);
}

#[test]
fn a_webhook_that_is_not_ready_still_matches_and_has_its_key() {
    let route = compiler().compile(&webhook(&signing()), &References::default()).unwrap();
    assert!(route.endpoint.is_err());
    assert!(route.filter.wants("order.created"));
    assert!(route.public_key.starts_with("whpk_"));
    let reading = compiler().reading(&webhook(&signing())).unwrap();
    assert_eq!(reading.endpoint.unwrap_err().reason, READING);
}

#[test]
fn a_webhook_with_a_denied_address_is_not_ready_and_makes_its_attempts() {
    for url in ["https://10.0.0.1/", "https://a.localhost/", "https://169.254.169.254/"] {
        let route = compiler().compile(&webhook(&json!({ "url": url })), &References::default()).unwrap();
        assert_eq!(route.unready().map(|unready| unready.reason), Some("AddressDenied"), "{url}");
        assert!(route.endpoint.is_ok(), "{url}");
        assert_eq!(crate::routes::hold::hold(&route, None), None, "{url}");
    }
}

#[test]
fn all_that_is_wrong_is_told_and_what_nobody_else_can_mend_gives_the_reason() {
    let mut spec = signing();
    spec["headers"] = header_from_secret()["headers"].clone();
    spec["url"] = json!("https://10.0.0.1/");
    let unready = unready(&spec, &References::default());
    assert_eq!((unready.reason, unready.stalled), ("AddressDenied", true));
    for part in ["10.0.0.0/8", "\"receiver\"", "\"orders-signing\""] {
        assert!(unready.message.contains(part), "{part} in {}", unready.message);
    }
}

#[test]
fn only_the_first_of_many_wrong_things_are_told() {
    let headers: Vec<_> = (0..32)
        .map(|number| {
            json!({ "name": format!("X-{number}"),
                "valueFrom": { "secretKeyRef": { "name": format!("s{number}"), "key": "k" } } })
        })
        .collect();
    let unready = unready(&json!({ "headers": headers }), &References::default());
    assert!(unready.message.ends_with("; and 29 more"), "{}", unready.message);
}

#[test]
fn what_comes_from_secrets_is_masked() {
    let mut spec = header_from_secret();
    spec["signing"] = signing()["signing"].clone();
    let references = [
        (Reference::secret("receiver"), object(&[("token", b"Bearer s3cr3t-t0ken\n")])),
        (Reference::secret("orders-signing"), object(&[("secret", KEY.as_bytes())])),
    ];
    let route = compiler().compile(&webhook(&spec), &references.into_iter().collect()).unwrap();
    let masks = &route.endpoint.unwrap().masks;
    let echo = format!("you sent s3cr3t-t0ken and know {KEY}");
    let kept = masks.apply(echo.as_bytes());
    assert!(!kept.contains("s3cr3t") && !kept.contains("ICEiIyQlJicoKSor"), "{kept}");
    assert!(kept.starts_with("you sent "), "{kept}");
}
