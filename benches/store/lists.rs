//! Each kind of list, by what the server calls to answer it: selectors, the store, and the encoding of the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hookwright::clock::Clock;
use hookwright::model::filter::Filter;
use hookwright::model::ids::WebhookRef;
use hookwright::routes::{Route, Table, Unready};
use hookwright::server::apis::deliveries::Log;
use hookwright::store::embedded::Embedded;
use hookwright::store::{Query, Store};
use http_body_util::BodyExt as _;

use crate::common::print;
use crate::log::RARE_TYPE;

/// Pages of each kind.
const TIMES: usize = 300;
const JSON: &str = "application/json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// None of them can be sent to, so what waits is Held.
fn route(webhook: &WebhookRef) -> Route {
    Route {
        webhook: webhook.clone(),
        generation: 1,
        filter: Filter::compile(&["*"]),
        active: true,
        endpoint: Err(Unready { reason: "SecretNotFound", message: "a bench".to_owned(), stalled: true }),
        public_key: "whpk_".into(),
        gives_up_after: Some(Duration::from_secs(1)),
        requested_at: None,
    }
}

struct Kind {
    name: &'static str,
    namespace: Option<String>,
    selector: String,
    accept: &'static str,
}

struct Answered {
    took: Duration,
    items: usize,
    next: Option<String>,
}

async fn ask(log: &Log, kind: &Kind, from: &str) -> Answered {
    let selector = kind.selector.replace('=', "%3D").replace('!', "%21");
    let query = format!("/?limit=100&fieldSelector={selector}&continue={from}");
    let (parts, ()) = http::Request::get(query).header("accept", kind.accept).body(()).unwrap().into_parts();
    let began = Instant::now();
    let answer = log.list(kind.namespace.as_deref(), &parts).await.unwrap();
    let took = began.elapsed();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let list: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let items = list["items"].as_array().or_else(|| list["rows"].as_array()).map_or(0, Vec::len);
    Answered { took, items, next: list["metadata"]["continue"].as_str().map(ToOwned::to_owned) }
}

/// Some pages, deeper and deeper, and from the top again after the last.
async fn row(log: &Log, kind: &Kind) -> String {
    let (mut took, mut most, mut from) = (Vec::with_capacity(TIMES), 0, String::new());
    for _ in 0..TIMES {
        let answered = ask(log, kind, &from).await;
        took.push(answered.took);
        most = most.max(answered.items);
        from = answered.next.unwrap_or_default();
    }
    took.sort_unstable();
    let at = |q: usize| took[(took.len() - 1) * q / 100].as_secs_f64() * 1e3;
    format!("{:<44} {:>8.2} {:>8.2} {:>8.2} {most:>8}", kind.name, at(50), at(99), at(100))
}

/// Everything that a selector finds, page by page.
async fn walk(log: &Log, kind: &Kind) -> String {
    let (mut pages, mut items, mut from) = (0, 0, String::new());
    let began = Instant::now();
    loop {
        let answered = ask(log, kind, &from).await;
        pages += 1;
        items += answered.items;
        match answered.next {
            Some(next) => from = next,
            None => break,
        }
    }
    format!("{}: all {items} in {pages} pages, {:.2} s", kind.name, began.elapsed().as_secs_f64())
}

pub(crate) async fn table(store: &Arc<Embedded>, hooks: &[WebhookRef]) {
    let routes = Arc::new(Table::default());
    for hook in hooks {
        routes.upsert(route(hook));
    }
    routes.set_synced();
    let log = Log::new(Arc::clone(store) as _, routes, Clock::system());
    let middle = hooks[hooks.len() / 2].clone();
    let newest =
        store.query(Query { webhook: Some(middle.uid), limit: 1, ..Query::default() }).await.unwrap();
    let id = newest.deliveries[0].event_id.to_string();
    let here = Some(middle.namespace.to_string());
    let kind = |name, namespace: &Option<String>, selector: &str| Kind {
        name,
        namespace: namespace.clone(),
        selector: selector.to_owned(),
        accept: JSON,
    };
    let webhook = format!("spec.webhook={}", middle.name);
    let kinds = [
        kind("everything", &None, ""),
        kind("a namespace", &here, ""),
        Kind { accept: TABLE, ..kind("a namespace, as kubectl's table", &here, "") },
        kind("a Webhook", &here, &webhook),
        kind("a Webhook, Success", &here, &format!("{webhook},status.state=Success")),
        kind("a namespace, Success", &here, "status.state=Success"),
        kind("Success, everywhere", &None, "status.state=Success"),
        kind("Failed, everywhere (10 of all)", &None, "status.state=Failed"),
        kind("Failed, a namespace", &here, "status.state=Failed"),
        kind("Held, everywhere", &None, "status.state=Held"),
        kind("an event's id, a namespace (1 of all)", &here, &format!("spec.eventId={id}")),
        kind("an event's id, everywhere (1 of all)", &None, &format!("spec.eventId={id}")),
        kind("a type, everywhere", &None, "spec.eventType=order.created"),
    ];
    print(&format!("{:<44} {:>8} {:>8} {:>8} {:>8}", "a page of 100", "p50 ms", "p99 ms", "max ms", "items"));
    for kind in kinds {
        print(&row(&log, &kind).await);
    }
    let searches = [
        kind("a rare type, everywhere (10 of all)", &None, &format!("spec.eventType={RARE_TYPE}")),
        kind("a rare type, a namespace", &here, &format!("spec.eventType={RARE_TYPE}")),
        kind("tests, everywhere (10 of all)", &None, "spec.test=true"),
        kind("Pending, everywhere (none)", &None, "status.state=Pending"),
    ];
    for kind in searches {
        print(&row(&log, &kind).await);
        print(&format!("  {}", walk(&log, &kind).await));
    }
}
