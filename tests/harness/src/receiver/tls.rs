//! The receiver's certificates: one for each name that a client asks for, made at the handshake.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};

use super::Options;
use crate::{ensure_crypto_provider, pki::Authority};

/// The configuration, and the authority (PEM) that its certificates are signed by.
pub(super) fn config(options: &Options) -> anyhow::Result<(Arc<ServerConfig>, String)> {
    ensure_crypto_provider();
    let authority = Authority::new("receiver")?;
    let ca_pem = authority.pem();
    let builder = ServerConfig::builder();
    let builder = match &options.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes())?)?;
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName { authority, made: Mutex::default() }));
    config.alpn_protocols =
        if options.only_http1 { vec![b"http/1.1".into()] } else { vec![b"h2".into(), b"http/1.1".into()] };
    Ok((Arc::new(config), ca_pem))
}

#[derive(Debug)]
struct ByName {
    authority: Authority,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl ByName {
    fn make(&self, name: &str) -> anyhow::Result<Arc<CertifiedKey>> {
        let pair = self.authority.server(&[name])?;
        let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes())?];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
        let provider = rustls::crypto::CryptoProvider::get_default().context("no TLS provider")?;
        Ok(Arc::new(CertifiedKey::from_der(chain, key, provider)?))
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // A client that goes to an address names nobody.
        let name = hello.server_name().unwrap_or("localhost");
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(name) {
            return Some(Arc::clone(known));
        }
        let new = self.make(name).ok()?;
        made.insert(name.to_owned(), Arc::clone(&new));
        Some(new)
    }
}
