//! Verifies what a receiver got with implementations that the product does not use: the official
//! Standard Webhooks library for `v1`, ed25519-dalek for `v1a`.

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, VerifyingKey};

use crate::receiver::Request;

/// Verifies the `v1a` signature of a request with the Webhook's `status.publicKey`.
pub fn verify_v1a(request: &Request, public_key: &str) -> anyhow::Result<()> {
    let key = STANDARD.decode(public_key.strip_prefix("whpk_").context("a public key begins with whpk_")?)?;
    let key = VerifyingKey::from_bytes(key.as_slice().try_into()?)?;
    let header = |name: &str| request.header(name).with_context(|| format!("the request has no {name}"));
    let signatures = header("webhook-signature")?;
    let text =
        signatures.split(' ').find_map(|each| each.strip_prefix("v1a,")).context("no v1a signature")?;
    let signature = Signature::from_slice(&STANDARD.decode(text)?)?;
    let mut signed = format!("{}.{}.", header("webhook-id")?, header("webhook-timestamp")?).into_bytes();
    signed.extend_from_slice(&request.body);
    Ok(key.verify_strict(&signed, &signature)?)
}

/// Verifies a `v1` signature of a request with a secret (`whsec_...`); the body must be UTF-8.
pub fn verify_v1(request: &Request, secret: &str) -> anyhow::Result<()> {
    let mut headers = http::HeaderMap::new();
    for (name, value) in &request.headers {
        headers.append(http::HeaderName::from_bytes(name.as_bytes())?, http::HeaderValue::from_str(value)?);
    }
    Ok(standardwebhooks::Webhook::new(secret)?.verify(&request.body, &headers)?)
}
