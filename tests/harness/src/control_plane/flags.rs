//! How the three programs are started: their certificates, ports and flags.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{kubeconfig, program};
use crate::{
    pki::{Authority, Pair, token_key},
    ports::Port,
    process::Group,
};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The ports of one control plane, ours as long as it lives.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) etcd: Port,
    pub(super) peers: Port,
    pub(super) apiserver: Port,
}

/// What the programs read from the instance's folder.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) ca_pem: String,
    pub(super) admin_kubeconfig: PathBuf,
    controllers_kubeconfig: PathBuf,
    ca: PathBuf,
    serving: PairFiles,
    token_key: PathBuf,
    token_public_key: PathBuf,
    front_proxy_ca: PathBuf,
    front_proxy: PairFiles,
    /// Whether kube-apiserver says by which certificate aggregated APIs know it.
    pub(super) aggregation: bool,
}

#[derive(Debug)]
struct PairFiles {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    pub(super) fn write(group: &Group, server: &str) -> anyhow::Result<Self> {
        let authority = Authority::new("kubernetes")?;
        let front_proxy_authority = Authority::new("front-proxy")?;
        let ca_pem = authority.pem();
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        let admin = authority.client("admin", Some("system:masters"))?;
        let controllers = authority.client("system:kube-controller-manager", None)?;
        let (token_key, token_public_key) = token_key()?;
        let kubeconfig_for = |user: &Pair| kubeconfig::with_certificate(server, &ca_pem, user);
        Ok(Self {
            admin_kubeconfig: group.write("admin.kubeconfig", &kubeconfig_for(&admin))?,
            controllers_kubeconfig: group.write("controllers.kubeconfig", &kubeconfig_for(&controllers))?,
            ca: group.write("ca.crt", &ca_pem)?,
            serving: PairFiles::write(group, "apiserver", &authority.server(&names)?)?,
            token_key: group.write("service-account.key", &token_key)?,
            token_public_key: group.write("service-account.pub", &token_public_key)?,
            front_proxy_ca: PairFiles::write(group, "front-proxy-ca", &front_proxy_authority.pair())?
                .certificate,
            front_proxy: PairFiles::write(
                group,
                "front-proxy",
                &front_proxy_authority.client("front-proxy-client", None)?,
            )?,
            aggregation: true,
            ca_pem,
        })
    }
}

impl PairFiles {
    fn write(group: &Group, name: &str, pair: &Pair) -> anyhow::Result<Self> {
        Ok(Self {
            certificate: group.write(&format!("{name}.crt"), &pair.certificate)?,
            key: group.write(&format!("{name}.key"), &pair.key)?,
        })
    }
}

/// Nothing here has to survive a power cut, so etcd does not wait for the disk.
pub(super) fn etcd(programs: &Path, group: &Group, ports: &Ports) -> Command {
    let clients = format!("http://{}", ports.etcd.address());
    let peers = format!("http://{}", ports.peers.address());
    let mut command = program(programs, "etcd");
    command
        .arg("--data-dir")
        .arg(group.folder().join("etcd"))
        .arg("--unsafe-no-fsync")
        .arg("--log-level=warn")
        .arg(format!("--listen-client-urls={clients}"))
        .arg(format!("--advertise-client-urls={clients}"))
        .arg(format!("--listen-peer-urls={peers}"))
        .arg(format!("--initial-advertise-peer-urls={peers}"))
        .arg(format!("--initial-cluster=default={peers}"));
    command
}

pub(super) fn apiserver(programs: &Path, group: &Group, files: &Files, ports: &Ports) -> Command {
    let mut command = program(programs, "kube-apiserver");
    command
        .arg(format!("--etcd-servers=http://{}", ports.etcd.address()))
        .arg(format!("--secure-port={}", ports.apiserver.number()))
        .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
        // Endpoints on loopback are not allowed, so the Service `kubernetes` has none.
        .arg("--endpoint-reconciler-type=none")
        .arg("--service-cluster-ip-range=10.0.0.0/24")
        .arg("--authorization-mode=RBAC")
        .arg("--allow-privileged=true")
        .arg("--profiling=false")
        // Says when it has read its front-proxy certificate anew.
        .arg("--vmodule=dynamic_serving_content=2")
        .args([format!("--service-account-issuer={ISSUER}"), format!("--api-audiences={ISSUER}")]);
    if files.aggregation {
        command.arg("--requestheader-client-ca-file").arg(&files.front_proxy_ca).args([
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-uid-headers=X-Remote-Uid",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        ]);
    }
    for (flag, path) in [
        ("--cert-dir", &group.folder().join("apiserver")),
        ("--client-ca-file", &files.ca),
        ("--tls-cert-file", &files.serving.certificate),
        ("--tls-private-key-file", &files.serving.key),
        ("--service-account-key-file", &files.token_public_key),
        ("--service-account-signing-key-file", &files.token_key),
        ("--proxy-client-cert-file", &files.front_proxy.certificate),
        ("--proxy-client-key-file", &files.front_proxy.key),
    ] {
        command.arg(flag).arg(path);
    }
    command
}

pub(super) fn controllers(programs: &Path, group: &Group, files: &Files) -> Command {
    let mut command = program(programs, "kube-controller-manager");
    command
        .args([
            "--secure-port=0",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            // There are no nodes, and many tests create and delete at once.
            "--controllers=*,-node-ipam-controller,-node-lifecycle-controller",
            "--kube-api-qps=300",
            "--kube-api-burst=600",
            "--concurrent-namespace-syncs=20",
            "--concurrent-serviceaccount-token-syncs=10",
        ])
        .current_dir(group.folder());
    for (flag, path) in [
        ("--kubeconfig", &files.controllers_kubeconfig),
        ("--service-account-private-key-file", &files.token_key),
        ("--root-ca-file", &files.ca),
    ] {
        command.arg(flag).arg(path);
    }
    command
}
