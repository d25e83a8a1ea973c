//! Client certificates of X.509 version 1, which plain `openssl x509 -req` makes, and which the TLS library does not
//! read. kube-apiserver's own libraries take them, so its front-proxy certificate may be one: it is taken here by the
//! same rules, when a certificate of the trusted bundle itself has signed it.

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

/// Whether this is a certificate of version 1.
pub(in crate::server) fn is(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_some_and(|parsed| parsed.version() == X509Version::V1)
}

/// Whether who shows this certificate has its key, by what was signed in the handshake.
pub(in crate::server) fn possesses(
    certificate: &CertificateDer<'_>,
    message: &[u8],
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let of_scheme = |(scheme, _): &&(SignatureScheme, &[_])| *scheme == signed.scheme;
    let Some((_, candidates)) = algorithms.mapping.iter().find(of_scheme) else { return false };
    parse(certificate).is_some_and(|parsed| verifies(candidates, None, &parsed, message, signed.signature()))
}

/// Whether one of these authorities has signed the certificate, and both are valid at this time.
pub(super) fn judge(
    certificate: &CertificateDer<'_>,
    authorities: &[CertificateDer<'static>],
    now: UnixTime,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let signed = || {
        let leaf = parse(certificate).filter(|leaf| is_valid_at(leaf, now))?;
        let parts = Parts::of(certificate)?;
        authorities.iter().filter_map(|authority| parse(authority)).find(|authority| {
            authority.subject().as_raw() == leaf.issuer().as_raw()
                && is_valid_at(authority, now)
                && may_sign(authority)
                && verifies(algorithms.all, Some(parts.algorithm), authority, parts.signed, parts.signature)
        })
    };
    signed().is_some()
}

fn parse<'c>(certificate: &'c CertificateDer<'_>) -> Option<X509Certificate<'c>> {
    x509_parser::parse_x509_certificate(certificate).ok().map(|(_, parsed)| parsed)
}

fn is_valid_at(certificate: &X509Certificate<'_>, now: UnixTime) -> bool {
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
    now.is_some_and(|now| certificate.validity().is_valid_at(now))
}

/// A root of version 1 says nothing of what it may.
fn may_sign(authority: &X509Certificate<'_>) -> bool {
    let says = || {
        let is_ca = authority.basic_constraints().ok()?.is_some_and(|constraints| constraints.value.ca);
        let signs = authority.key_usage().ok()?.is_none_or(|usage| usage.value.key_cert_sign());
        let for_clients = authority.extended_key_usage().ok()?;
        let for_clients = for_clients.is_none_or(|usage| usage.value.client_auth || usage.value.any);
        Some(is_ca && signs && for_clients)
    };
    authority.version() == X509Version::V1 || says() == Some(true)
}

/// Whether the key of this certificate has made the signature, by an algorithm of these that is of its kind, and, when
/// it is given, is the one that was named.
fn verifies(
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    named: Option<&[u8]>,
    signer: &X509Certificate<'_>,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let key = || {
        let (_, info, _) = element(signer.public_key().raw)?;
        let (_, kind, rest) = element(info)?;
        let (_, bits, _) = element(rest)?;
        Some((kind, bits.strip_prefix(&[0])?))
    };
    key().is_some_and(|(kind, key)| {
        algorithms
            .iter()
            .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == kind)
            .filter(|algorithm| named.is_none_or(|named| algorithm.signature_alg_id().as_ref() == named))
            .any(|algorithm| algorithm.verify_signature(key, message, signature).is_ok())
    })
}

/// What a certificate is made of.
struct Parts<'c> {
    /// What was signed, as it stands.
    signed: &'c [u8],
    algorithm: &'c [u8],
    signature: &'c [u8],
}

impl<'c> Parts<'c> {
    fn of(certificate: &'c CertificateDer<'_>) -> Option<Self> {
        let (_, content, _) = element(certificate)?;
        let (signed, _, rest) = element(content)?;
        let (_, algorithm, rest) = element(rest)?;
        let (_, bits, _) = element(rest)?;
        Some(Self { signed, algorithm, signature: bits.strip_prefix(&[0])? })
    }
}

/// The first element of DER: as it stands, its content, and what comes after it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (start, length) = match der.get(1..)? {
        [short @ 0..=0x7f, ..] => (2, usize::from(*short)),
        [0x81, length, ..] => (3, usize::from(*length)),
        [0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        _ => return None,
    };
    let (whole, rest) = der.split_at_checked(start + length)?;
    Some((whole, whole.get(start..)?, rest))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    const CA: &str = include_str!("version1/ca.pem");
    const LEAVES: [&str; 2] = [include_str!("version1/ec.pem"), include_str!("version1/rsa.pem")];
    const NOW: UnixTime = UnixTime::since_unix_epoch(std::time::Duration::from_hours(500_000));

    fn read(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn judged(leaf: &CertificateDer<'_>, authority: CertificateDer<'static>, now: UnixTime) -> bool {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        judge(leaf, &[authority], now, &algorithms)
    }

    #[test]
    fn a_certificate_of_plain_openssl_is_taken_when_its_authority_has_signed_it() {
        let other = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "front-proxy-ca");
        let namesake = params.self_signed(&other).unwrap().der().clone();
        for pem in LEAVES {
            let leaf = read(pem);
            assert!(is(&leaf) && !is(&read(CA)));
            assert!(judged(&leaf, read(CA), NOW));
            assert!(!judged(&leaf, namesake.clone(), NOW), "another key");
            assert!(!judged(&leaf, leaf.clone(), NOW), "its own");
            assert!(
                !judged(&leaf, read(CA), UnixTime::since_unix_epoch(std::time::Duration::ZERO)),
                "not yet"
            );
            assert!(!judged(&leaf, read(CA), UnixTime::since_unix_epoch(NOW_PLUS_A_CENTURY)), "not any more");
            // Whatever byte of it is another one, it is refused.
            for at in 0..leaf.len() {
                let mut changed = leaf.to_vec();
                changed[at] ^= 1;
                assert!(!judged(&changed.into(), read(CA), NOW), "byte {at}");
            }
        }
    }

    const NOW_PLUS_A_CENTURY: std::time::Duration = std::time::Duration::from_hours(1_400_000);

    #[test]
    fn no_bytes_make_it_panic() {
        let leaf = read(LEAVES[0]);
        for length in 0..leaf.len() {
            let cut = CertificateDer::from(leaf[..length].to_vec());
            assert!(!is(&cut) && !judged(&cut, read(CA), NOW) && Parts::of(&cut).is_none());
        }
    }
}
