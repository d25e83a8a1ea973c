//! Plain HTTP for the kubelet and Prometheus: `/livez`, `/readyz` (`?verbose` lists each check, as does a warning),
//! `/metrics`.

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};

use super::listener::{Handler, Limits, Peer};
use super::reply::Reply;
use super::rest::RequestBody;
use super::status::Answer;
use crate::metrics::Metrics;
use crate::model::causes::clean;

type Look = Arc<dyn Fn() -> Check + Send + Sync>;

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// All is well.
    Passed,
    /// Somebody has to do something, but who comes here is still answered best here.
    Warns(String),
    /// Why not.
    Failed(String),
}

impl From<Result<(), String>> for Check {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Passed)
    }
}

/// Named checks of liveness and readiness. Clones share them.
#[derive(Clone, Default)]
pub struct Health {
    live: Arc<RwLock<Vec<(&'static str, Look)>>>,
    ready: Arc<RwLock<Vec<(&'static str, Look)>>>,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Health")
    }
}

impl Health {
    /// Adds a check whose failure means that only a restart can help. It must answer from memory, and not depend
    /// on the Kubernetes API.
    pub fn live(&self, name: &'static str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        let look: Look = Arc::new(move || check().into());
        self.live.write().unwrap_or_else(PoisonError::into_inner).push((name, look));
    }

    /// Adds a check whose failure means that no request should be sent here. It must answer from memory.
    pub fn ready<C: Into<Check>>(&self, name: &'static str, check: impl Fn() -> C + Send + Sync + 'static) {
        let look: Look = Arc::new(move || check().into());
        self.ready.write().unwrap_or_else(PoisonError::into_inner).push((name, look));
    }
}

/// What all checks of a list say together.
struct Report {
    passed: bool,
    /// A check warns.
    warns: bool,
    text: String,
}

/// What every check of a list says, in the words of Kubernetes' own components, which know no warnings.
fn report(endpoint: &str, checks: &RwLock<Vec<(&'static str, Look)>>) -> Report {
    let checks = checks.read().unwrap_or_else(PoisonError::into_inner).clone();
    let mut report = Report { passed: true, warns: false, text: "[+]ping ok\n".to_owned() };
    let text = &mut report.text;
    for (name, look) in checks {
        let _ = match look() {
            Check::Passed => writeln!(text, "[+]{name} ok"),
            Check::Warns(reason) => {
                report.warns = true;
                writeln!(text, "[!]{name} warns: {}", clean(&reason))
            }
            Check::Failed(reason) => {
                report.passed = false;
                writeln!(text, "[-]{name} failed: {}", clean(&reason))
            }
        };
    }
    text.push_str(endpoint);
    text.push_str(if report.passed { " check passed\n" } else { " check failed\n" });
    report
}

/// Answers probes and scrapes.
#[derive(Debug)]
pub struct Ops {
    health: Health,
    metrics: Metrics,
}

impl Ops {
    /// Shows these checks and metrics.
    pub fn new(health: Health, metrics: Metrics) -> Self {
        Self { health, metrics }
    }

    /// Answers one request.
    pub fn answer<B>(&self, request: &Request<B>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "the method must be GET\n".to_owned());
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let verbose = request.uri().query().is_some_and(|query| {
            url::form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "verbose")
        });
        match request.uri().path() {
            "/livez" => probe(report("livez", &self.health.live), verbose),
            "/readyz" => probe(report("readyz", &self.health.ready), verbose),
            "/metrics" => {
                let mut answer = plain(StatusCode::OK, self.metrics.encode());
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                answer
            }
            _ => plain(StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".to_owned()),
        }
    }
}

fn probe(report: Report, verbose: bool) -> Answer {
    match report {
        Report { passed: false, text, .. } => plain(StatusCode::SERVICE_UNAVAILABLE, text),
        Report { warns, text, .. } if warns || verbose => plain(StatusCode::OK, text),
        Report { .. } => plain(StatusCode::OK, "ok".to_owned()),
    }
}

fn plain(code: StatusCode, text: String) -> Answer {
    let mut answer = Response::new(Reply::from(Bytes::from(text)));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// What the plain listener allows: few come here.
pub fn limits() -> Limits {
    Limits { connections: 256, ..Limits::default() }
}

impl Handler for Ops {
    async fn handle<'a>(&'a self, _: Peer, request: Request<&'a mut RequestBody>) -> Answer {
        self.answer(&request)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use http_body_util::BodyExt as _;

    use super::*;

    async fn get(ops: &Ops, path: &str) -> (u16, String, String) {
        let answer = ops.answer(&Request::get(path).body(()).unwrap());
        let kind = answer.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (code, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_names_each_check_and_says_why_one_fails() {
        let (health, open) = (Health::default(), Arc::new(AtomicBool::new(false)));
        let ops = Ops::new(health.clone(), Metrics::default());
        let check = Arc::clone(&open);
        health.ready("store", || Ok(()));
        health.ready("routes", move || {
            if check.load(Ordering::SeqCst) { Ok(()) } else { Err("the list is not complete".to_owned()) }
        });
        let failed =
            "[+]ping ok\n[+]store ok\n[-]routes failed: the list is not complete\nreadyz check failed\n";
        for path in ["/readyz", "/readyz?verbose", "/readyz?verbose=true"] {
            let (code, kind, body) = get(&ops, path).await;
            assert_eq!((code, &*kind, &*body), (503, "text/plain; charset=utf-8", failed), "{path}");
        }
        assert_eq!(get(&ops, "/livez").await.0, 200, "liveness is apart");
        open.store(true, Ordering::SeqCst);
        assert_eq!(get(&ops, "/readyz").await.2, "ok");
        let passed = "[+]ping ok\n[+]store ok\n[+]routes ok\nreadyz check passed\n";
        assert_eq!(get(&ops, "/readyz?verbose").await.2, passed);
    }

    #[tokio::test]
    async fn what_warns_is_said_without_a_failure_and_a_failure_beside_it_counts() {
        let (health, open) = (Health::default(), Arc::new(AtomicBool::new(true)));
        let ops = Ops::new(health.clone(), Metrics::default());
        let check = Arc::clone(&open);
        health.ready("store", || Check::Warns("little room".to_owned()));
        health.ready("routes", move || {
            if check.load(Ordering::SeqCst) { Ok(()) } else { Err("not read yet".to_owned()) }
        });
        let warned = "[+]ping ok\n[!]store warns: little room\n[+]routes ok\nreadyz check passed\n";
        for path in ["/readyz", "/readyz?verbose"] {
            let (code, _, body) = get(&ops, path).await;
            assert_eq!((code, &*body), (200, warned), "{path}");
        }
        open.store(false, Ordering::SeqCst);
        let (code, _, body) = get(&ops, "/readyz").await;
        let failed =
            "[+]ping ok\n[!]store warns: little room\n[-]routes failed: not read yet\nreadyz check failed\n";
        assert_eq!((code, &*body), (503, failed));
    }

    #[tokio::test]
    async fn no_check_repeats_the_userinfo_of_a_url() {
        let health = Health::default();
        health.ready("proxy", || Check::Warns("http://user:canary@proxy:3128 is slow".to_owned()));
        health.ready("routes", || Err("user:canary@proxy:3128 is away".to_owned()));
        health.live("proxy", || Err("http://user:canary@proxy:3128 is away".to_owned()));
        let ops = Ops::new(health, Metrics::default());
        for path in ["/readyz?verbose", "/livez"] {
            let body = get(&ops, path).await.2;
            assert!(body.contains("***@proxy:3128 is away") && !body.contains("canary"), "{body}");
        }
    }

    #[tokio::test]
    async fn liveness_fails_by_its_own_checks() {
        let health = Health::default();
        health.live("store", || Err("poisoned".to_owned()));
        let (code, _, body) = get(&Ops::new(health, Metrics::default()), "/livez").await;
        assert_eq!((code, &*body), (503, "[+]ping ok\n[-]store failed: poisoned\nlivez check failed\n"));
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_and_nothing_else_is_there() {
        let ops = Ops::new(Health::default(), Metrics::default());
        let (code, kind, body) = get(&ops, "/metrics").await;
        assert_eq!((code, &*kind), (200, "application/openmetrics-text; version=1.0.0; charset=utf-8"));
        assert!(body.ends_with("# EOF\n"));
        assert_eq!(get(&ops, "/").await.0, 404);
        let answer = ops.answer(&Request::post("/metrics").body(()).unwrap());
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()[ALLOW]),
            (405, &HeaderValue::from_static("GET, HEAD"))
        );
    }
}
