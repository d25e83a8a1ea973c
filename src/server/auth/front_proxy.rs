//! The door through those who ask for others: kube-apiserver shows its front-proxy client certificate, a front of ours
//! one of our own CA, and both say in headers for whom they ask. What makes kube-apiserver trustworthy stands in
//! ConfigMap `kube-system/extension-apiserver-authentication`; what makes a front is our own CA bundle and its name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest::{Context, SHA256};
use http::{HeaderMap, HeaderName};
use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::cache::Cache;
use super::{KEEP_YES, User, digest, version1};
use crate::clock::Clock;
use crate::model::time::UnixMillis;
use crate::routes::watch::why;
use crate::server::listener::Peer;
use crate::server::mutual::{FRONT, roots};
use crate::server::ops::Check;
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

/// What can be done where kube-apiserver cannot be known.
const CURE: &str = "producers are served all the same, but kubectl get dlv does not work, and while the APIService is \
                    there no namespace can be deleted; give kube-apiserver its --requestheader-* flags, or install \
                    with apiService.enabled=false";

/// Why the ConfigMap cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// kube-apiserver has no aggregation layer.
    #[error(
        "ConfigMap {NAMESPACE}/{NAME} has no {0}: kube-apiserver runs without the aggregation layer \
         (--requestheader-client-ca-file and what belongs to it); {CURE}"
    )]
    Absent(&'static str),
    /// Not as kube-apiserver writes it.
    #[error("in ConfigMap {NAMESPACE}/{NAME}, {0} is not a JSON list of strings")]
    NotAList(&'static str),
    /// Not as kube-apiserver writes it.
    #[error("in ConfigMap {NAMESPACE}/{NAME}, {0} has a name that no header can have")]
    NotAHeader(&'static str),
    /// Not as kube-apiserver writes it.
    #[error("in ConfigMap {NAMESPACE}/{NAME}, requestheader-client-ca-file holds no usable certificate")]
    NoCertificate,
}

/// Why it is not read how kube-apiserver is known.
#[derive(Debug)]
enum Unread {
    /// It may be, at the next try.
    NoAnswer(String),
    /// The cluster says that there is nothing to read.
    Absent(String),
}

/// Client certificates of fronts whose good judgement is remembered, each for [`KEEP_YES`].
const REMEMBERED: usize = 64;

/// What makes a front proxy trustworthy.
#[derive(Debug)]
pub(super) struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Who may have signed a certificate that the verifier does not read, since it is of version 1.
    authorities: Vec<CertificateDer<'static>>,
    /// Certificates that were judged good: a signature costs more than all else that a request does here.
    judged: Option<Cache<[u8; 32], ()>>,
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
        let user = headers(data, "requestheader-username-headers")?;
        if user.is_empty() {
            return Err(Error::Absent("requestheader-username-headers"));
        }
        Ok(Self {
            verifier: verifier(ca)?,
            authorities: CertificateDer::pem_slice_iter(ca.as_bytes()).flatten().collect(),
            judged: None,
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

    /// What makes a front of ours trustworthy: our CA, the name, and the usual headers.
    fn in_fronts(bundle: &str) -> Result<Self, Error> {
        let [user, uid, group, extra] = USUAL;
        Ok(Self {
            verifier: verifier(bundle)?,
            authorities: Vec::new(),
            judged: Some(Cache::new(KEEP_YES, REMEMBERED)),
            allowed: vec![FRONT.to_owned()],
            user: vec![HeaderName::from_static(user)],
            uid: vec![HeaderName::from_static(uid)],
            group: vec![HeaderName::from_static(group)],
            extra: vec![extra.to_owned()],
        })
    }

    /// Whether this header is one by which the front proxy speaks.
    fn speaks_by(&self, name: &HeaderName) -> bool {
        [&self.user, &self.uid, &self.group].into_iter().any(|names| names.contains(name))
            || self.extra.iter().any(|prefix| name.as_str().starts_with(prefix.as_str()))
    }

    /// Whether these certificates are those of the front proxy at this time, or were a moment ago.
    fn judge(&self, certificates: &[CertificateDer<'_>], now: UnixMillis) -> Result<(), &'static str> {
        let (Some(judged), Some(leaf)) = (&self.judged, certificates.first()) else {
            return self.judge_anew(certificates, now);
        };
        let mut hash = Context::new(&SHA256);
        hash.update(leaf);
        let key = digest(hash);
        if judged.get(&key).is_none() {
            self.judge_anew(certificates, now)?;
            judged.put(key, ());
        }
        Ok(())
    }

    fn judge_anew(&self, certificates: &[CertificateDer<'_>], now: UnixMillis) -> Result<(), &'static str> {
        let Some((leaf, intermediates)) = certificates.split_first() else {
            return Err(FORGED);
        };
        let now = UnixTime::since_unix_epoch(now.since(UnixMillis::from_millis(0)));
        let signed = if version1::is(leaf) {
            let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
            version1::judge(leaf, &self.authorities, now, &algorithms)
        } else {
            self.verifier.verify_client_cert(leaf, intermediates, now).is_ok()
        };
        if !signed {
            return Err(
                "the client certificate is not signed, or no longer, by the CA that kube-apiserver's is",
            );
        }
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

fn verifier(ca: &str) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)), provider)
        .build()
        .map_err(|_| Error::NoCertificate)
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

/// Knows who may ask for others, by certificate, and keeps that knowledge fresh.
#[derive(Debug)]
pub struct FrontProxy {
    kube_apiserver: ArcSwapOption<Trust>,
    /// What is there says that kube-apiserver cannot be known, and why.
    unknown: ArcSwapOption<String>,
    /// Whether kube-apiserver is a door at all.
    is_door: bool,
    fronts: ArcSwapOption<Trust>,
    /// Told whenever it is known anew who may ask for others.
    learned: watch::Sender<()>,
    clock: Clock,
}

impl FrontProxy {
    /// Trusts nobody before [`Self::run`] has read whom to.
    pub fn new(clock: Clock) -> Self {
        let (kube_apiserver, fronts) = (ArcSwapOption::empty(), ArcSwapOption::empty());
        Self {
            kube_apiserver,
            unknown: ArcSwapOption::empty(),
            is_door: true,
            fronts,
            learned: watch::Sender::new(()),
            clock,
        }
    }

    /// For an installation in which kube-apiserver does not come here.
    #[must_use]
    pub fn without_kube_apiserver(self) -> Self {
        Self { is_door: false, ..self }
    }

    /// For whom somebody asks whom we trust in that; none when nobody says to ask for another.
    pub(super) fn identify(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<Arc<User>>, Failure> {
        let trust = self.kube_apiserver.load_full();
        let speaks = |name: &HeaderName| {
            USUAL.iter().any(|usual| name.as_str().starts_with(usual))
                || trust.as_ref().is_some_and(|trust| trust.speaks_by(name))
        };
        if !headers.keys().any(speaks) {
            return Ok(None);
        }
        let now = self.clock.now();
        let front = self.fronts.load_full().filter(|trust| trust.judge(&peer.certificates, now).is_ok());
        let user = match (front, trust) {
            (Some(trust), _) => trust.user(headers),
            (None, Some(trust)) => trust.judge(&peer.certificates, now).and_then(|()| trust.user(headers)),
            (None, None) if self.is_unknown() || peer.certificates.is_empty() => Err(FORGED),
            (None, None) => return Err(not_yet()),
        };
        user.map(|user| Some(Arc::new(user))).map_err(|why| Failure::new(Reason::Unauthorized, why))
    }

    /// Whether somebody shows a certificate by which he may ask for others. While it is not known whose that is, nobody
    /// does: anybody can show a certificate.
    pub(super) fn vouches(&self, peer: &Peer) -> bool {
        if peer.certificates.is_empty() {
            return false;
        }
        let now = self.clock.now();
        [&self.fronts, &self.kube_apiserver]
            .into_iter()
            .filter_map(ArcSwapOption::load_full)
            .any(|trust| trust.judge(&peer.certificates, now).is_ok())
    }

    /// Returns when somebody shows such a certificate, at once or when it has been learned whose it is.
    pub(super) async fn comes_to_vouch(&self, peer: &Peer) {
        let mut learned = self.learned.subscribe();
        while peer.certificates.is_empty() || !self.vouches(peer) {
            if peer.certificates.is_empty() || learned.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether kube-apiserver does not come here, for sure.
    fn is_unknown(&self) -> bool {
        !self.is_door || self.unknown.load().is_some()
    }

    /// Whether it is known who may ask for others. Producers come without kube-apiserver: that there is no way to know
    /// it keeps none of them away.
    pub fn check(&self) -> Check {
        if !self.is_door || self.kube_apiserver.load().is_some() {
            return Check::Passed;
        }
        match &*self.unknown.load() {
            Some(why) => Check::Warns(why.to_string()),
            None => {
                Check::Failed("it is not known yet which client certificate is kube-apiserver's".to_owned())
            }
        }
    }

    /// Trusts the fronts of this installation, by each CA bundle that comes, until told to stop.
    pub async fn trust_fronts(
        &self,
        mut bundles: watch::Receiver<Option<String>>,
        shutdown: CancellationToken,
    ) {
        loop {
            let bundle = bundles.borrow_and_update().clone();
            if let Some(bundle) = bundle {
                if let Ok(trust) = Trust::in_fronts(&bundle) {
                    self.fronts.store(Some(Arc::new(trust)));
                    self.learned.send_replace(());
                } else {
                    warn!("no front can be trusted: the CA bundle holds no usable certificate");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = bundles.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Reads the ConfigMap again and again until told to stop. What was read last counts while it cannot be read.
    pub async fn run(&self, client: Client, shutdown: CancellationToken) {
        let config_maps = Api::namespaced(client, NAMESPACE);
        let (mut version, mut said) = (None, None);
        loop {
            let refreshed = self.refresh(&config_maps, &mut version).await;
            let pause = match &refreshed {
                Err(Unread::NoAnswer(_)) if version.is_none() => SOON,
                Ok(()) | Err(Unread::NoAnswer(_) | Unread::Absent(_)) => EVERY,
            };
            let error = refreshed.err().map(|unread| self.learn(unread));
            if let Some(error) = error.as_ref().filter(|error| said.as_ref() != Some(*error)) {
                warn!(error, "kube-apiserver is not known by its client certificate");
            }
            said = error;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Keeps what is to be said when it is sure that kube-apiserver cannot be known; answers what it is.
    fn learn(&self, unread: Unread) -> String {
        match unread {
            Unread::NoAnswer(error) => error,
            Unread::Absent(error) => {
                self.unknown.store(Some(Arc::new(error.clone())));
                error
            }
        }
    }

    async fn refresh(&self, maps: &Api<ConfigMap>, version: &mut Option<String>) -> Result<(), Unread> {
        let map = match timeout(CALL, maps.get(NAME)).await {
            Ok(Ok(map)) => map,
            // It is not there, or may not be read.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                return Err(Unread::Absent(format!("{}; {CURE}", status.message)));
            }
            Ok(Err(error)) => return Err(Unread::NoAnswer(why(&error))),
            Err(_) => return Err(Unread::NoAnswer("the Kubernetes API does not answer".to_owned())),
        };
        if map.metadata.resource_version.is_some() && map.metadata.resource_version == *version {
            return Ok(());
        }
        let trust =
            Trust::read(&map.data.unwrap_or_default()).map_err(|error| Unread::Absent(error.to_string()))?;
        info!(allowed = ?trust.allowed, "kube-apiserver is known by its client certificate");
        self.kube_apiserver.store(Some(Arc::new(trust)));
        self.unknown.store(None);
        self.learned.send_replace(());
        *version = map.metadata.resource_version;
        Ok(())
    }

    #[cfg(test)]
    pub(in crate::server) fn trust(&self, data: &BTreeMap<String, String>) {
        self.kube_apiserver.store(Some(Arc::new(Trust::read(data).unwrap())));
        self.learned.send_replace(());
    }
}

const FORGED: &str = "headers that only kube-apiserver may send came without its client certificate";

/// Before the ConfigMap was read, somebody with a certificate may be kube-apiserver, and is to come again.
fn not_yet() -> Failure {
    let message = "it is not known yet which client certificate is kube-apiserver's: try again";
    Failure::later(Reason::ServiceUnavailable, message, SOON)
}

#[cfg(test)]
mod tests;
