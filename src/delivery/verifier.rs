//! Verifies a receiver's certificate as webpki does, and says more of why it is not trusted: webpki has one word for
//! causes whose cures differ.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Bits of an RSA key that signatures are verified with.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// What webpki has no word of its own for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Untrusted {
    /// An RSA key in the chain has a size that signatures are not verified with; in bits. To webpki the signature is
    /// wrong.
    #[error("an RSA key of {0} bits")]
    KeySize(usize),
    /// The issuer's name is that of a trusted CA, and its key is another.
    #[error("the CA has another key")]
    OtherKey,
    /// It is its own issuer, and nothing that is trusted.
    #[error("self-signed")]
    SelfSigned,
    /// Its issuer is not trusted, and the receiver sends no other certificate.
    #[error("no chain")]
    NoChain,
}

/// See the module. What it trusts is exactly what webpki does.
#[derive(Debug)]
pub(super) struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
}

impl Verifier {
    /// `webpki` trusts these roots.
    pub(super) fn new(webpki: Arc<WebPkiServerVerifier>, roots: Arc<RootCertStore>) -> Self {
        Self { webpki, roots }
    }

    fn explain(&self, error: Error, end: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Error {
        let why = match &error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => unissued(end, others),
            Error::InvalidCertificate(CertificateError::BadSignature) => self.unsigned(end, others),
            _ => None,
        };
        why.map_or(error, untrusted)
    }

    /// Why a signature in this chain is wrong.
    fn unsigned(&self, end: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Option<Untrusted> {
        let chain: Vec<_> = std::iter::once(end).chain(others).filter_map(|one| parsed(one)).collect();
        let issuers: Vec<_> = self
            .roots
            .roots
            .iter()
            .filter(|root| chain.iter().any(|one| one.issuer().as_raw().ends_with(&root.subject)))
            .collect();
        let of_chain = chain.iter().find_map(|one| wrong_size(one.public_key()));
        let wrong_size = of_chain.or_else(|| {
            issuers.iter().find_map(|root| {
                let key = sequence(&root.subject_public_key_info);
                SubjectPublicKeyInfo::from_der(&key).ok().and_then(|(_, key)| wrong_size(&key))
            })
        });
        wrong_size.map(Untrusted::KeySize).or_else(|| (!issuers.is_empty()).then_some(Untrusted::OtherKey))
    }
}

fn untrusted(why: Untrusted) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

fn unissued(end: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Option<Untrusted> {
    let end = parsed(end)?;
    if end.issuer().as_raw() == end.subject().as_raw() {
        return Some(Untrusted::SelfSigned);
    }
    others.is_empty().then_some(Untrusted::NoChain)
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).ok().map(|(_, certificate)| certificate)
}

/// Of an RSA key whose size signatures are not verified with: its bits.
fn wrong_size(key: &SubjectPublicKeyInfo<'_>) -> Option<usize> {
    match key.parsed() {
        Ok(PublicKey::RSA(key)) => Some(key.key_size()).filter(|bits| !RSA_BITS.contains(bits)),
        Ok(_) | Err(_) => None,
    }
}

/// As DER has it: a root keeps its parts without their heads.
fn sequence(content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = length.get(length.iter().take_while(|byte| **byte == 0).count()..).unwrap_or_default();
    let mut der = vec![0x30];
    match length {
        [] => der.push(0),
        [short @ ..0x80] => der.push(*short),
        long => {
            der.push(0x80 | u8::try_from(long.len()).unwrap_or(0));
            der.extend_from_slice(long);
        }
    }
    der.extend_from_slice(content);
    der
}

/// A handshake that a key of the wrong size has signed.
fn signed_by(certificate: &CertificateDer<'_>) -> impl FnOnce(Error) -> Error {
    let bits = parsed(certificate).and_then(|certificate| wrong_size(certificate.public_key()));
    move |error| match (&error, bits) {
        (Error::InvalidCertificate(CertificateError::BadSignature), Some(bits)) => {
            untrusted(Untrusted::KeySize(bits))
        }
        _ => error,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.webpki.verify_server_cert(end, others, name, ocsp, now);
        verified.map_err(|error| self.explain(error, end, others))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.webpki.verify_tls12_signature(message, certificate, signed);
        verified.map_err(|error| signed_by(certificate)(error))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.webpki.verify_tls13_signature(message, certificate, signed);
        verified.map_err(|error| signed_by(certificate)(error))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
