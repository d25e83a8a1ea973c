//! What the client trusts and shows: one rustls configuration for each [`TlsMaterial`].

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::verifier::Verifier;
use crate::routes::TlsMaterial;

/// Configurations kept at most; each holds its roots and up to 256 sessions to resume.
const MAX_KEPT: usize = 256;

/// Why a TLS material can't be used. Never says any part of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not PEM, or no certificate in it.
    #[error("the CA bundle holds no PEM certificate")]
    NoCa,
    /// A certificate that can't be a root.
    #[error("the CA bundle holds a certificate that cannot be used")]
    Ca(#[source] rustls::Error),
    /// Broken PEM.
    #[error("the PEM text is broken")]
    Pem(#[source] pem::Error),
    /// The client certificate's key does not fit, or is of a kind that is not supported.
    #[error("the client certificate and its key cannot be used together")]
    Client(#[source] rustls::Error),
    /// The TLS library refused its own defaults.
    #[error("no TLS version can be used")]
    Versions(#[source] rustls::Error),
    /// The TLS library refused the roots.
    #[error("nothing to verify certificates with")]
    Verifier(#[source] VerifierBuilderError),
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

static PUBLIC_ROOTS: LazyLock<Arc<RootCertStore>> =
    LazyLock::new(|| Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }));

fn build(material: &TlsMaterial) -> Result<ClientConfig, Error> {
    let roots = match &material.ca {
        Some(bundle) => Arc::new(roots(bundle)?),
        None => Arc::clone(&PUBLIC_ROOTS),
    };
    let webpki =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&PROVIDER)).build();
    let verifier = Verifier::new(webpki.map_err(Error::Verifier)?, roots);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()
        .map_err(Error::Versions)?
        // It trusts what webpki trusts, and only says more of what it does not.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &material.client {
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(Error::Pem)?;
            builder.with_client_auth_cert(certificates(chain)?, key).map_err(Error::Client)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(Error::Pem)
}

fn roots(bundle: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(bundle)? {
        roots.add(certificate).map_err(Error::Ca)?;
    }
    if roots.is_empty() { Err(Error::NoCa) } else { Ok(roots) }
}

/// Configurations by material, so that Webhooks with the same one share its sessions and memory.
#[derive(Debug, Default)]
pub(super) struct Configs(Mutex<HashMap<TlsMaterial, Arc<ClientConfig>>>);

impl Configs {
    /// The configuration of this material.
    pub(super) fn get(&self, material: &TlsMaterial) -> Result<Arc<ClientConfig>, Error> {
        if let Some(config) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(material) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(build(material)?);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Rare: more materials than that in use at once. They are built anew, which costs time and no harm.
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(material.clone(), Arc::clone(&config));
        Ok(config)
    }
}
