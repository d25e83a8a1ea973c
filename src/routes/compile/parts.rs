//! The parts of an endpoint: each is made, or it is said why not.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::CertifiedKey;

use super::{REFERENCE_UNREADABLE, pem};
use crate::api::WebhookSpec;
use crate::api::rules::{RESERVED_HEADER_PREFIXES, RESERVED_HEADERS};
use crate::api::webhook::{CaKind, Header, SecretKeyRef};
use crate::model::address::Policy;
use crate::model::duration;
use crate::model::filter::is_pattern;
use crate::model::rate::RateLimit;
use crate::model::retry;
use crate::model::signature::HmacKey;
use crate::model::target::Target;
use crate::routes::references::{Data, Found, Reference, References};
use crate::routes::{ClientCertificate, Unready};

/// Longest name of a header.
const MAX_HEADER_NAME: usize = 128;
/// Longest value of a header, in bytes.
const MAX_HEADER: usize = 4096;

/// What the parts are made of.
pub(super) struct Input<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) spec: &'a WebhookSpec,
    pub(super) references: &'a References,
    pub(super) policy: &'a Policy,
}

/// Someone has to change the spec or what it refers to.
fn wrong(reason: &'static str, message: String) -> Unready {
    Unready { reason, message, stalled: true }
}

/// It may come by itself: other controllers, and people, create things in any order.
fn missing(reason: &'static str, message: String) -> Unready {
    Unready { reason, message, stalled: false }
}

fn invalid(message: &str) -> Unready {
    wrong("SpecInvalid", message.to_owned())
}

pub(super) fn target(input: &Input<'_>) -> Result<Target, Unready> {
    Target::parse(&input.spec.url).map_err(|error| wrong("UrlInvalid", error.to_string()))
}

/// What is wrong with an address that the URL spells out.
pub(super) fn denied(input: &Input<'_>, target: &Target) -> Option<Unready> {
    let denied = target.judge(input.policy).err()?;
    let Input { namespace, name, .. } = input;
    let message = format!(
        "spec.url is not allowed: {denied}; change it (kubectl -n {namespace} edit hook {name}), or ask the platform team \
         to {}",
        denied.remedy()
    );
    Some(wrong("AddressDenied", message))
}

pub(super) fn event_types(spec: &WebhookSpec) -> Result<(), Unready> {
    let fit =
        (1..=64).contains(&spec.event_types.len()) && spec.event_types.iter().all(|one| is_pattern(one));
    fit.then_some(()).ok_or_else(|| {
        invalid(
            "spec.eventTypes must be 1 to 64, each exact (order.created), a prefix (invoice.*), or * for all, without \
             spaces and characters that cannot be seen",
        )
    })
}

pub(super) fn timeout(spec: &WebhookSpec) -> Result<Duration, Unready> {
    duration::within(&spec.timeout, Duration::from_secs(1)..=Duration::from_mins(1))
        .ok_or_else(|| invalid("spec.timeout must be a duration from 1s to 60s"))
}

pub(super) fn retry(spec: &WebhookSpec) -> Result<retry::Policy, Unready> {
    let shortest = Duration::from_millis(100);
    let initial = duration::within(&spec.backoff.initial, shortest..=Duration::from_hours(24));
    let max = duration::within(&spec.backoff.max, shortest..=Duration::from_hours(168));
    let (Some(initial), Some(max)) = (initial, max) else {
        return Err(invalid(
            "spec.backoff must have durations such as 10s: initial from 100ms to 24h, max from 100ms to 168h",
        ));
    };
    if max < initial {
        return Err(invalid("spec.backoff.max must be at least as long as spec.backoff.initial"));
    }
    Ok(retry::Policy {
        max_retries: u32::try_from(spec.max_retries).unwrap_or(0),
        initial,
        factor: u32::try_from(spec.backoff.factor).unwrap_or(1).max(1),
        max,
    })
}

pub(super) fn rate_limit(spec: &WebhookSpec) -> Result<Option<RateLimit>, Unready> {
    let read = |limit| {
        super::rate_limit(limit)
            .ok_or_else(|| invalid("spec.rateLimit.per must be a duration from 1s to 24h"))
    };
    spec.rate_limit.as_ref().map(read).transpose()
}

/// The headers in the order of the spec; what comes from Secrets goes into `masks`, too.
pub(super) fn headers(
    input: &Input<'_>,
    masks: &mut Vec<Vec<u8>>,
) -> Vec<Result<(HeaderName, HeaderValue), Unready>> {
    input.spec.headers.iter().map(|header| one_header(input, header, masks)).collect()
}

fn one_header(
    input: &Input<'_>,
    header: &Header,
    masks: &mut Vec<Vec<u8>>,
) -> Result<(HeaderName, HeaderValue), Unready> {
    let lower = header.name.to_ascii_lowercase();
    let reserved = RESERVED_HEADERS.contains(&lower.as_str())
        || RESERVED_HEADER_PREFIXES.iter().any(|prefix| lower.starts_with(prefix));
    if reserved {
        return Err(invalid("spec.headers must not have names that Hookwright or HTTP sets itself"));
    }
    let fits = header.name.len() <= MAX_HEADER_NAME;
    let name = HeaderName::from_bytes(header.name.as_bytes()).ok().filter(|_| fits).ok_or_else(|| {
        invalid("spec.headers must have names of at most 128 letters, digits and any of !#$%&'*+-.^_`|~")
    })?;
    match (&header.value, &header.value_from) {
        (Some(value), None) => {
            let value = Some(value).filter(|value| value.trim_ascii() == **value);
            let value = value.and_then(|value| printable(value.as_bytes())).ok_or_else(|| {
                let must = "must be printable ASCII of at most 4096 characters without spaces at its ends";
                wrong("HeaderValueInvalid", format!("the value of header {name} {must}"))
            })?;
            Ok((name, value))
        }
        (None, Some(source)) => {
            let key = &source.secret_key_ref;
            let bytes = secret_value(input, key, Sample::Value)?.trim_ascii();
            let mut value = printable(bytes).ok_or_else(|| {
                wrong(
                    "HeaderValueInvalid",
                    format!(
                        "Secret {:?}, key {:?}, which is the value of header {name}, must be printable ASCII of at \
                         most {MAX_HEADER} bytes; {}",
                        key.name,
                        key.key,
                        write_key(input.namespace, key, Sample::Value)
                    ),
                )
            })?;
            value.set_sensitive(true);
            masks.push(bytes.to_vec());
            Ok((name, value))
        }
        (None, None) | (Some(_), Some(_)) => {
            Err(invalid("each of spec.headers must have exactly one of value and valueFrom"))
        }
    }
}

fn printable(bytes: &[u8]) -> Option<HeaderValue> {
    let fits = bytes.len() <= MAX_HEADER && bytes.iter().all(|byte| (0x20..0x7f).contains(byte));
    fits.then(|| HeaderValue::from_bytes(bytes).ok()).flatten()
}

/// The keys that sign, in the order of the spec; they go into `masks`, too, although they are not sent: a receiver
/// knows them.
pub(super) fn hmac_keys(input: &Input<'_>, masks: &mut Vec<Vec<u8>>) -> Vec<Result<HmacKey, Unready>> {
    let refs = input.spec.signing.iter().flat_map(|signing| &signing.secret_refs);
    let keys = refs.map(|key| {
        let value = secret_value(input, key, Sample::SigningKey)?;
        let parsed = HmacKey::parse(value).map_err(|error| {
            wrong(
                "SecretMalformed",
                format!(
                    "Secret {:?}, key {:?}: the signing key {error}; {}",
                    key.name,
                    key.key,
                    mend_signing_key(input.namespace, key, value)
                ),
            )
        })?;
        masks.extend(parsed.secrets().map(<[u8]>::to_vec));
        Ok(parsed)
    });
    keys.collect()
}

/// How to mend a key that a receiver may know: what is there is kept, and never written over with another.
fn mend_signing_key(namespace: &str, key: &SecretKeyRef, value: &[u8]) -> String {
    let SecretKeyRef { name, key } = key;
    let text: Vec<u8> = value.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if HmacKey::parse(&[b"whsec_", text.as_slice()].concat()).is_err() {
        return format!(
            "nobody but the receiver can say what is meant, so write the key that it has, as whsec_ and the base64 of its \
             bytes: kubectl -n {namespace} edit secret {name}"
        );
    }
    format!(
        "if that is all that is missing, this keeps the key: kubectl -n {namespace} patch secret {name} --type=merge -p \
         \"{{\\\"stringData\\\":{{\\\"{key}\\\":\\\"whsec_$(kubectl -n {namespace} get secret {name} \
         -o go-template='{{{{index .data \"{key}\" | base64decode}}}}' | tr -d '[:space:]')\\\"}}}}\""
    )
}

/// What the command that mends a Secret writes into it.
#[derive(Clone, Copy)]
enum Sample {
    Value,
    SigningKey,
    CaFile,
}

impl Sample {
    /// In a shell, within double quotes.
    fn text(self) -> &'static str {
        match self {
            Self::Value => "VALUE",
            Self::SigningKey => "whsec_$(openssl rand -base64 32)",
            Self::CaFile => "$(base64 -w0 ca.crt)",
        }
    }
}

pub(super) fn ca(input: &Input<'_>) -> Result<Option<Arc<[u8]>>, Unready> {
    let Some(ca) = input.spec.tls.as_ref().and_then(|tls| tls.ca_ref.as_ref()) else { return Ok(None) };
    let pem = match ca.kind {
        CaKind::Secret => {
            let key = SecretKeyRef { name: ca.name.clone(), key: ca.key.clone() };
            secret_value(input, &key, Sample::CaFile)?
        }
        CaKind::ConfigMap => config_map_value(input, &ca.name, &ca.key)?,
    };
    let Err(why) = pem::roots(pem) else { return Ok(Some(pem.into())) };
    let kind = match ca.kind {
        CaKind::ConfigMap => "ConfigMap",
        CaKind::Secret => "Secret",
    };
    Err(wrong(
        "CaMalformed",
        format!(
            "{kind} {:?}, key {:?}, must be one or more CA certificates in PEM; it {why}: kubectl -n {} edit {} {}",
            ca.name,
            ca.key,
            input.namespace,
            kind.to_ascii_lowercase(),
            ca.name
        ),
    ))
}

pub(super) fn client_certificate(input: &Input<'_>) -> Result<Option<ClientCertificate>, Unready> {
    let reference = input.spec.tls.as_ref().and_then(|tls| tls.client_certificate_ref.as_ref());
    let Some(reference) = reference else { return Ok(None) };
    let (namespace, name) = (input.namespace, &reference.name);
    let create = format!("kubectl -n {namespace} create secret tls {name} --cert=tls.crt --key=tls.key");
    let data = secret(input, name, &create)?;
    let mend = with_apply(namespace, &create);
    let (Some(chain), Some(key)) = (data.0.get("tls.crt"), data.0.get("tls.key")) else {
        let text = format!("Secret {name:?} must have the keys tls.crt and tls.key: {mend}");
        return Err(missing("SecretKeyMissing", text));
    };
    if let Err(why) = pair(chain, key) {
        let text = format!(
            "Secret {name:?}: tls.crt and tls.key must be a certificate chain and its private key in PEM; {why}: {mend}"
        );
        return Err(wrong("ClientCertificateMalformed", text));
    }
    Ok(Some((chain.as_slice().into(), key.as_slice().into())))
}

/// Whether this is a chain and its key; otherwise what is wrong.
fn pair(chain: &[u8], key: &[u8]) -> Result<(), String> {
    let certificates = pem::certificates(chain).map_err(|why| format!("tls.crt {why}"))?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|_| "tls.key holds no private key in PEM".to_owned())?;
    let pair = CertifiedKey::from_der(certificates, key, &rustls::crypto::aws_lc_rs::default_provider());
    pair.map(drop).map_err(|error| {
        let why = match error {
            rustls::Error::InconsistentKeys(_) => "tls.key is not the key of tls.crt",
            rustls::Error::InvalidCertificate(_) => "the first certificate of tls.crt cannot be read",
            _ => "tls.key is of a kind that is not supported (use RSA of 2048 bits or more, P-256, P-384 or Ed25519)",
        };
        why.to_owned()
    })
}

/// The command makes anew what is there, in place: nothing beside what it names is lost, nothing at all if it fails.
fn with_apply(namespace: &str, create: &str) -> String {
    format!("{create} --dry-run=client -o yaml | kubectl -n {namespace} apply -f -")
}

/// The value of a Secret's key.
fn secret_value<'a>(input: &Input<'a>, key: &SecretKeyRef, sample: Sample) -> Result<&'a [u8], Unready> {
    let SecretKeyRef { name, key: data_key } = key;
    let namespace = input.namespace;
    let from = match sample {
        Sample::CaFile => format!("--from-file={data_key}=ca.crt"),
        Sample::Value | Sample::SigningKey => format!("--from-literal={data_key}=\"{}\"", sample.text()),
    };
    let data = secret(input, name, &format!("kubectl -n {namespace} create secret generic {name} {from}"))?;
    data.0.get(data_key).map(Vec::as_slice).ok_or_else(|| {
        let mend = write_key(namespace, key, sample);
        missing("SecretKeyMissing", format!("Secret {name:?} has no key {data_key:?}; {mend}"))
    })
}

fn write_key(namespace: &str, key: &SecretKeyRef, sample: Sample) -> String {
    let SecretKeyRef { name, key } = key;
    let (field, text) = match sample {
        Sample::CaFile => ("data", sample.text()),
        Sample::Value | Sample::SigningKey => ("stringData", sample.text()),
    };
    format!(
        "write it: kubectl -n {namespace} patch secret {name} --type=merge -p \
         \"{{\\\"{field}\\\":{{\\\"{key}\\\":\\\"{text}\\\"}}}}\""
    )
}

fn secret<'a>(input: &Input<'a>, name: &str, create: &str) -> Result<&'a Data, Unready> {
    let namespace = input.namespace;
    let label = format!("kubectl -n {namespace} label secret {name} hookwright.dev/use=true");
    match input.references.get(&Reference::secret(name)) {
        Found::Object(data, _) => Ok(data),
        Found::NotLabelled => Err(missing(
            "SecretNotLabelled",
            format!(
                "Secret {name:?} lacks the label hookwright.dev/use=true, without which no Secret is used: {label}"
            ),
        )),
        Found::Nothing => Err(missing(
            "SecretNotFound",
            format!("Secret {name:?} does not exist in namespace {namespace}: {create} && {label}"),
        )),
        Found::Unreadable(why) | Found::NoAnswer(why) => Err(missing(
            REFERENCE_UNREADABLE,
            format!("Secret {name:?} could not be read, trying again: {why}"),
        )),
    }
}

fn config_map_value<'a>(input: &Input<'a>, name: &str, key: &str) -> Result<&'a [u8], Unready> {
    let namespace = input.namespace;
    let create = format!("kubectl -n {namespace} create configmap {name} --from-file={key}=ca.crt");
    let data = match input.references.get(&Reference::config_map(name)) {
        Found::Object(data, _) => data,
        Found::Nothing | Found::NotLabelled => {
            let text = format!("ConfigMap {name:?} does not exist in namespace {namespace}: {create}");
            return Err(missing("CaNotFound", text));
        }
        Found::Unreadable(why) | Found::NoAnswer(why) => {
            let text = format!("ConfigMap {name:?} could not be read, trying again: {why}");
            return Err(missing(REFERENCE_UNREADABLE, text));
        }
    };
    data.0.get(key).map(Vec::as_slice).ok_or_else(|| {
        let mend = with_apply(namespace, &create);
        missing("CaNotFound", format!("ConfigMap {name:?} has no key {key:?}: {mend}"))
    })
}
