//! Why TLS failed, with the cure. No text of the receiver's is repeated: these sentences are shown in a status.

use rustls::{AlertDescription, CertificateError, Error, OtherError};

use super::verifier::Untrusted;
use crate::model::time::UnixMillis;
use crate::routes::TlsMaterial;

/// Why a handshake, or what followed, failed; with what we trust and show, and the host that was wanted.
pub(super) fn sentence(error: &Error, ours: &TlsMaterial, host: &str) -> String {
    match error {
        Error::InvalidCertificate(reason) => {
            format!("the receiver's certificate is not trusted: {}", certificate(reason, ours, host))
        }
        Error::AlertReceived(received) => alert(*received, ours),
        Error::NoCertificatesPresented => "the receiver showed no certificate".to_owned(),
        Error::InvalidMessage(_) => "the receiver does not speak TLS; is plain HTTP on this port?".to_owned(),
        Error::PeerIncompatible(reason) => incompatible(reason),
        Error::PeerMisbehaved(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::DecryptError
        | Error::PeerSentOversizedRecord => {
            "the receiver, or something on the way to it, broke the rules of TLS".to_owned()
        }
        _ => "the handshake failed".to_owned(),
    }
}

fn certificate(error: &CertificateError, ours: &TlsMaterial, host: &str) -> String {
    match error {
        CertificateError::UnknownIssuer => format!("unknown issuer (UnknownIssuer); {}", name_ca(ours)),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("it, or one above it, expired at {} (Expired); renew it", moment(not_after.as_secs()))
        }
        CertificateError::Expired => "it has expired (Expired); renew it".to_owned(),
        CertificateError::NotValidYetContext { not_before, time } => format!(
            "it, or one above it, is valid from {} on (NotValidYet); our clock says {}: one of them is wrong",
            moment(not_before.as_secs()),
            moment(time.as_secs())
        ),
        CertificateError::NotValidYet => "it is not valid yet (NotValidYet); check the clocks".to_owned(),
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => format!(
            "it names no host (NotValidForName); have it issued with subjectAltName {host}, a common name does not count"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "it is not valid for this host (NotValidForName); have it issued with subjectAltName {host}"
        ),
        CertificateError::Revoked => "it was revoked (Revoked); renew it".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not meant for servers (InvalidPurpose); have it issued with extendedKeyUsage serverAuth"
                .to_owned()
        }
        CertificateError::BadEncoding => "it is malformed (BadEncoding); have it issued anew".to_owned(),
        CertificateError::BadSignature => {
            "its signature is wrong (BadSignature); have it issued anew".to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id, ..
        } => {
            format!(
                "it, or one above it, is signed with {} (UnsupportedSignatureAlgorithm); have it issued with SHA-256 \
                 and an RSA or P-256 key",
                algorithm(signature_algorithm_id)
            )
        }
        CertificateError::UnhandledCriticalExtension => UNKNOWN_EXTENSION.to_owned(),
        CertificateError::Other(OtherError(other)) => {
            if let Some(why) = other.downcast_ref::<Untrusted>() {
                return untrusted(*why, ours);
            }
            other.downcast_ref::<webpki::Error>().map_or(UNTOLD, chain).to_owned()
        }
        _ => UNTOLD.to_owned(),
    }
}

const UNTOLD: &str = "it does not verify; have it issued anew";

const UNKNOWN_EXTENSION: &str = "it has a critical extension that is not known here (UnsupportedCriticalExtension); have it issued without";

fn untrusted(why: Untrusted, ours: &TlsMaterial) -> String {
    match why {
        Untrusted::KeySize(bits) => format!(
            "an RSA key in its chain has {bits} bits (KeySize); have it issued with one of 2048 to 8192"
        ),
        Untrusted::OtherKey => {
            let cure = match ours.ca {
                Some(_) => "put that CA's certificate of today into tls.caRef",
                None => "have it issued anew",
            };
            format!(
                "the trusted CA of its issuer's name has another key than the one that signed (OtherKey); {cure}"
            )
        }
        Untrusted::SelfSigned => {
            "it is self-signed (SelfSigned); tls.caRef can name it, unless it is a CA itself".to_owned()
        }
        Untrusted::NoChain => format!(
            "unknown issuer, and no other certificate is sent (UnknownIssuer); let the receiver send its whole chain, or \
             {}",
            name_ca(ours)
        ),
    }
}

fn name_ca(ours: &TlsMaterial) -> &'static str {
    match ours.ca {
        Some(_) => "tls.caRef must name its CA, in place of the public ones",
        None => "tls.caRef can name its CA",
    }
}

/// What only webpki has a word for.
const fn chain(error: &webpki::Error) -> &'static str {
    match error {
        webpki::Error::CaUsedAsEndEntity => {
            "it is that of a CA, which must not serve a host (CaUsedAsEndEntity); have it issued without CA:TRUE (openssl \
             req -x509 -addext basicConstraints=critical,CA:FALSE)"
        }
        webpki::Error::EndEntityUsedAsCa => {
            "it was issued by a certificate that is no CA (EndEntityUsedAsCa); have it issued by one with CA:TRUE"
        }
        webpki::Error::NameConstraintViolation => {
            "its CA may not issue for the names in it (NameConstraintViolation); have it issued by another CA"
        }
        webpki::Error::PathLenConstraintViolated => {
            "a CA above it may not have so many below it (PathLenConstraintViolated); have it issued by a higher CA"
        }
        webpki::Error::UnsupportedCertVersion => {
            "it is of X.509 version 1 (UnsupportedCertVersion); have it issued with extensions (openssl x509 -req \
             -extfile), a subjectAltName among them"
        }
        webpki::Error::UnsupportedCriticalExtension => UNKNOWN_EXTENSION,
        webpki::Error::SignatureAlgorithmMismatch => {
            "it names two signature algorithms (SignatureAlgorithmMismatch); have it issued anew"
        }
        webpki::Error::MaximumPathBuildCallsExceeded
        | webpki::Error::MaximumPathDepthExceeded
        | webpki::Error::MaximumSignatureChecksExceeded
        | webpki::Error::MaximumNameConstraintComparisonsExceeded => {
            "its chain is too long (MaximumPathDepth); let the receiver send fewer certificates"
        }
        webpki::Error::EmptyEkuExtension
        | webpki::Error::ExtensionValueInvalid
        | webpki::Error::InvalidSerialNumber
        | webpki::Error::MalformedDnsIdentifier
        | webpki::Error::MalformedExtensions
        | webpki::Error::MalformedNameConstraint
        | webpki::Error::InvalidNetworkMaskConstraint => {
            "an extension in it is malformed; have it issued anew"
        }
        _ => UNTOLD,
    }
}

fn alert(alert: AlertDescription, ours: &TlsMaterial) -> String {
    let shows = ours.client.is_some();
    match alert {
        AlertDescription::ProtocolVersion => TOO_OLD.to_owned(),
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity if shows => {
            format!("{NOTHING_COMMON}, or it refused the client certificate (alert {alert:?})")
        }
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => format!(
            "{NOTHING_COMMON}, or it wants a client certificate (alert {alert:?}); tls.clientCertificateRef can name one"
        ),
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            format!("the receiver wants a client certificate (alert {alert:?}); tls.clientCertificateRef can name one")
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError
            if shows =>
        {
            format!(
                "the receiver refused the client certificate (alert {alert:?}); renew that of tls.clientCertificateRef, or \
                 let the receiver trust its CA"
            )
        }
        AlertDescription::BadCertificate => format!(
            "the receiver wants a client certificate (alert {alert:?}); tls.clientCertificateRef can name one"
        ),
        AlertDescription::UnrecognisedName => {
            "the receiver does not serve this host name (alert UnrecognisedName); correct spec.url or the receiver"
                .to_owned()
        }
        AlertDescription::NoApplicationProtocol => {
            "the receiver speaks neither HTTP/2 nor HTTP/1.1 (alert NoApplicationProtocol)".to_owned()
        }
        AlertDescription::InternalError => {
            "the receiver failed in the handshake (alert InternalError); its log may say why".to_owned()
        }
        _ => format!("the receiver refused with the alert {alert:?}; its log may say why"),
    }
}

const TOO_OLD: &str =
    "the receiver speaks neither TLS 1.2 nor 1.3 (ProtocolVersion); switch one of them on there";

const NOTHING_COMMON: &str = "no cipher, key exchange or signature algorithm of the receiver's is known here";

fn incompatible(reason: &rustls::PeerIncompatible) -> String {
    use rustls::PeerIncompatible as Reason;
    match reason {
        Reason::ServerDoesNotSupportTls12Or13
        | Reason::ServerTlsVersionIsDisabledByOurConfig
        | Reason::SupportedVersionsExtensionRequired => TOO_OLD.to_owned(),
        _ => format!("{NOTHING_COMMON}; switch on ECDHE with AES-GCM there"),
    }
}

/// By the OID in an `AlgorithmIdentifier`.
fn algorithm(id: &[u8]) -> &'static str {
    const NAMES: &[(&[u8], &str)] = &[
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 2], "MD2, which is broken"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4], "MD5, which is broken"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5], "SHA-1, which is broken"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1], "SHA-1, which is broken"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x38, 4, 3], "DSA with SHA-1, which is broken"),
    ];
    let is_in = |oid: &[u8]| id.get(..2 + oid.len()).is_some_and(|head| head.ends_with(oid));
    NAMES.iter().find(|(oid, _)| is_in(oid)).map_or("an algorithm that is not known here", |(_, name)| name)
}

fn moment(seconds: u64) -> String {
    let millis = i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
    UnixMillis::from_millis(millis).to_jiff().to_string()
}
