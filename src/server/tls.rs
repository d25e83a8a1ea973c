//! TLS of the HTTPS door: one certificate that can be changed while connections are served.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use super::auth::version1;

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate or key could not be made or read.
    #[error("cannot make or read a certificate or key")]
    Make(#[from] rcgen::Error),
    /// TLS does not take it.
    #[error("cannot use a certificate or key for TLS")]
    Tls(#[from] rustls::Error),
    /// There is none in it.
    #[error("there is no certificate or key in the PEM text")]
    NoCertificate,
    /// Certificate and key are not a pair.
    #[error("the key is not of its certificate")]
    ForeignKey,
    /// The Secret does not hold a CA.
    #[error("Secret {secret} holds no usable CA: delete it, and a new one is made")]
    Unusable {
        /// Its namespace and name.
        secret: String,
        /// What is wrong with it.
        #[source]
        source: Box<Error>,
    },
    /// Another replica keeps changing the Secret.
    #[error("Secret {0} changes faster than it can be read")]
    Contended(String),
    /// The Kubernetes API refused.
    #[error("cannot {what}")]
    Api {
        /// What was attempted, on what.
        what: String,
        /// Its word.
        #[source]
        source: Box<kube::Error>,
    },
    /// The Kubernetes API did not answer.
    #[error("cannot {0}: the Kubernetes API does not answer")]
    Timeout(String),
}

impl From<rustls::pki_types::pem::Error> for Error {
    fn from(_: rustls::pki_types::pem::Error) -> Self {
        Self::NoCertificate
    }
}

/// The certificate that is shown to the other end now.
#[derive(Debug, Default)]
pub(super) struct Served(ArcSwapOption<CertifiedKey>);

impl Served {
    /// Shows this one from the next handshake on; connections that are open keep theirs.
    pub(super) fn set(&self, certified: CertifiedKey) {
        self.0.store(Some(Arc::new(certified)));
    }

    #[cfg(test)]
    pub(super) fn shown(&self) -> Option<Vec<u8>> {
        Some(self.0.load().as_ref()?.end_entity_cert().ok()?.to_vec())
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl ResolvesClientCert for Served {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

/// Asks for a client certificate and demands none. Who shows one proves that he has its key; whether anybody
/// trusts it is judged for each request, so that a wrong one is a readable 401, and a CA that changes needs no new
/// connection.
#[derive(Debug)]
struct Possession(Arc<CryptoProvider>);

impl Possession {
    /// That a signature of the handshake is of this certificate's key, also when it is of a version that the library does
    /// not read.
    fn of(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
        usual: impl FnOnce(&WebPkiSupportedAlgorithms) -> Result<HandshakeSignatureValid, rustls::Error>,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        if version1::is(certificate) && version1::possesses(certificate, message, signature, algorithms) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        usual(algorithms)
    }
}

impl ClientCertVerifier for Possession {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of(message, certificate, signature, |algorithms| {
            verify_tls12_signature(message, certificate, signature, algorithms)
        })
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.of(message, certificate, signature, |algorithms| {
            verify_tls13_signature(message, certificate, signature, algorithms)
        })
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// How the door speaks TLS: 1.2 and 1.3, HTTP/2 preferred, a client certificate welcome.
pub(super) fn server_config(served: Arc<Served>) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(Possession(provider)))
        .with_cert_resolver(served);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
