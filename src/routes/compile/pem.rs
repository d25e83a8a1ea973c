//! Certificates in PEM, or what exactly is wrong with the text. No part of it is repeated.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};

/// Largest text: no Secret and no ConfigMap holds more.
const MAX: usize = 1 << 20;

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// All certificates of a text, at least one; or what it is in place of that, to be read after "it".
pub(super) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if text.len() > MAX {
        return Err(format!("has {} bytes, and at most 1 MiB is read", text.len()));
    }
    if let Some(what) = other_encoding(text) {
        return Err(what.to_owned());
    }
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text) {
        let broken = |error| format!("is broken at {}: {}", which(text, found.len()), defect(&error));
        found.push(certificate.map_err(broken)?);
    }
    if found.is_empty() { Err(no_certificate(text).to_owned()) } else { Ok(found) }
}

/// Whether each certificate of a text can be a root; otherwise what it is, to be read after "it".
pub(super) fn roots(text: &[u8]) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for (at, certificate) in certificates(text)?.into_iter().enumerate() {
        if roots.add(certificate).is_err() {
            return Err(format!("is broken at {}: the PEM holds no X.509 certificate", which(text, at)));
        }
    }
    Ok(())
}

/// The text may be of another encoding altogether.
fn other_encoding(text: &[u8]) -> Option<&'static str> {
    match text.trim_ascii_start() {
        [] => Some("is empty"),
        [0xef, 0xbb, 0xbf, ..] => Some("begins with a byte order mark: save it as UTF-8 without one"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("is UTF-16: save it as UTF-8 without a byte order mark"),
        [0x30, 0x80..=0x84, ..] => Some(
            "is DER and not PEM: openssl x509 -inform DER -in FILE -out ca.crt makes PEM of a certificate",
        ),
        text if text.contains(&0) => Some("is binary and not PEM"),
        _ => None,
    }
}

/// The certificate with this number from 0, and where it begins.
fn which(text: &[u8], at: usize) -> String {
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    let begins: Vec<_> =
        lines.filter(|(_, line)| line.starts_with(BEGIN)).map(|(line, _)| line + 1).collect();
    let line = begins.get(at).map_or_else(String::new, |line| format!(", which begins at line {line}"));
    format!("certificate {} of {}{line}", at + 1, begins.len().max(at + 1))
}

fn defect(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "its line -----END CERTIFICATE----- is missing",
        pem::Error::IllegalSectionStart { .. } => "a line -----BEGIN ...----- is cut off",
        pem::Error::Base64Decode(_) => "what stands between its BEGIN and END is no base64",
        _ => "it is no PEM",
    }
}

/// What a text is that holds no certificate.
fn no_certificate(text: &[u8]) -> &'static str {
    let has = |part: &[u8]| text.windows(part.len()).any(|window| window == part);
    let begins = text.trim_ascii_start();
    if begins.starts_with(b"LS0tLS1CRUdJTi") {
        "is base64 of PEM, so it was encoded twice: write the PEM text itself, or use --from-file"
    } else if begins.starts_with(b"MII") {
        "lacks the lines -----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----"
    } else if has(b"-----BEGIN TRUSTED CERTIFICATE-----") {
        "holds OpenSSL's TRUSTED CERTIFICATE: openssl x509 -in FILE -out ca.crt makes a plain one of it"
    } else if has(b"-----BEGIN PKCS7-----") {
        "holds PKCS7: openssl pkcs7 -print_certs -in FILE -out ca.crt makes certificates of it"
    } else if has(BEGIN) {
        "holds -----BEGIN CERTIFICATE----- not at the start of a line: take the indentation away"
    } else if has(b"-----BEGIN ") {
        "holds PEM of another kind, and no CERTIFICATE"
    } else {
        "is no PEM: it has no line -----BEGIN CERTIFICATE-----"
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn certificate() -> rcgen::Certificate {
        let params = rcgen::CertificateParams::new(vec!["ca.example.com".to_owned()]).unwrap();
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn what_is_wrong_with_a_bundle_is_told_apart() {
        let (good, der) = (certificate().pem(), certificate().der().to_vec());
        let body = STANDARD.encode(&der);
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let without_end = good.replace("-----END CERTIFICATE-----\n", "");
        let wrong = "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n";
        let no_base64 = "-----BEGIN CERTIFICATE-----\ncan*ary\n-----END CERTIFICATE-----\n";
        let lines = good.lines().count();
        let at = |line: usize| format!("certificate 2 of 3, which begins at line {line}");
        let indented: String = good.lines().flat_map(|line| ["  ", line, "\n"]).collect();
        let utf16: Vec<u8> =
            std::iter::once(0xfeff).chain(good.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        let text = |text: &str| text.as_bytes().to_vec();
        for (bytes, expected) in [
            (Vec::new(), "is empty".to_owned()),
            (text(" \n\n"), "is empty".to_owned()),
            (vec![b'#'; (1 << 20) + 1], "has 1048577 bytes, and at most 1 MiB is read".to_owned()),
            (der, "is DER and not PEM".to_owned()),
            (text(&format!("\u{feff}{good}")), "begins with a byte order mark".to_owned()),
            (text(&format!("\u{feff}{good}{good}")), "begins with a byte order mark".to_owned()),
            (utf16, "is UTF-16".to_owned()),
            (text(&STANDARD.encode(&good)), "is base64 of PEM".to_owned()),
            (text(&body), "lacks the lines -----BEGIN CERTIFICATE-----".to_owned()),
            (text(&indented), "not at the start of a line".to_owned()),
            (text(&key), "PEM of another kind".to_owned()),
            (text(&good.replace("CERTIFICATE", "PKCS7")), "holds PKCS7".to_owned()),
            (text(&good.replace("CERTIFICATE", "TRUSTED CERTIFICATE")), "TRUSTED CERTIFICATE".to_owned()),
            (text("canary"), "is no PEM: it has no line".to_owned()),
            (text(&format!("{good}{wrong}{good}")), format!("{}: the PEM holds no X.509", at(lines + 1))),
            (text(&format!("{good}{no_base64}{good}")), format!("{}: what stands between", at(lines + 1))),
            (
                text(&format!("# a comment\n{good}{good}{without_end}")),
                "certificate 3 of 3, which begins at line ".to_owned(),
            ),
            (text(&without_end), "its line -----END CERTIFICATE----- is missing".to_owned()),
        ] {
            let why = roots(&bytes).unwrap_err();
            assert!(why.contains(&expected) && !why.contains("canary"), "{why} in place of {expected}");
        }
    }

    #[test]
    fn a_bundle_of_a_whole_system_with_comments_and_crlf_is_taken() {
        let all: String =
            std::iter::repeat_with(|| ["# one\r\n".to_owned(), certificate().pem().replace('\n', "\r\n")])
                .take(400)
                .flatten()
                .collect();
        assert!(all.len() > 220_000);
        assert_eq!(certificates(all.as_bytes()).unwrap().len(), 400);
        assert_eq!(roots(all.as_bytes()), Ok(()));
    }
}
