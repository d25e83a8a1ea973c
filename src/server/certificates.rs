//! Keeps the CA in a Secret, its bundle in a ConfigMap, and the serving certificate fresh in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ca::{Authorities, Authority, Invalid, Leaf, Validity};
use super::mutual::{FRONT, Mutual};
use super::quiet::Quiet;
use super::tls::{Error, Served, server_config};
use crate::clock::Clock;
use crate::config::ServiceName;
use crate::model::causes::chain;
use crate::model::time::UnixMillis;

/// Name of the Secret with the CA and of the ConfigMap with its bundle.
pub const CA_NAME: &str = "hookwright-ca";
/// Key of the bundle in both.
pub const BUNDLE_KEY: &str = "ca.crt";
/// Field manager of what is applied.
pub const FIELD_MANAGER: &str = "hookwright";

/// How often Secret, ConfigMap and certificate are looked at; also the longest time that a changed ConfigMap
/// stays changed.
const EVERY: Duration = Duration::from_secs(15);
/// How soon after a failure.
const SOON: Duration = Duration::from_secs(5);
/// For one call to the Kubernetes API.
const CALL: Duration = Duration::from_secs(5);
/// How often a Secret that another replica changes meanwhile is read anew.
const TRIES: usize = 5;

/// The certificates of one process. Several replicas agree through the Secret: the first that makes it wins.
pub struct Certificates {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    namespace: String,
    names: Vec<String>,
    clock: Clock,
    served: Arc<Served>,
    /// Of a front.
    mutual: Option<Mutual>,
    bundle: watch::Sender<Option<String>>,
    /// One at a time, so that an older reading never comes after a newer one.
    refreshing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    authorities: Option<Arc<Authorities>>,
    leaf: Option<Issued>,
    client: Option<Issued>,
    /// Why the CA in the Secret is no good, until another one is there.
    invalid: Option<Invalid>,
}

#[derive(Clone)]
struct Issued {
    by: String,
    validity: Validity,
    ca: Validity,
}

impl Issued {
    /// Whether it is valid, two thirds of its time are not over, and this CA still is the one that signs.
    fn is_fresh(&self, signing: &Authority, now: UnixMillis) -> bool {
        let is_valid = self.validity.check(now).is_ok();
        is_valid && self.by == signing.certificate && now < self.validity.two_thirds()
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Nothing is read or made before [`Self::refresh`] or [`Self::run`].
    pub fn new(client: Client, service: &ServiceName, clock: Clock) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &service.namespace),
            config_maps: Api::namespaced(client, &service.namespace),
            namespace: service.namespace.clone(),
            names: names(service),
            clock,
            served: Arc::default(),
            mutual: None,
            bundle: watch::Sender::new(None),
            refreshing: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Those of a front, which also shows a client certificate to the pod with the store.
    #[must_use]
    pub fn of_front(self) -> Self {
        Self { mutual: Some(Mutual::new()), ..self }
    }

    /// TLS towards the pod with the store: always shows the current client certificate and trusts the current CA.
    ///
    /// # Errors
    /// They are not those of a front, or the TLS library refuses its own defaults.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, Error> {
        self.mutual.as_ref().ok_or(Error::NoCertificate)?.client_config()
    }

    /// By which name the other processes of this installation are known in TLS.
    pub fn server_name(&self) -> &str {
        self.names.first().map_or("localhost", String::as_str)
    }

    /// TLS that always shows the current certificate; handshakes fail before the first is there.
    ///
    /// # Errors
    /// The TLS library refuses its own defaults.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        server_config(Arc::clone(&self.served))
    }

    /// What clients should trust; none before the CA was read.
    pub fn bundle(&self) -> Option<String> {
        self.bundle.borrow().clone()
    }

    /// What clients should trust, and each change of it.
    pub fn bundles(&self) -> watch::Receiver<Option<String>> {
        self.bundle.subscribe()
    }

    /// Readiness: whether a valid certificate is shown.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        let state = self.lock();
        self.check_one("serving", state.leaf.as_ref(), state.invalid)
    }

    /// Readiness of a front: whether it has a valid client certificate.
    ///
    /// # Errors
    /// Why not.
    pub fn check_client(&self) -> Result<(), String> {
        let state = self.lock();
        self.check_one("client", state.client.as_ref(), state.invalid)
    }

    fn check_one(
        &self,
        which: &str,
        issued: Option<&Issued>,
        invalid: Option<Invalid>,
    ) -> Result<(), String> {
        let Some(leaf) = issued else {
            let why = invalid.map(|invalid| format!(": {}", self.told(invalid)));
            return Err(format!("the {which} certificate is not made yet{}", why.unwrap_or_default()));
        };
        let now = self.clock.now();
        leaf.validity.check(now).map_err(|invalid| format!("the {which} certificate {invalid}"))?;
        leaf.ca.check(now).map_err(|invalid| self.told(invalid))
    }

    fn told(&self, invalid: Invalid) -> String {
        let secret = self.path();
        format!("the CA in Secret {secret} {invalid}; a new one is made as soon as the Secret can be written")
    }

    /// Keeps everything fresh until told to stop. Failures are tried again soon; meanwhile the CA that was read
    /// before goes on issuing.
    pub async fn run(&self, shutdown: CancellationToken) {
        static FAILED: Quiet = Quiet::new(Duration::from_mins(5));
        loop {
            let pause = match self.refresh().await {
                Ok(()) => EVERY,
                Err(error) => {
                    if let Some(silent) = FAILED.speak() {
                        warn!(error = %chain(&error), silent, "certificates are not in order");
                    }
                    SOON
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Reads or makes the CA, renews what is due, and publishes the bundle.
    ///
    /// # Errors
    /// The Kubernetes API failed or the Secret is not usable. The serving certificate is renewed all the same
    /// if a CA was read before.
    pub async fn refresh(&self) -> Result<(), Error> {
        let _one = self.refreshing.lock().await;
        let read = self.read_authorities().await;
        if let Ok(authorities) = &read {
            self.adopt(authorities)?;
        }
        self.renew()?;
        self.publish(&read?.bundle()).await
    }

    /// Makes the CA known to whoever trusts it, before a certificate that it signs is shown.
    fn adopt(&self, authorities: &Arc<Authorities>) -> Result<(), Error> {
        let bundle = authorities.bundle();
        let mut state = self.lock();
        (state.authorities, state.invalid) = (Some(Arc::clone(authorities)), None);
        drop(state);
        if let Some(mutual) = &self.mutual {
            mutual.trust(&bundle)?;
        }
        let certificates = bundle.matches(END).count();
        let changed = self.bundle.send_if_modified(|is| {
            let changed = is.as_ref() != Some(&bundle);
            *is = Some(bundle);
            changed
        });
        if changed {
            info!(certificates, "another CA bundle is in force");
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn shown(&self) -> Option<Vec<u8>> {
        self.served.shown()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Issues new certificates when two thirds of the last ones' time are over or another CA signs.
    fn renew(&self) -> Result<(), Error> {
        let mut state = self.lock();
        let Some(authorities) = state.authorities.clone() else { return Ok(()) };
        let (now, signing) = (self.clock.now(), &authorities.signing);
        let is_fresh =
            |issued: &Option<Issued>| issued.as_ref().is_some_and(|issued| issued.is_fresh(signing, now));
        let put = |which: &str, leaf: Leaf, shown: &Served| {
            info!(expires = %leaf.validity.to, which, "new certificate");
            shown.set(leaf.certified);
            Some(Issued { by: signing.certificate.clone(), validity: leaf.validity, ca: leaf.ca })
        };
        if !is_fresh(&state.leaf) {
            state.leaf = put("serving", signing.issue(&self.names, now)?, &self.served);
        }
        if let Some(mutual) = &self.mutual
            && !is_fresh(&state.client)
        {
            state.client = put("client", signing.issue_client(FRONT, now)?, &mutual.shown);
        }
        Ok(())
    }

    /// The CAs as the Secret has them, after what is due was done to it.
    async fn read_authorities(&self) -> Result<Arc<Authorities>, Error> {
        let params = PostParams::default();
        for _ in 0..TRIES {
            let found = self.call("get", "Secret", self.secrets.get_opt(CA_NAME)).await?;
            let written = match found {
                None => {
                    let authorities = Authorities::make(self.clock.now())?;
                    let secret = to_secret(&authorities, Secret::default());
                    let create = self.secrets.create(&params, &secret);
                    (self.call("create", "Secret", create).await, authorities)
                }
                Some(secret) => {
                    let mut authorities = self.read_secret(&secret)?;
                    let now = self.clock.now();
                    let invalid = authorities.signing.check(now).err();
                    if !authorities.advance(now)? {
                        return Ok(Arc::new(authorities));
                    }
                    if let Some(invalid) = invalid
                        && self.lock().invalid.replace(invalid).is_none()
                    {
                        warn!(secret = CA_NAME, "the CA {invalid}; another one takes its place");
                    }
                    let secret = to_secret(&authorities, secret);
                    let replace = self.secrets.replace(CA_NAME, &params, &secret);
                    (self.call("replace", "Secret", replace).await, authorities)
                }
            };
            match written {
                (Ok(_), authorities) => {
                    info!(secret = CA_NAME, "wrote the certificate authority");
                    return Ok(Arc::new(authorities));
                }
                // Another replica was faster: take its.
                (Err(Error::Api { source, .. }), _) if is_conflict(&source) => {}
                (Err(error), _) => return Err(error),
            }
        }
        Err(Error::Contended(self.path()))
    }

    fn read_secret(&self, secret: &Secret) -> Result<Authorities, Error> {
        from_secret(secret)
            .map_err(|source| Error::Unusable { secret: self.path(), source: Box::new(source) })
    }

    /// Writes the bundle into the operator's own ConfigMap when it is not there as it should be.
    async fn publish(&self, bundle: &str) -> Result<(), Error> {
        let found = self.call("get", "ConfigMap", self.config_maps.get_opt(CA_NAME)).await?;
        if found
            .and_then(|map| map.data)
            .is_some_and(|data| data.get(BUNDLE_KEY).is_some_and(|is| is == bundle))
        {
            return Ok(());
        }
        let map = ConfigMap {
            metadata: metadata(ObjectMeta::default()),
            data: Some(BTreeMap::from([(BUNDLE_KEY.to_owned(), bundle.to_owned())])),
            ..ConfigMap::default()
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&map);
        self.call("apply", "ConfigMap", self.config_maps.patch(CA_NAME, &params, &patch)).await?;
        info!(config_map = CA_NAME, "published the CA bundle");
        Ok(())
    }

    async fn call<T>(
        &self,
        verb: &str,
        kind: &str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Error> {
        let what = || format!("{verb} {kind} {}", self.path());
        match timeout(CALL, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(Error::Api { what: what(), source: Box::new(source) }),
            Err(_) => Err(Error::Timeout(what())),
        }
    }

    fn path(&self) -> String {
        format!("{}/{CA_NAME}", self.namespace)
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Every name by which clients in the cluster call the Service.
fn names(service: &ServiceName) -> Vec<String> {
    let ServiceName { namespace, name } = service;
    vec![
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}.svc.cluster.local"),
        format!("{name}.{namespace}"),
        name.clone(),
        "localhost".to_owned(),
    ]
}

fn metadata(found: ObjectMeta) -> ObjectMeta {
    let mut labels = found.labels.unwrap_or_default();
    labels.insert("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned());
    labels.insert("app.kubernetes.io/part-of".to_owned(), "hookwright".to_owned());
    ObjectMeta { name: Some(CA_NAME.to_owned()), labels: Some(labels), ..found }
}

const FORMER_KEY: &str = "former.crt";
const END: &str = "-----END CERTIFICATE-----";

fn to_secret(authorities: &Authorities, found: Secret) -> Secret {
    let Authorities { signing, next, former } = authorities;
    let mut data = BTreeMap::from([
        ("tls.crt", signing.certificate.clone()),
        ("tls.key", signing.key.clone()),
        (BUNDLE_KEY, authorities.bundle()),
    ]);
    if let Some(next) = next {
        data.extend([("next.crt", next.certificate.clone()), ("next.key", next.key.clone())]);
    }
    if !former.is_empty() {
        data.insert(FORMER_KEY, former.concat());
    }
    Secret {
        metadata: metadata(found.metadata),
        type_: found.type_.or_else(|| Some("kubernetes.io/tls".to_owned())),
        data: Some(
            data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect(),
        ),
        ..Secret::default()
    }
}

fn from_secret(secret: &Secret) -> Result<Authorities, Error> {
    let entry =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let pair = |certificate, key| Some((entry(certificate)?, entry(key)?));
    let (certificate, key) = pair("tls.crt", "tls.key").ok_or(Error::NoCertificate)?;
    let next = pair("next.crt", "next.key")
        .map(|(certificate, key)| Authority::read(certificate, key))
        .transpose()?;
    let former = String::from_utf8_lossy(entry(FORMER_KEY).unwrap_or_default());
    let former =
        former.split_inclusive(END).filter(|pem| pem.contains(END)).map(|pem| format!("{}\n", pem.trim()));
    Ok(Authorities { signing: Authority::read(certificate, key)?, next, former: former.collect() })
}

#[cfg(test)]
mod tests;
