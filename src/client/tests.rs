use std::path::PathBuf;

use super::*;

/// Of another machine: the file names its cluster's authority beside itself.
const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: here
contexts:
- { name: there, context: { cluster: far, user: nobody } }
- { name: here, context: { cluster: near, user: me, namespace: team-a } }
clusters:
- { name: far, cluster: { server: 'https://far.example' } }
- name: near
  cluster:
    server: https://near.example:6443
    certificate-authority: ca.crt
    tls-server-name: kubernetes
    proxy-url: http://user:canary@proxy:3128
users:
- { name: me, user: { token: canary-token } }
";

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let certificate = rcgen::generate_simple_self_signed(["near.example".to_owned()]).unwrap().cert;
    std::fs::write(folder.path().join("ca.crt"), certificate.pem()).unwrap();
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn refusal(text: &str) -> String {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (_folder, path) = written(text);
    let error = connect(Some(&path)).map(drop).unwrap_err();
    crate::cli::chain(&error)
}

#[test]
fn a_kubeconfig_is_read_as_kubectl_does() {
    let (_folder, path) = written(KUBECONFIG);
    let (config, proxy) = read(Kubeconfig::read_from(path)).unwrap();
    assert_eq!(config.cluster_url, "https://near.example:6443/");
    assert_eq!(
        (config.default_namespace.as_str(), config.root_cert.map(|all| all.len())),
        ("team-a", Some(1))
    );
    assert_eq!(config.tls_server_name.as_deref(), Some("kubernetes"));
    assert!(config.auth_info.token.is_some() && config.proxy_url.is_none());
    assert_eq!(proxy.as_deref(), Some("http://user:canary@proxy:3128"));
    let without = KUBECONFIG.replace("user: me", "user: gone").replace("certificate-authority: ca.crt", "");
    let (_folder, path) = written(&without);
    let (config, _) = read(Kubeconfig::read_from(path)).unwrap();
    assert!(config.auth_info.token.is_none() && config.root_cert.is_none());
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_says_why_without_secrets() {
    for (change, to, expected) in [
        ("current-context: here", "", "no current-context"),
        ("current-context: here", "current-context: ''", "no current-context"),
        ("current-context: here", "current-context: nowhere", "\"nowhere\", is not in it"),
        ("cluster: near, ", "cluster: lost, ", "is not in it, or names a cluster"),
        ("https://near.example:6443", "https://user:canary@near example", "is not a URL"),
        ("ca.crt", "missing.crt", "cannot read the certificate authority"),
        ("ca.crt", "kubeconfig", "is not PEM"),
        ("http://user:canary@proxy:3128", "ftp://user:canary@proxy", "must begin with http://"),
        ("http://user:canary@proxy:3128", "http://user:can ary@proxy", "is not the URL of a proxy"),
        ("http://user:canary@proxy:3128", "socks5://user:canary@proxy", "SOCKS"),
        ("token: canary-token", "token: [canary-token]", "not YAML with the fields"),
        ("token: canary-token", "token: 'canary-token", "not YAML with the fields"),
        ("users:", "\tusers: canary", "not YAML with the fields"),
    ] {
        let text = KUBECONFIG.replace(change, to);
        assert_ne!(text, KUBECONFIG, "{change}");
        let said = refusal(&text);
        assert!(said.contains(expected) && said.contains("kubeconfig"), "{said}");
        assert!(!said.contains("canary") && !said.contains("ary@"), "{said}");
    }
}
