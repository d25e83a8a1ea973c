//! Why TLS fails: each cause against a server on loopback that has it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, NameConstraints,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::testing::attempts::{UNREACHABLE, error, send, to};
use super::testing::receiver::read_request;
use crate::model::verdict::Verdict;
use crate::routes::{Endpoint, TlsMaterial};

const HOST: &str = "x.localhost";

/// What a server shows, whether or not it fits together.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A server that shows this and answers 200.
struct Server {
    port: u16,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(chain: Vec<CertificateDer<'static>>, key: &str) -> Self {
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shows(Arc::new(CertifiedKey::new(chain, key)))));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = read_request(&mut stream).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
            }
        });
        Self { port, _tasks: tasks }
    }
}

/// What an attempt says that trusts this.
async fn said(port: u16, ca: &str) -> (Verdict, String) {
    let tls = TlsMaterial { ca: Some(ca.as_bytes().into()), client: None };
    let endpoint = to(&format!("https://{HOST}:{port}/"), tls);
    let sent = send(Endpoint { timeout: Duration::from_secs(5), ..endpoint }).await;
    (sent.verdict, error(&sent).to_owned())
}

/// A certificate with its key, able to issue others.
struct Made {
    der: CertificateDer<'static>,
    pem: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn make(params: CertificateParams, by: Option<&Made>) -> Made {
    let key = KeyPair::generate().unwrap();
    let certificate = match by {
        Some(by) => params.signed_by(&key, &by.issuer),
        None => params.self_signed(&key),
    };
    let certificate = certificate.unwrap();
    let (der, pem, text) = (certificate.der().clone(), certificate.pem(), key.serialize_pem());
    Made { der, pem, key: text, issuer: Issuer::new(params, key) }
}

fn changed(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = params("leaf");
    change(&mut params);
    params
}

/// A cause, what the server shows, with which key, what we trust, and what is said (none: it is well).
type Case = (&'static str, Vec<CertificateDer<'static>>, String, String, Option<&'static str>);

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let root = make(ca_params("root"), None);
    let leaf = |change: fn(&mut CertificateParams)| make(changed(change), Some(&root));
    let case =
        |cause, made: Made, expected| (cause, vec![made.der], made.key, root.pem.clone(), Some(expected));
    let mut cases: Vec<Case> = vec![
        case(
            "expired",
            leaf(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)),
            "it, or one above it, expired at 2020-01-01T00:00:00Z (Expired); renew it",
        ),
        case(
            "not valid yet",
            leaf(|params| params.not_before = rcgen::date_time_ymd(2090, 1, 1)),
            "it, or one above it, is valid from 2090-01-01T00:00:00Z on (NotValidYet); our clock says 20",
        ),
        case(
            "another name",
            leaf(|params| {
                params.subject_alt_names =
                    CertificateParams::new(vec!["canary.example".to_owned()]).unwrap().subject_alt_names;
            }),
            "it is not valid for this host (NotValidForName); have it issued with subjectAltName x.localhost",
        ),
        case(
            "no name",
            leaf(|params| params.subject_alt_names.clear()),
            "it names no host (NotValidForName); have it issued with subjectAltName x.localhost, a common name does not count",
        ),
        case(
            "for clients",
            leaf(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            "it is not meant for servers (InvalidPurpose); have it issued with extendedKeyUsage serverAuth",
        ),
        case(
            "an unknown critical extension",
            leaf(|params| {
                let mut extension =
                    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55555, 1], vec![5, 0]);
                extension.set_criticality(true);
                params.custom_extensions.push(extension);
            }),
            "it has a critical extension that is not known here (UnsupportedCriticalExtension); have it issued without",
        ),
        case(
            "a CA as a server",
            leaf(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "it is that of a CA, which must not serve a host (CaUsedAsEndEntity); have it issued without CA:TRUE (openssl req",
        ),
    ];
    let own = make(params("own"), None);
    cases.push((
        "self-signed",
        vec![own.der.clone()],
        own.key.clone(),
        root.pem.clone(),
        Some("it is self-signed (SelfSigned); tls.caRef can name it, unless it is a CA itself"),
    ));
    cases.push(("self-signed and named by caRef", vec![own.der], own.key, own.pem, None));
    let own = make(ca_params("own CA"), None);
    let served = make(changed(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), None);
    cases.push((
        "a self-signed CA, named by caRef",
        vec![served.der],
        served.key,
        served.pem,
        Some("it is that of a CA, which must not serve a host"),
    ));
    let stranger = make(params("leaf"), Some(&own));
    cases.push(("unknown CA, no chain", vec![stranger.der.clone()], stranger.key.clone(), root.pem.clone(), Some("unknown issuer, and no other certificate is sent (UnknownIssuer); let the receiver send its whole chain, or tls.caRef must name its CA")));
    cases.push((
        "unknown CA, sent along",
        vec![stranger.der, own.der],
        stranger.key,
        root.pem.clone(),
        Some("unknown issuer (UnknownIssuer); tls.caRef must name its CA, in place of the public ones"),
    ));
    let renewed = make(ca_params("root"), None);
    let by_renewed = make(params("leaf"), Some(&renewed));
    cases.push(("the CA has another key", vec![by_renewed.der], by_renewed.key, root.pem.clone(), Some("the trusted CA of its issuer's name has another key than the one that signed (OtherKey); put that CA's certificate of today into tls.caRef")));
    let between = make(ca_params("between"), Some(&root));
    let below = make(params("leaf"), Some(&between));
    cases.push((
        "an intermediate is not sent",
        vec![below.der.clone()],
        below.key.clone(),
        root.pem.clone(),
        Some("unknown issuer, and no other certificate is sent"),
    ));
    cases.push(("an intermediate is sent", vec![below.der, between.der], below.key, root.pem.clone(), None));
    let no_ca = make(params("no CA"), Some(&root));
    let below = make(params("leaf"), Some(&no_ca));
    cases.push((
        "issued by no CA",
        vec![below.der, no_ca.der],
        below.key,
        root.pem.clone(),
        Some("it was issued by a certificate that is no CA (EndEntityUsedAsCa)"),
    ));
    let mut narrow = ca_params("narrow");
    let subtree = GeneralSubtree::DnsName("elsewhere.example".to_owned());
    narrow.name_constraints =
        Some(NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: Vec::new() });
    let narrow = make(narrow, None);
    let below = make(params("leaf"), Some(&narrow));
    cases.push(("name constraints", vec![below.der], below.key, narrow.pem, Some("its CA may not issue for the names in it (NameConstraintViolation); have it issued by another CA")));
    let mut short = ca_params("short");
    short.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short = make(short, Some(&root));
    let between = make(ca_params("between"), Some(&short));
    let below = make(params("leaf"), Some(&between));
    cases.push((
        "a path that is too long",
        vec![below.der, between.der, short.der],
        below.key,
        root.pem.clone(),
        Some("a CA above it may not have so many below it (PathLenConstraintViolated)"),
    ));
    let (one, other) = (make(params("leaf"), Some(&root)), make(params("leaf"), Some(&root)));
    cases.push((
        "another key than the certificate's",
        vec![one.der.clone()],
        other.key,
        root.pem.clone(),
        Some("its signature is wrong (BadSignature)"),
    ));
    cases.push((
        "no certificate at all",
        vec![CertificateDer::from(b"canary".to_vec())],
        one.key,
        root.pem,
        Some("it is malformed (BadEncoding)"),
    ));
    cases
}

#[tokio::test]
async fn why_a_certificate_is_not_trusted_is_told_with_the_cure() {
    for (cause, chain, key, ca, expected) in cases() {
        let server = Server::start(chain, &key).await;
        let (verdict, error) = said(server.port, &ca).await;
        let Some(expected) = expected else {
            assert_eq!((verdict, &*error), (Verdict::Delivered, ""), "{cause}");
            continue;
        };
        let expected = format!("TLS: the receiver's certificate is not trusted: {expected}");
        assert!(error.starts_with(&expected), "{cause}: {error} in place of {expected}");
        assert_eq!(verdict, UNREACHABLE, "{cause}");
        assert!(error.len() < 400 && !error.contains("canary"), "{cause}: {error}");
    }
}

#[tokio::test]
async fn a_port_without_tls_says_so() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { while listener.accept().await.is_ok() {} });
    let root = make(ca_params("root"), None);
    let (_, error) = said(port, &root.pem).await;
    assert_eq!(
        error,
        format!("TLS: {HOST}:{port} ended the connection in the handshake; is TLS on this port?")
    );
}

/// Runs `openssl` in this directory; whether there is such a program.
fn openssl(directory: &Path, script: &str) -> bool {
    let run = Command::new("sh").args(["-ec", script]).current_dir(directory).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    if said.contains("openssl: not found") {
        eprintln!("NOT TRIED: openssl is not installed");
        return false;
    }
    assert!(run.status.success(), "{script}: {said}");
    true
}

fn ders(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().collect::<Result<_, _>>().unwrap()
}

const NEW_CA: &str =
    "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 9 2>/dev/null
openssl ecparam -name prime256v1 -genkey -noout -out key; openssl pkcs8 -topk8 -nocrypt -in key -out leaf.key
openssl req -new -key leaf.key -subj /CN=x.localhost -out leaf.csr
printf 'subjectAltName=DNS:x.localhost' > extensions";

#[tokio::test]
async fn what_openssl_makes_by_habit_is_told_with_the_cure() {
    for (cause, script, expected) in [
        (
            "SHA-1",
            "openssl x509 -req -sha1 -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile extensions -out leaf.crt",
            "it, or one above it, is signed with SHA-1, which is broken (UnsupportedSignatureAlgorithm); have it issued with",
        ),
        (
            "MD5",
            "openssl x509 -req -md5 -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile extensions -out leaf.crt",
            "it, or one above it, is signed with MD5, which is broken (UnsupportedSignatureAlgorithm)",
        ),
        (
            "X.509 version 1",
            "openssl x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out leaf.crt",
            "it is of X.509 version 1 (UnsupportedCertVersion); have it issued with extensions",
        ),
        (
            "a CA with a short key",
            "openssl req -x509 -newkey rsa:1024 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 9 2>/dev/null
             openssl x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile extensions -out leaf.crt",
            "an RSA key in its chain has 1024 bits (KeySize); have it issued with one of 2048 to 8192",
        ),
        (
            "openssl req -x509",
            "openssl req -x509 -key leaf.key -subj /CN=x.localhost -addext subjectAltName=DNS:x.localhost -out leaf.crt
             cp leaf.crt ca.crt",
            "it is that of a CA, which must not serve a host (CaUsedAsEndEntity); have it issued without CA:TRUE",
        ),
        (
            "the cure of that",
            "openssl req -x509 -key leaf.key -subj /CN=x.localhost -addext subjectAltName=DNS:x.localhost \
             -addext basicConstraints=critical,CA:FALSE -out leaf.crt
             cp leaf.crt ca.crt",
            "",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        if !openssl(directory.path(), &format!("{NEW_CA}\n{script} 2>/dev/null")) {
            return;
        }
        let key = std::fs::read_to_string(at("leaf.key")).unwrap();
        let server = Server::start(ders(&at("leaf.crt")), &key).await;
        let (_, error) = said(server.port, &std::fs::read_to_string(at("ca.crt")).unwrap()).await;
        if expected.is_empty() {
            assert_eq!(error, "", "{cause}");
        } else {
            let expected = format!("TLS: the receiver's certificate is not trusted: {expected}");
            assert!(error.starts_with(&expected), "{cause}: {error}");
        }
    }
}

/// `openssl s_server`; ends when dropped.
struct SServer(Child);

impl Drop for SServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn servers_that_only_openssl_can_be_are_told_apart() {
    let new_leaf = "openssl x509 -req -in leaf.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile extensions -out leaf.crt";
    let short_leaf =
        "openssl req -new -newkey rsa:1024 -nodes -keyout leaf.key -subj /CN=x.localhost -out leaf.csr";
    for (cause, before, arguments, expected) in [
        (
            "TLS 1.1 at most",
            "",
            "-no_tls1_3 -no_tls1_2 -cipher ALL:@SECLEVEL=0",
            "the receiver speaks neither TLS 1.2 nor 1.3 (ProtocolVersion); switch one of them on there",
        ),
        (
            "no cipher in common",
            "",
            "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA",
            "no cipher, key exchange or signature algorithm of the receiver's is known here, or it wants a client",
        ),
        (
            "a client certificate is wanted, TLS 1.2",
            "",
            "-tls1_2 -Verify 1 -verify_return_error -CAfile ca.crt",
            "no cipher, key exchange or signature algorithm of the receiver's is known here, or it wants a client \
             certificate (alert HandshakeFailure); tls.clientCertificateRef can name one",
        ),
        (
            "a client certificate is wanted, TLS 1.3",
            "",
            "-tls1_3 -Verify 1 -verify_return_error -CAfile ca.crt",
            "the receiver wants a client certificate (alert CertificateRequired); tls.clientCertificateRef can name one",
        ),
        (
            "a short key of its own",
            short_leaf,
            "-cipher ALL:@SECLEVEL=0",
            "the receiver's certificate is not trusted: an RSA key in its chain has 1024 bits (KeySize)",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let script = format!("{NEW_CA}\n{before} 2>/dev/null\n{new_leaf} 2>/dev/null");
        if !openssl(directory.path(), &script) {
            return;
        }
        let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let accept = format!("127.0.0.1:{port}");
        let server = Command::new("openssl")
            .args(["s_server", "-quiet", "-accept", &accept, "-cert", "leaf.crt", "-key", "leaf.key"])
            .args(arguments.split(' '))
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let _server = SServer(server.unwrap());
        let listens = async {
            while tokio::net::TcpStream::connect(&accept).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), listens).await.unwrap();
        let (verdict, error) =
            said(port, &std::fs::read_to_string(directory.path().join("ca.crt")).unwrap()).await;
        assert!(error.starts_with(&format!("TLS: {expected}")), "{cause}: {error}");
        assert_eq!(verdict, UNREACHABLE, "{cause}");
    }
}
