//! The door through kube-apiserver: it shows its front-proxy client certificate, and says in headers for whom it
//! asks. What makes it trustworthy stands in ConfigMap `kube-system/extension-apiserver-authentication`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderName};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use percent_encoding::percent_decode_str;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::User;
use crate::clock::Clock;
use crate::model::time::UnixMillis;
use crate::server::listener::Peer;
use crate::server::quiet::Quiet;
use crate::server::status::{Failure, Reason};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
/// How often the ConfigMap is read: a new CA is trusted after at most this time.
const EVERY: Duration = Duration::from_secs(15);
/// How soon after a failure.
const SOON: Duration = Duration::from_secs(1);
/// For one reading.
const CALL: Duration = Duration::from_secs(5);
/// What kube-apiserver says for whom it asks in, unless the ConfigMap names others. Nobody else may send them,
/// whatever the ConfigMap says.
const USUAL: [&str; 4] = ["x-remote-user", "x-remote-uid", "x-remote-group", "x-remote-extra-"];

/// Why the ConfigMap cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// kube-apiserver has no aggregation layer.
    #[error("it has no {0}: kube-apiserver runs without the aggregation layer")]
    Absent(&'static str),
    /// Not as kube-apiserver writes it.
    #[error("its {0} is not a JSON list of strings")]
    NotAList(&'static str),
    /// Not as kube-apiserver writes it.
    #[error("its {0} has a name that no header can have")]
    NotAHeader(&'static str),
    /// Not as kube-apiserver writes it.
    #[error("its requestheader-client-ca-file holds no usable certificate")]
    NoCertificate,
}

/// What makes a front proxy trustworthy.
#[derive(Debug)]
pub(super) struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Common names; empty: any.
    allowed: Vec<String>,
    user: Vec<HeaderName>,
    uid: Vec<HeaderName>,
    group: Vec<HeaderName>,
    /// Lower-case.
    extra: Vec<String>,
}

impl Trust {
    /// Reads the ConfigMap's data.
    pub(super) fn read(data: &BTreeMap<String, String>) -> Result<Self, Error> {
        const CA: &str = "requestheader-client-ca-file";
        let ca = data.get(CA).ok_or(Error::Absent(CA))?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca.as_bytes()).flatten());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|_| Error::NoCertificate)?;
        let user = headers(data, "requestheader-username-headers")?;
        if user.is_empty() {
            return Err(Error::Absent("requestheader-username-headers"));
        }
        Ok(Self {
            verifier,
            allowed: list(data, "requestheader-allowed-names")?,
            user,
            uid: headers(data, "requestheader-uid-headers")?,
            group: headers(data, "requestheader-group-headers")?,
            extra: list(data, "requestheader-extra-headers-prefix")?
                .iter()
                .map(|prefix| prefix.to_ascii_lowercase())
                .collect(),
        })
    }

    /// Whether this header is one by which the front proxy speaks.
    fn speaks_by(&self, name: &HeaderName) -> bool {
        [&self.user, &self.uid, &self.group].into_iter().any(|names| names.contains(name))
            || self.extra.iter().any(|prefix| name.as_str().starts_with(prefix.as_str()))
    }

    /// Whether these certificates are those of the front proxy at this time.
    fn judge(&self, certificates: &[CertificateDer<'_>], now: UnixMillis) -> Result<(), &'static str> {
        let Some((leaf, intermediates)) = certificates.split_first() else {
            return Err("headers that only kube-apiserver may send came without its client certificate");
        };
        let now = UnixTime::since_unix_epoch(now.since(UnixMillis::from_millis(0)));
        self.verifier.verify_client_cert(leaf, intermediates, now).map_err(
            |_| "the client certificate is not signed, or no longer, by the CA that kube-apiserver's is",
        )?;
        if self.allowed.is_empty() || common_name(leaf).is_some_and(|name| self.allowed.contains(&name)) {
            return Ok(());
        }
        Err("the client certificate's common name is not one that a front proxy may have")
    }

    /// For whom the front proxy asks.
    fn user(&self, headers: &HeaderMap) -> Result<User, &'static str> {
        const NO_TEXT: &str = "a header that says who asks is not UTF-8";
        let values = |names: &[HeaderName]| {
            let values = names.iter().flat_map(|name| headers.get_all(name));
            let texts = values.map(|value| std::str::from_utf8(value.as_bytes()).map(ToOwned::to_owned));
            texts.collect::<Result<Vec<String>, _>>().map_err(|_| NO_TEXT)
        };
        let first = |values: Vec<String>| values.into_iter().find(|value| !value.is_empty());
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            let key = self.extra.iter().find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()));
            if let Some(key) = key {
                let key = percent_decode_str(key).decode_utf8().map_err(|_| NO_TEXT)?;
                let value = std::str::from_utf8(value.as_bytes()).map_err(|_| NO_TEXT)?;
                extra.entry(key.into_owned()).or_default().push(value.to_owned());
            }
        }
        let info = UserInfo {
            username: first(values(&self.user)?),
            uid: first(values(&self.uid)?),
            groups: Some(values(&self.group)?),
            extra: Some(extra),
        };
        User::new(info).ok_or("the front proxy does not say who asks")
    }
}

fn list(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<String>, Error> {
    let Some(text) = data.get(key).filter(|text| !text.trim().is_empty()) else { return Ok(Vec::new()) };
    // Go writes an empty list as null.
    serde_json::from_str::<Option<Vec<String>>>(text)
        .map(Option::unwrap_or_default)
        .map_err(|_| Error::NotAList(key))
}

fn headers(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<HeaderName>, Error> {
    let names = list(data, key)?;
    names.iter().map(|name| name.parse().map_err(|_| Error::NotAHeader(key))).collect()
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(ToOwned::to_owned)
}

/// Knows kube-apiserver by its certificate, and keeps that knowledge fresh.
#[derive(Debug)]
pub struct FrontProxy {
    trust: ArcSwapOption<Trust>,
    clock: Clock,
}

impl FrontProxy {
    /// Trusts nobody before [`Self::run`] has read whom to.
    pub fn new(clock: Clock) -> Self {
        Self { trust: ArcSwapOption::empty(), clock }
    }

    /// For whom kube-apiserver asks; none when it is not kube-apiserver who asks, and does not say to be.
    pub(super) fn identify(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<Arc<User>>, Failure> {
        let trust = self.trust.load_full();
        let speaks = |name: &HeaderName| {
            USUAL.iter().any(|usual| name.as_str().starts_with(usual))
                || trust.as_ref().is_some_and(|trust| trust.speaks_by(name))
        };
        if !headers.keys().any(speaks) {
            return Ok(None);
        }
        let Some(trust) = &trust else { return Err(untrusting(peer)) };
        let user = trust
            .judge(&peer.certificates, self.clock.now())
            .and_then(|()| trust.user(headers))
            .map_err(|why| Failure::new(Reason::Unauthorized, why))?;
        Ok(Some(Arc::new(user)))
    }

    /// Reads the ConfigMap again and again until told to stop. What was read last counts while it cannot be read.
    pub async fn run(&self, client: Client, shutdown: CancellationToken) {
        static FAILED: Quiet = Quiet::new(Duration::from_mins(5));
        let config_maps = Api::namespaced(client, NAMESPACE);
        let mut version = None;
        loop {
            let pause = match self.refresh(&config_maps, &mut version).await {
                Ok(()) => EVERY,
                Err(error) => {
                    if let Some(silent) = FAILED.speak() {
                        warn!(
                            config_map = NAME,
                            namespace = NAMESPACE,
                            error,
                            silent,
                            "kube-apiserver is not known"
                        );
                    }
                    if version.is_some() { EVERY } else { SOON }
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    async fn refresh(&self, maps: &Api<ConfigMap>, version: &mut Option<String>) -> Result<(), String> {
        let map = match timeout(CALL, maps.get(NAME)).await {
            Ok(Ok(map)) => map,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("the Kubernetes API does not answer".to_owned()),
        };
        if map.metadata.resource_version.is_some() && map.metadata.resource_version == *version {
            return Ok(());
        }
        let trust = Trust::read(&map.data.unwrap_or_default()).map_err(|error| error.to_string())?;
        info!(allowed = ?trust.allowed, "kube-apiserver is known by its client certificate");
        self.trust.store(Some(Arc::new(trust)));
        *version = map.metadata.resource_version;
        Ok(())
    }

    #[cfg(test)]
    pub(in crate::server) fn trust(&self, data: &BTreeMap<String, String>) {
        self.trust.store(Some(Arc::new(Trust::read(data).unwrap())));
    }
}

/// Before the ConfigMap was read, somebody with a certificate may be kube-apiserver, and is to come again.
fn untrusting(peer: &Peer) -> Failure {
    if peer.certificates.is_empty() {
        let message = "headers that only kube-apiserver may send came without its client certificate";
        return Failure::new(Reason::Unauthorized, message);
    }
    let message = "it is not known yet which client certificate is kube-apiserver's: try again";
    Failure::later(Reason::ServiceUnavailable, message, SOON)
}

#[cfg(test)]
mod tests;
