//! Standard Webhooks signatures, and the keys for them.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use aws_lc_rs::{hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Why a Secret's value is no HMAC key. Never says any part of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Another prefix, or none.
    #[error("must start with whsec_")]
    Prefix,
    /// `whsk_` or `whpk_`.
    #[error("is an asymmetric key; must start with whsec_")]
    Asymmetric,
    /// What follows the prefix is not standard base64 with padding.
    #[error("must be standard padded base64 after whsec_")]
    NotBase64,
    /// Decoded length.
    #[error("must be base64 of 24 to 64 bytes, has {0}")]
    Length(usize),
}

/// A symmetric key by Standard Webhooks (`whsec_…`).
pub struct HmacKey {
    key: hmac::Key,
    text: Box<str>,
    raw: Box<[u8]>,
}

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacKey")
    }
}

impl HmacKey {
    /// Reads a Secret's value: `whsec_` and the base64 of 24 to 64 bytes. White space around it is ignored, as
    /// a file with a final line feed has it.
    pub fn parse(value: &[u8]) -> Result<Self, KeyError> {
        let value = value.trim_ascii();
        if value.starts_with(b"whsk_") || value.starts_with(b"whpk_") {
            return Err(KeyError::Asymmetric);
        }
        let encoded = value.strip_prefix(b"whsec_").ok_or(KeyError::Prefix)?;
        let raw = STANDARD.decode(encoded).map_err(|_| KeyError::NotBase64)?;
        if !(24..=64).contains(&raw.len()) {
            return Err(KeyError::Length(raw.len()));
        }
        let text = std::str::from_utf8(encoded).map_err(|_| KeyError::NotBase64)?.into();
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &raw), text, raw: raw.into() })
    }

    /// Spellings of the secret that an answer must not keep: the base64 text and the bytes themselves.
    pub fn secrets(&self) -> [&[u8]; 2] {
        [self.text.as_bytes(), &self.raw]
    }
}

struct SeedLength;

impl hkdf::KeyType for SeedLength {
    fn len(&self) -> usize {
        32
    }
}

/// The ed25519 key of one Webhook, derived from the installation's master key and the Webhook's name: who
/// makes a Webhook of that name anew gets the key that its receivers know, and nobody else can.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

impl SigningKey {
    /// HKDF-SHA256 without salt, with the info `hookwright v1a NAMESPACE/NAME`, gives the seed.
    ///
    /// # Panics
    ///
    /// Never: HKDF can make 32 bytes, and every 32 bytes are a seed.
    pub fn derive(master: &[u8; 32], namespace: &str, name: &str) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(master);
        let info = [b"hookwright v1a ".as_slice(), namespace.as_bytes(), b"/", name.as_bytes()];
        let mut seed = [0; 32];
        #[expect(
            clippy::expect_used,
            reason = "32 bytes are within HKDF's reach, and any 32 bytes are a seed"
        )]
        let pair = prk
            .expand(&info, SeedLength)
            .and_then(|okm| okm.fill(&mut seed))
            .ok()
            .and_then(|()| Ed25519KeyPair::from_seed_unchecked(&seed).ok())
            .expect("HKDF gives 32 bytes, and ed25519 takes them");
        Self(pair)
    }

    /// As receivers are told it: `whpk_` and the base64 of the 32 bytes.
    pub fn public_key(&self) -> String {
        format!("whpk_{}", STANDARD.encode(self.0.public_key()))
    }
}

/// Signs deliveries of one Webhook: with its ed25519 key (`v1a`) and every HMAC key (`v1`).
pub struct Signer {
    asymmetric: SigningKey,
    symmetric: Vec<HmacKey>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// Signs with these keys, in this order.
    pub fn new(asymmetric: SigningKey, symmetric: Vec<HmacKey>) -> Self {
        Self { asymmetric, symmetric }
    }

    /// `status.publicKey`.
    pub fn public_key(&self) -> String {
        self.asymmetric.public_key()
    }

    /// The value of `webhook-signature`: `v1a,…` and a `v1,…` for each HMAC key, separated by a space.
    ///
    /// `id` must hold no `.`, or two messages could have the same signed bytes.
    pub fn sign(&self, id: &str, timestamp_secs: i64, body: &[u8]) -> String {
        let head = format!("{id}.{timestamp_secs}.");
        let mut header = String::with_capacity(92 + 48 * self.symmetric.len());
        let mut message = Vec::with_capacity(head.len() + body.len());
        message.extend_from_slice(head.as_bytes());
        message.extend_from_slice(body);
        header.push_str("v1a,");
        STANDARD.encode_string(self.asymmetric.0.sign(&message), &mut header);
        for key in &self.symmetric {
            header.push_str(" v1,");
            STANDARD.encode_string(hmac::sign(&key.key, &message), &mut header);
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "msg_hw0000000000000000000001";
    const AT: i64 = 1_700_000_000;
    const A: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    const B: &str =
        "whsec_QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl9gYWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+fw==";
    const C: &str = "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

    fn master() -> [u8; 32] {
        std::array::from_fn(|at| u8::try_from(at).unwrap())
    }

    fn body(name: &str) -> Vec<u8> {
        match name {
            "empty" => Vec::new(),
            "ascii" => br#"{"type":"order.created","data":{"id":1}}"#.to_vec(),
            "utf8" => r#"{"name":"Zoë","city":"東京","e":"😀"}"#.as_bytes().to_vec(),
            "bytes" => (0..4).flat_map(|_| 0..=255).collect(),
            "newline" => b"{\"a\":1}\n".to_vec(),
            other => panic!("no body {other}"),
        }
    }

    fn key(text: &str) -> HmacKey {
        HmacKey::parse(text.as_bytes()).unwrap()
    }

    fn signed(keys: &[&str], body: &[u8]) -> Vec<String> {
        let keys = keys.iter().map(|text| key(text)).collect();
        let signer = Signer::new(SigningKey::derive(&master(), "team-a", "orders"), keys);
        signer.sign(ID, AT, body).split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn v1_gives_the_signatures_of_the_reference() {
        for (name, with_a, with_b) in [
            (
                "empty",
                "bB5bvOwCR5+UmVjkD16xk57i0+9rsnONEkYn5FkMSIE=",
                "CiLeh36Vd0ENgDwqbDYRyGnuaVKoq8VAIrq1tUBgs6o=",
            ),
            (
                "ascii",
                "lZm8Bb6qjkVw/S89z/nZwwtALzLgpsTcKImS8uNncT8=",
                "LJJ3R5M07xm9SiC3fQv81IhjS1HETy2/Prz+bAeIFmM=",
            ),
            (
                "utf8",
                "euii6bXR/d78relVDrOhcbHeDhfcOH60f1NpWqZNxns=",
                "+RwHWowODX9Z6gYWynLo8unNaHgvEXZuCiq49wPYlmE=",
            ),
            (
                "bytes",
                "zPRDAkZmKF+rbjnlNPDd2cdCEVMmxZxTFB9Syso4WaY=",
                "TAwgwVdW44m0s8PmOFJfcyZk+a3E4hJmOXaPgelogKA=",
            ),
            (
                "newline",
                "67/8LGHjOINUsRMzZzAwGetHTvvWQZ+E4pVySZR5zTk=",
                "uA2ilw9wtpR4cjfsuJ7LUVkqo7t8R4Q96UKNGaFp5sY=",
            ),
        ] {
            let signed = signed(&[A, B], &body(name));
            assert_eq!(signed[1..], [format!("v1,{with_a}"), format!("v1,{with_b}")], "{name}");
        }
        assert_eq!(signed(&[C], b"")[1], "v1,+P3OZmUQDctpMY0BzIGjwklb4mTCQdovMKFYYILz1Rw=");
        assert_eq!(signed(&[C], &body("ascii"))[1], "v1,AMNXCZAwfCRVCrN0Ctzfvv85Fv2D+JWE1H/80m9Bemg=");
    }

    #[test]
    fn v1_gives_the_signature_of_the_official_libraries() {
        let keys = vec![key("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")];
        let signer = Signer::new(SigningKey::derive(&master(), "team-a", "orders"), keys);
        let header = signer.sign(
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            br#"{"email":"test@example.com","username":"test_user"}"#,
        );
        assert_eq!(header.split(' ').nth(1), Some("v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="));
    }

    #[test]
    fn v1a_gives_the_keys_and_signatures_of_the_reference() {
        let orders = |namespace| SigningKey::derive(&master(), namespace, "orders").public_key();
        assert_eq!(orders("team-a"), "whpk_r+e28lCQvsQUMmnD7xjKI+XIvFsi7iJ0WYnNQ2c/wJA=");
        assert_eq!(orders("team-b"), "whpk_zpG8w4lBYrtj4n4Xf0Vx4UQ5sm/vamOyBaGB+p8wTF4=");
        for (name, signature) in [
            (
                "empty",
                "Whn0mEiT/8aGFnaENNQ1maUa61DmLN5tvS0WYx6JSQ7r9cquWdwaOqmvVz46Z/XcnKHZ85Abnl5AY2oPWN8uCg==",
            ),
            (
                "ascii",
                "wWdTqUZuXZPB3vKN44bKNSbfMtaoV5zeNicuI1JfDOU1j5cqMhLlXLSfdMwL0HimYT8gAasd4MytgSAatEFeBA==",
            ),
            (
                "utf8",
                "b0m92ZiMbHU6/UVMBYYqry6nYoDL22SAX5R6UoWaT3up7OVqskbLedEgapp/Q57elxlQhPMO/WSmlCMbsKyrBg==",
            ),
            (
                "bytes",
                "y2G1TrwXKgHYCuJI/48Ik4lsEXt0y685Wt9zJjY2RFd7RmrcWB5WyqSNPzkA0nfOmav4t6wD93ga8Dcgjz4vCg==",
            ),
            (
                "newline",
                "7pkx0JF7YeWX/m5Jm6CqTqUY3FncgtBYeGlh3CWxhT+WGW2A1nmZ4zS9Wpu3RvzhP3mw9BY4ktKTKZQaP9gQAw==",
            ),
        ] {
            assert_eq!(signed(&[], &body(name)), [format!("v1a,{signature}")], "{name}");
        }
    }

    #[test]
    fn an_independent_ed25519_verifies_v1a_and_refuses_another_webhooks_key() {
        let verifies = |namespace: &str, body: &[u8]| {
            let text = SigningKey::derive(&master(), namespace, "orders").public_key();
            let key = STANDARD.decode(text.strip_prefix("whpk_").unwrap()).unwrap();
            let key = ed25519_dalek::VerifyingKey::from_bytes(key.as_slice().try_into().unwrap()).unwrap();
            let signature = STANDARD.decode(signed(&[], body)[0].strip_prefix("v1a,").unwrap()).unwrap();
            let signature = ed25519_dalek::Signature::from_slice(&signature).unwrap();
            let message = [format!("{ID}.{AT}.").as_bytes(), body].concat();
            key.verify_strict(&message, &signature).is_ok()
        };
        assert!(verifies("team-a", &body("bytes")));
        assert!(!verifies("team-b", &body("bytes")));
    }

    #[test]
    fn a_receiver_that_holds_one_of_the_rotated_keys_accepts_and_one_with_another_does_not() {
        let signer = Signer::new(SigningKey::derive(&master(), "n", "w"), vec![key(A), key(B)]);
        let body = body("utf8");
        // The library compares the time with its own clock.
        let at = crate::clock::Clock::system().now().as_secs();
        let header = signer.sign(ID, at, &body);
        let mut headers = http::HeaderMap::new();
        headers.insert("webhook-id", ID.parse().unwrap());
        headers.insert("webhook-timestamp", at.to_string().parse().unwrap());
        headers.insert("webhook-signature", header.parse().unwrap());
        let accepts = |secret: &str| {
            let receiver = standardwebhooks::Webhook::new(secret).unwrap();
            receiver.verify(&body, &headers).is_ok()
        };
        assert_eq!([A, B, C].map(accepts), [true, true, false]);
    }

    #[test]
    fn a_secret_is_read_strictly_and_the_error_says_the_rule() {
        let raw = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes])).into_bytes();
        for good in [A.as_bytes().to_vec(), format!(" {B}\r\n").into_bytes(), C.into(), raw(24), raw(64)] {
            assert!(HmacKey::parse(&good).is_ok(), "{}", String::from_utf8_lossy(&good));
        }
        for (bad, error) in [
            (b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYX".to_vec(), KeyError::Prefix),
            (b"WHSEC_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX".to_vec(), KeyError::Prefix),
            (b"".to_vec(), KeyError::Prefix),
            (b"whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX".to_vec(), KeyError::Asymmetric),
            (b"whpk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX".to_vec(), KeyError::Asymmetric),
            (b"whsec_".to_vec(), KeyError::Length(0)),
            (b"whsec_!!!!".to_vec(), KeyError::NotBase64),
            (b"whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRY".to_vec(), KeyError::NotBase64),
            (b"whsec_-_-_AwQFBgcICQoLDA0ODxAREhMUFRYX".to_vec(), KeyError::NotBase64),
            (b"whsec_AAECAwQFBgcI\nCQoLDA0ODxAREhMUFRYX".to_vec(), KeyError::NotBase64),
            (b"whsec_whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX".to_vec(), KeyError::NotBase64),
            (raw(23), KeyError::Length(23)),
            (raw(65), KeyError::Length(65)),
        ] {
            assert_eq!(HmacKey::parse(&bad).err(), Some(error), "{}", String::from_utf8_lossy(&bad));
        }
        assert_eq!(KeyError::Length(23).to_string(), "must be base64 of 24 to 64 bytes, has 23");
    }

    #[test]
    fn no_key_shows_itself() {
        let signer = Signer::new(SigningKey::derive(&master(), "n", "w"), vec![key(A)]);
        let shown = format!("{signer:?} {:?} {:?}", key(A), SigningKey::derive(&master(), "n", "w"));
        assert_eq!(shown, "Signer HmacKey SigningKey");
    }
}
