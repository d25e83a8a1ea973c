//! The client of the Kubernetes API: from a kubeconfig or the pod's ServiceAccount, through the proxy that either or the
//! environment names. Deliveries never use that one.

mod proxy;

use std::path::Path;

use kube::Client;
use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, KubeconfigError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tracing::info;

use crate::run::Error;
use proxy::{Environment, proxy};

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// Parsers show the text around what they don't understand, which may be a token.
    #[error("it is not YAML with the fields of a kubeconfig: check it with `kubectl config view`")]
    NotAKubeconfig,
    #[error("it has no current-context: set one with `kubectl config use-context`")]
    NoContext,
    #[error("its current context, {0:?}, is not in it, or names a cluster that is not")]
    NoSuchContext(String),
    #[error("its cluster has no server")]
    NoServer,
    #[error("the server of its cluster is not a URL")]
    NotAUrl,
    #[error("the certificate authority of its cluster is not PEM")]
    NotPem,
    #[error("cannot read the certificate authority of its cluster")]
    Authority(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Other(#[from] KubeconfigError),
}

/// A client by this kubeconfig; without one by the pod's ServiceAccount, or else the user's own kubeconfig.
///
/// # Errors
/// Which file, variable or field cannot be used. No password or token is in the message.
pub(crate) fn connect(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let (mut config, named) = match kubeconfig {
        Some(file) => {
            let what = || format!("the client of kubeconfig {}", file.display());
            read(Kubeconfig::read_from(file)).map_err(|error| Error::start(what(), error))?
        }
        None => infer()?,
    };
    let environment = Environment::of_process();
    let used = proxy(&config.cluster_url, named.as_deref(), &environment)
        .map_err(|error| Error::start("the client of the Kubernetes API", error))?;
    if let Some(used) = &used {
        let (host, port) = (used.url.host(), used.url.port_u16());
        info!(host, port, named_by = used.named_by, "the Kubernetes API is asked through a proxy");
    }
    config.proxy_url = used.map(|used| used.url);
    Client::try_from(config).map_err(|error| Error::start("the client of the Kubernetes API", error))
}

/// As kubectl finds its cluster: the user's kubeconfig, and without one the pod's ServiceAccount.
fn infer() -> Result<(kube::Config, Option<String>), Error> {
    let what = "the client of the Kubernetes API: give --kubeconfig, or run in a pod";
    let mut inferred = match Kubeconfig::read() {
        Ok(found) if found.current_context.is_some() => {
            read(Ok(found)).map_err(|error| Error::start(what, error))?
        }
        found => match (kube::Config::incluster(), found) {
            (Ok(config), _) => (config, None),
            (Err(_), Err(error)) => return Err(Error::start(what, unusable(error))),
            (Err(error), Ok(_)) => return Err(Error::start(what, error)),
        },
    };
    inferred.0.apply_debug_overrides();
    Ok(inferred)
}

fn unusable(error: KubeconfigError) -> Unusable {
    match error {
        KubeconfigError::Parse(_) => Unusable::NotAKubeconfig,
        error => Unusable::Other(error),
    }
}

/// The configuration of the current context, without a proxy, and the proxy that it names. kube's own way reads the
/// environment's proxies as well, and fails on what others pass over.
fn read(kubeconfig: Result<Kubeconfig, KubeconfigError>) -> Result<(kube::Config, Option<String>), Unusable> {
    let kubeconfig = kubeconfig.map_err(unusable)?;
    let (context, cluster, user) = current(kubeconfig)?;
    let server = cluster.server.as_deref().ok_or(Unusable::NoServer)?;
    let mut config = kube::Config::new(server.parse().map_err(|_| Unusable::NotAUrl)?);
    config.root_cert = authority(&cluster)?;
    if let Some(namespace) = context.namespace {
        config.default_namespace = namespace;
    }
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or(false);
    config.disable_compression = cluster.disable_compression.unwrap_or(false);
    config.auth_info = user;
    if let Some(exec) = config.auth_info.exec.as_mut().filter(|exec| exec.provide_cluster_info) {
        exec.cluster = Some((&cluster).try_into()?);
    }
    config.tls_server_name = cluster.tls_server_name;
    Ok((config, cluster.proxy_url.filter(|url| !url.is_empty())))
}

fn current(kubeconfig: Kubeconfig) -> Result<(Context, Cluster, AuthInfo), Unusable> {
    let Kubeconfig { current_context, contexts, clusters, auth_infos, .. } = kubeconfig;
    let name = current_context.filter(|name| !name.is_empty()).ok_or(Unusable::NoContext)?;
    let context = contexts.into_iter().find(|context| context.name == name).and_then(|found| found.context);
    let found = context.and_then(|context| {
        let cluster = clusters.into_iter().find(|cluster| cluster.name == context.cluster)?.cluster?;
        Some((context, cluster))
    });
    let (context, cluster) = found.ok_or(Unusable::NoSuchContext(name))?;
    // As for kubectl, nobody in particular asks when the user is not there.
    let user = auth_infos.into_iter().find(|user| Some(&user.name) == context.user.as_ref());
    Ok((context, cluster, user.and_then(|user| user.auth_info).unwrap_or_default()))
}

/// The certificates that the cluster's server is judged by; none: the system's.
fn authority(cluster: &Cluster) -> Result<Option<Vec<Vec<u8>>>, Unusable> {
    use base64::Engine as _;
    let unreadable = |error: Box<dyn std::error::Error + Send + Sync>| Unusable::Authority(error);
    let pem = match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
        (Some(data), _) if !data.is_empty() => base64::engine::general_purpose::STANDARD
            .decode(data)
            .map_err(|error| unreadable(error.into()))?,
        (_, Some(file)) => std::fs::read(file).map_err(|error| unreadable(error.into()))?,
        _ => return Ok(None),
    };
    let certificates = CertificateDer::pem_slice_iter(&pem).map(|each| each.map(|each| each.to_vec()));
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|_| Unusable::NotPem)?;
    if certificates.is_empty() { Err(Unusable::NotPem) } else { Ok(Some(certificates)) }
}

#[cfg(test)]
mod tests;
