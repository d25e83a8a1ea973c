//! Kubeconfigs: written for users with a certificate or a token, read for a given cluster.
//! They are JSON, which is YAML as well.

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::pki::Pair;

pub(super) fn with_certificate(server: &str, ca_pem: &str, user: &Pair) -> String {
    let user = json!({
        "client-certificate-data": STANDARD.encode(&user.certificate),
        "client-key-data": STANDARD.encode(&user.key),
    });
    document(server, ca_pem, &user)
}

pub(super) fn with_token(server: &str, ca_pem: &str, token: &str) -> String {
    document(server, ca_pem, &json!({ "token": token }))
}

fn document(server: &str, ca_pem: &str, user: &Value) -> String {
    let mut cluster = json!({ "server": server });
    if let (Value::Object(fields), false) = (&mut cluster, ca_pem.is_empty()) {
        fields.insert("certificate-authority-data".to_owned(), STANDARD.encode(ca_pem).into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": cluster }],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "current-context": "test",
    })
    .to_string()
}

/// From what `kubectl config view --raw --minify --flatten -o json` prints. The authority is empty
/// where the server's certificate is one that everybody trusts.
pub(super) fn server_and_ca(kubeconfig: &str) -> anyhow::Result<(String, String)> {
    let document: Value = serde_json::from_str(kubeconfig)?;
    let cluster = document.pointer("/clusters/0/cluster").context("the kubeconfig names no cluster")?;
    let text = |field: &str| cluster.get(field).and_then(Value::as_str).unwrap_or_default();
    let server = text("server").to_owned();
    ensure!(!server.is_empty(), "the kubeconfig's cluster has no server");
    let ca = STANDARD.decode(text("certificate-authority-data"))?;
    Ok((server, String::from_utf8(ca)?))
}
