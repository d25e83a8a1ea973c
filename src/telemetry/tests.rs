use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tracing::{debug, info, warn};

use super::*;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn writer(&self) -> impl Fn() -> Self + Send + Sync + 'static {
        let log = self.clone();
        move || log.clone()
    }
}

fn as_json(directives: &str) -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let subscriber = json(filter(Some(directives), None).unwrap(), log.writer());
    (log, tracing::subscriber::set_default(subscriber))
}

#[test]
fn by_default_we_speak_at_info_and_libraries_at_warn() {
    let shown = |filter: EnvFilter| filter.to_string();
    let default = shown(filter(None, None).unwrap());
    for directive in ["hookwright=info", "kube_runtime::watcher=error"] {
        assert!(default.contains(directive), "{directive} in {default}");
    }
    let log = Log::default();
    let subscriber = json(filter(None, None).unwrap(), log.writer());
    tracing::subscriber::with_default(subscriber, || {
        info!("ours");
        info!(target: "fjall::journal", "theirs");
        warn!(target: "fjall::journal", "their warning");
        warn!(target: "kube_runtime::watcher", "what we say ourselves");
    });
    let messages: Vec<_> = log.lines().into_iter().map(|line| line["message"].clone()).collect();
    assert_eq!(messages, ["ours", "their warning"]);
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_default() {
    let has = |flag, environment, directive: &str| {
        filter(flag, environment).unwrap().to_string().split(',').any(|each| each == directive)
    };
    assert!(has(Some("debug"), Some("error"), "debug"));
    assert!(has(None, Some("error"), "error"));
    assert!(has(Some(""), Some("trace"), "trace"), "what is empty says nothing");
    assert!(has(Some("kube_client=trace"), None, "kube_client=warn"), "headers and tokens never");
    assert!(filter(None, Some("not a=filter=")).is_err());
}

#[tokio::test(start_paused = true)]
async fn lines_of_one_place_are_limited_and_counted() {
    let (log, _guard) = as_json("info");
    let erased = || info!(webhook = "team-a/orders", "erased the data of a deleted Webhook");
    for _ in 0..300 {
        erased();
    }
    let lines = log.lines();
    assert_eq!(lines.len(), 20);
    assert!(lines.iter().all(|line| line.get("unlogged").is_none()));
    info!("another place");
    assert_eq!(log.lines().len(), 1);
    tokio::time::advance(Duration::from_mins(1)).await;
    erased();
    erased();
    let lines = log.lines();
    assert_eq!((lines.len(), &lines[0]["unlogged"]), (1, &Value::from(280)));
    assert_eq!(lines[0]["webhook"], "team-a/orders");
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_any_line_of_a_library_is_about_a_hundred() {
    let (log, _guard) = as_json("info");
    for _ in 0..3600 {
        warn!(target: "kube_runtime::watcher", "watch list error with 403");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let lines = log.lines();
    assert!((60..=100).contains(&lines.len()), "{}", lines.len());
    let unlogged: u64 = lines.iter().filter_map(|line| line["unlogged"].as_u64()).sum();
    assert!(3600 - unlogged - lines.len() as u64 <= 60, "{unlogged}");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_and_what_counts_itself_is_not_limited() {
    let (log, _guard) = as_json("debug");
    for _ in 0..50 {
        debug!("asked for");
        warn!(unlogged = 3, "limited where it is made");
    }
    let lines = log.lines();
    assert_eq!(lines.len(), 100);
    assert_eq!(lines[1]["unlogged"], 3);
}

#[tokio::test(start_paused = true)]
async fn text_lines_are_limited_and_counted_too() {
    let log = Log::default();
    let subscriber = text(filter(Some("info"), None).unwrap(), log.writer());
    let _guard = tracing::subscriber::set_default(subscriber);
    let speak = || warn!(number = 1, "again");
    for _ in 0..30 {
        speak();
    }
    assert_eq!(log.text().lines().count(), 20);
    tokio::time::advance(Duration::from_mins(1)).await;
    speak();
    let line = log.text();
    assert!(line.ends_with("again number=1 unlogged=10\n"), "{line}");
}

#[test]
fn no_line_has_the_userinfo_of_a_url() {
    let url = "http://user:canary@proxy:3128";
    let error = std::io::Error::other(format!("cannot reach \"{url}\""));
    let speak = || {
        warn!(url, %error, ?error, "watch of {url} failed: {error:?}");
        warn!(target: "kube_client::client", proxy = url, "user:canary@proxy:3128 refused");
    };
    let (log, guard) = as_json("info");
    speak();
    drop(guard);
    let lines = log.text();
    let objects: Result<Vec<Value>, _> = lines.lines().map(serde_json::from_str).collect();
    assert_eq!(objects.unwrap().len(), 2);
    assert!(lines.contains("http://***@proxy:3128") && !lines.contains("canary"), "{lines}");
    let log = Log::default();
    tracing::subscriber::with_default(text(filter(Some("info"), None).unwrap(), log.writer()), speak);
    let lines = log.text();
    assert!(lines.contains("***@proxy:3128") && !lines.contains("canary"), "{lines}");
}
