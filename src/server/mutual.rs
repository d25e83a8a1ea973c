//! TLS of a front towards the pod with the store: both ends show a certificate of our CA, and both follow it when it
//! changes, without a new client.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::tls::{Error, Served};

/// Common name of the client certificate by which a front is known.
pub(super) const FRONT: &str = "hookwright-front";

/// What a front shows and trusts at this moment.
#[derive(Debug)]
pub(super) struct Mutual {
    /// Its client certificate.
    pub(super) shown: Arc<Served>,
    trusted: Arc<Trusted>,
}

impl Mutual {
    /// Shows and trusts nothing yet.
    pub(super) fn new() -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Self { shown: Arc::default(), trusted: Arc::new(Trusted { by: ArcSwapOption::empty(), provider }) }
    }

    /// Trusts the certificates of this bundle from the next handshake on.
    pub(super) fn trust(&self, bundle: &str) -> Result<(), Error> {
        let roots = Arc::new(roots(bundle));
        let provider = Arc::clone(&self.trusted.provider);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|_| Error::NoCertificate)?;
        self.trusted.by.store(Some(verifier));
        Ok(())
    }

    /// TLS that shows and trusts what is current at each handshake; HTTP/2 only.
    pub(super) fn client_config(&self) -> Result<Arc<ClientConfig>, Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.trusted.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.trusted) as _)
            .with_client_cert_resolver(Arc::clone(&self.shown) as _);
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would show the certificate of the first handshake for ever.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// The certificates in a PEM text.
pub(super) fn roots(bundle: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle.as_bytes()).flatten());
    roots
}

/// Judges as the usual verifier does, by roots that can be changed.
#[derive(Debug)]
struct Trusted {
    by: ArcSwapOption<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(by) = self.by.load_full() else {
            return Err(rustls::Error::General("our own CA is not read yet".to_owned()));
        };
        by.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
