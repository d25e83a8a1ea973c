//! HTTP/2 against a receiver that does what servers may do, and what none should.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::testing::attempts::{TIMED_OUT, UNREACHABLE, all_at_once, error, job, sender, to};
use super::testing::event;
use super::testing::frames::{
    CANCEL, DATA, FIRST_WINDOW, Frame, FrameReceiver, HEADERS, INTERNAL_ERROR, MOST_STREAMS, NO_ERROR,
    PROTOCOL_ERROR, REFUSED, RESET, Reply, data, go_away, head, large_head, reset, settings, trailers,
    window,
};
use super::testing::receiver::Authority;
use super::{Job, Sender as _, Sent};
use crate::model::verdict::Verdict;
use crate::routes::Endpoint;
use crate::store::Event;

const CLOSED: &str = "the connection was closed before the answer was complete";

/// A receiver, and what is needed to send to it.
struct World {
    receiver: FrameReceiver,
    endpoint: Arc<Endpoint>,
    sender: super::client::HttpSender,
}

impl World {
    async fn new(
        first: &[(u16, u32)],
        script: impl Fn(&Frame) -> Vec<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::within(Duration::from_secs(5), first, script).await
    }

    async fn within(
        timeout: Duration,
        first: &[(u16, u32)],
        script: impl Fn(&Frame) -> Vec<Reply> + Send + Sync + 'static,
    ) -> Self {
        let authority = Authority::new("ours");
        let receiver = FrameReceiver::start(&authority, first, script).await;
        let endpoint = Endpoint { timeout, ..to(&receiver.url(), authority.trusted()) };
        Self { receiver, endpoint: Arc::new(endpoint), sender: sender() }
    }

    async fn send(&self) -> Sent {
        self.sender.send(job(self.endpoint.clone())).await
    }

    async fn send_bytes(&self, count: usize) -> Sent {
        let event = Event { data: vec![b'x'; count].into(), ..event(b"") };
        self.sender.send(Job { event: Arc::new(event), ..job(self.endpoint.clone()) }).await
    }

    fn failed(&self) -> String {
        format!("the connection to x.localhost:{} failed", self.receiver.port)
    }
}

/// What a server does: an answer to each whole request, and as much window as was used.
fn serve(frame: &Frame) -> Vec<Reply> {
    let mut replies = Vec::new();
    if frame.kind == DATA && !frame.payload.is_empty() {
        replies.push(window(0, frame.payload.len()));
        if !frame.ends() {
            replies.push(window(frame.stream, frame.payload.len()));
        }
    }
    if frame.ends_request() {
        replies.extend([head(frame.stream, 200, false), data(frame.stream, "thanks", true)]);
    }
    replies
}

fn delivered(sent: &Sent) {
    assert_eq!((sent.verdict, error(sent)), (Verdict::Delivered, ""), "{:?}", sent.attempt);
}

#[tokio::test]
async fn a_large_body_goes_out_as_the_receiver_makes_room() {
    let world = World::new(&[(FIRST_WINDOW, 1000)], serve).await;
    let sent = world.send_bytes(300_000).await;
    delivered(&sent);
    assert_eq!(sent.attempt.body.as_deref(), Some("thanks"));
    assert_eq!(world.receiver.received(), 300_000);
    assert!(world.receiver.resets().is_empty());
}

#[tokio::test]
async fn an_empty_body_ends_with_the_head() {
    let world = World::new(&[], |frame| {
        assert_ne!(frame.kind, DATA);
        serve(frame)
    })
    .await;
    delivered(&world.send_bytes(0).await);
}

#[tokio::test]
async fn an_answer_counts_though_the_body_is_not_wanted_and_its_stream_is_given_back() {
    for (last, says) in [
        (vec![head(1, 413, true)], Vec::new()),
        (vec![head(1, 413, true)], vec![reset(1, NO_ERROR)]),
        (vec![head(1, 413, false), data(1, "too large", true)], Vec::new()),
        (vec![head(1, 413, false), data(1, "too large", true)], vec![reset(1, NO_ERROR)]),
    ] {
        let (expected, is_reset) = (last.clone(), !says.is_empty());
        let came = AtomicUsize::new(0);
        // The window of the connection is used up when all that a stream may send has come; then it answers.
        let world = World::new(&[(MOST_STREAMS, 1)], move |frame| match (frame.kind, frame.stream) {
            (HEADERS, 1) => Vec::new(),
            (HEADERS, _) => vec![window(0, 65_535)],
            (DATA, 1)
                if came.fetch_add(frame.payload.len(), Ordering::SeqCst) + frame.payload.len() == 65_535 =>
            {
                [last.clone(), says.clone()].concat()
            }
            (_, 1) => Vec::new(),
            _ => serve(frame),
        })
        .await;
        let sent = world.send_bytes(300_000).await;
        assert_eq!((error(&sent), sent.attempt.status), ("answered 413 (Payload Too Large)", Some(413)));
        assert_eq!(world.receiver.received(), 65_535);
        delivered(&world.send().await);
        assert_eq!(world.receiver.begun(), [(0, 1), (0, 3)], "{expected:?}");
        let resets = if is_reset { Vec::new() } else { vec![(1, CANCEL)] };
        assert_eq!(world.receiver.resets(), resets, "{expected:?}");
    }
}

#[tokio::test]
async fn an_answer_while_the_body_is_being_written_costs_its_connection_at_most() {
    let world = World::new(&[(MOST_STREAMS, 1)], |frame| match frame.kind {
        HEADERS if frame.ends() => vec![head(frame.stream, 200, true)],
        // Some of what it takes after that, so that writing goes on.
        HEADERS => vec![head(frame.stream, 413, true), window(0, 40_000), window(frame.stream, 40_000)],
        _ => Vec::new(),
    })
    .await;
    for _ in 0..50 {
        let sent = world.send_bytes(300_000).await;
        assert_eq!(error(&sent), "answered 413 (Payload Too Large)");
        delivered(&world.send_bytes(0).await);
    }
}

#[tokio::test]
async fn answers_without_a_window_for_their_requests_hold_no_stream() {
    let world = World::new(&[(MOST_STREAMS, 2), (FIRST_WINDOW, 0)], |frame| match frame.kind {
        HEADERS => vec![head(frame.stream, 200, true)],
        _ => Vec::new(),
    })
    .await;
    for _ in 0..50 {
        delivered(&world.send().await);
    }
    // The first was asked for before the settings were known, and may have gone out.
    assert!(world.receiver.received() <= 7);
    assert_eq!(world.receiver.connections(), 1);
    world.receiver.until("the last reset", |receiver| receiver.resets().len() >= 49).await;
}

#[tokio::test]
async fn a_receiver_that_takes_no_body_and_answers_nothing_gets_a_reset_when_the_time_is_over() {
    let world =
        World::within(Duration::from_secs(1), &[(FIRST_WINDOW, 0), (MOST_STREAMS, 1)], |frame| {
            match (frame.kind, frame.stream) {
                (RESET, 1) => vec![settings(&[(FIRST_WINDOW, 65_535)]), window(0, 65_535)],
                (_, 1) => Vec::new(),
                _ => serve(frame),
            }
        })
        .await;
    let sent = world.send_bytes(300_000).await;
    assert_eq!((sent.verdict, error(&sent)), (TIMED_OUT, "no answer within 1s"));
    world.receiver.until("the reset", |receiver| receiver.resets() == [(1, CANCEL)]).await;
    delivered(&world.send().await);
    assert_eq!(world.receiver.begun(), [(0, 1), (0, 3)]);
}

#[tokio::test]
async fn an_attempt_that_is_dropped_resets_its_stream_and_gives_its_place_back() {
    // Before the head of the answer, and in the middle of its body.
    for answer in [Vec::new(), vec![head(1, 200, false), data(1, "th", false)]] {
        let world =
            World::new(&[(MOST_STREAMS, 1)], move |frame| match (frame.ends_request(), frame.stream) {
                (true, 1) => answer.clone(),
                _ => serve(frame),
            })
            .await;
        tokio::select! {
            sent = world.send() => panic!("{sent:?}"),
            () = world.receiver.until("the request", |receiver| receiver.received() == 7) => {}
        }
        world.receiver.until("the reset", |receiver| receiver.resets() == [(1, CANCEL)]).await;
        delivered(&world.send().await);
        assert_eq!(world.receiver.begun(), [(0, 1), (0, 3)]);
    }
}

#[tokio::test]
async fn streams_beyond_the_last_that_a_peer_acts_on_go_over_another_connection() {
    let world = World::new(&[], |frame| match (frame.connection, frame.ends_request(), frame.stream) {
        // Of two at once it goes on with one.
        (0, true, 3) => Vec::new(),
        (0, true, 5) => vec![go_away(3, NO_ERROR), head(3, 200, true)],
        _ => serve(frame),
    })
    .await;
    delivered(&world.send().await);
    let sent = all_at_once(&world.sender, world.endpoint.clone(), 2).await;
    sent.iter().for_each(delivered);
    assert_eq!(world.receiver.begun(), [(0, 1), (0, 3), (0, 5), (1, 1)]);
    assert_eq!(world.receiver.received(), 4 * 7);
    // The first on each connection, so that neither is compressed by what went before.
    assert_eq!(world.receiver.head(0, 1), world.receiver.head(1, 1), "it is made again as it was");
    delivered(&world.send().await);
    assert_eq!(world.receiver.begun().last(), Some(&(1, 3)), "no request goes to a peer that went away");
    world.receiver.until_closed(1).await;
}

#[tokio::test]
async fn a_peer_that_goes_away_but_is_still_answering_gets_no_new_request() {
    let world = World::new(&[], |frame| match (frame.connection, frame.ends_request(), frame.stream) {
        (0, true, 3) => vec![go_away(3, NO_ERROR), head(3, 200, false), data(3, "thanks", false)],
        _ => serve(frame),
    })
    .await;
    delivered(&world.send().await);
    let (first, rest) = (world.send(), async {
        world.receiver.until("the first", |receiver| receiver.received() == 14).await;
        for _ in 0..3 {
            delivered(&world.send().await);
        }
        world.receiver.write(0, vec![trailers(3)]);
    });
    delivered(&tokio::join!(first, rest).0);
    assert_eq!(world.receiver.begun(), [(0, 1), (0, 3), (1, 1), (1, 3), (1, 5)]);
}

#[tokio::test]
async fn what_a_peer_refuses_or_answers_in_part_is_not_sent_again() {
    type Case = (fn(u32) -> Vec<Reply>, Option<u16>, Option<&'static str>);
    let cases: [Case; 5] = [
        (|stream| vec![reset(stream, REFUSED)], None, None),
        (|stream| vec![reset(stream, NO_ERROR)], None, None),
        (
            |stream| vec![head(stream, 200, false), data(stream, "th", false), reset(stream, NO_ERROR)],
            Some(200),
            None,
        ),
        (|stream| vec![head(stream, 200, false), reset(stream, INTERNAL_ERROR)], Some(200), None),
        (
            |stream| vec![head(stream, 200, false), data(stream, "th", false), Reply::Close],
            Some(200),
            Some(CLOSED),
        ),
    ];
    for (number, (broken, status, sentence)) in cases.into_iter().enumerate() {
        let world = World::new(&[], move |frame| match (frame.ends_request(), frame.stream) {
            (true, 3) => broken(3),
            _ => serve(frame),
        })
        .await;
        delivered(&world.send().await);
        let sent = world.send().await;
        let failed = world.failed();
        let sentence = sentence.unwrap_or(&failed);
        let (verdict, sentence) = match status {
            Some(_) => (Verdict::Delivered, format!("answered 200 (OK); {sentence}")),
            None => (UNREACHABLE, sentence.to_owned()),
        };
        assert_eq!(
            (sent.verdict, error(&sent), sent.attempt.status),
            (verdict, &*sentence, status),
            "case {number}"
        );
        assert_eq!(world.receiver.begun(), [(0, 1), (0, 3)], "case {number}");
    }
}

#[tokio::test]
async fn a_peer_that_goes_away_at_the_first_request_is_not_asked_again_by_the_same_attempt() {
    for (code, is_orderly) in [(NO_ERROR, true), (INTERNAL_ERROR, false)] {
        let world = World::new(&[], move |frame| match frame.kind {
            HEADERS => vec![go_away(0, code), Reply::Close],
            _ => Vec::new(),
        })
        .await;
        let sent = world.send().await;
        let expected = if is_orderly { CLOSED.to_owned() } else { world.failed() };
        assert_eq!((sent.verdict, error(&sent)), (UNREACHABLE, &*expected));
        assert_eq!(world.receiver.connections(), 1);
    }
}

#[tokio::test]
async fn a_connection_that_its_peer_closed_while_idle_is_not_used() {
    for last in [vec![go_away(1, NO_ERROR)], vec![go_away(1, NO_ERROR), Reply::Close], vec![Reply::Close]] {
        let world = World::new(&[], serve).await;
        delivered(&world.send().await);
        world.receiver.write(0, last);
        world.receiver.until_closed(1).await;
        delivered(&world.send().await);
        assert_eq!(world.receiver.begun(), [(0, 1), (1, 1)]);
    }
}

#[tokio::test]
async fn a_peer_that_goes_away_between_two_requests_costs_no_attempt() {
    let world = World::new(&[], |frame| match (frame.ends_request(), frame.connection) {
        // Right behind the answer: the next request may meet it or not.
        (true, connection) if connection < 20 => [serve(frame), vec![go_away(1, NO_ERROR)]].concat(),
        _ => serve(frame),
    })
    .await;
    for _ in 0..20 {
        delivered(&world.send().await);
    }
    assert_eq!(world.receiver.begun().iter().filter(|(_, stream)| *stream == 1).count(), 20);
}

#[tokio::test]
async fn interim_answers_and_trailers_are_passed_over() {
    let world = World::new(&[], |frame| {
        let answer = |status| head(frame.stream, status, false);
        let body = data(frame.stream, "yes", false);
        let answer = vec![answer(103), answer(103), answer(201), body, trailers(frame.stream)];
        if frame.ends_request() { answer } else { Vec::new() }
    })
    .await;
    let sent = world.send().await;
    delivered(&sent);
    assert_eq!((sent.attempt.status, sent.attempt.body.as_deref()), (Some(201), Some("yes")));
    assert!(world.receiver.resets().is_empty());
}

#[tokio::test]
async fn a_head_that_is_too_large_costs_its_attempt_and_no_connection() {
    let world = World::new(&[], |frame| match (frame.ends_request(), frame.stream) {
        (true, 1) => large_head(1),
        _ => serve(frame),
    })
    .await;
    let sent = world.send().await;
    assert_eq!((sent.verdict, error(&sent)), (UNREACHABLE, &*world.failed()));
    delivered(&world.send().await);
    assert_eq!(world.receiver.resets(), [(1, PROTOCOL_ERROR)]);
    assert_eq!(world.receiver.begun(), [(0, 1), (0, 3)]);
}

#[tokio::test]
async fn a_stream_that_is_not_allowed_goes_over_another_connection() {
    let world = World::new(&[(MOST_STREAMS, 1)], |frame| match (frame.connection, frame.stream) {
        (0, 3) => Vec::new(),
        _ => serve(frame),
    })
    .await;
    delivered(&world.send().await);
    let (first, rest) = (world.send(), async {
        world.receiver.until("the first", |receiver| receiver.begun().len() == 2).await;
        for _ in 0..2 {
            delivered(&world.send().await);
        }
        world.receiver.write(0, vec![head(3, 200, true)]);
    });
    delivered(&tokio::join!(first, rest).0);
    assert_eq!(world.receiver.begun(), [(0, 1), (0, 3), (1, 1), (1, 3)]);
}

#[tokio::test]
async fn a_connection_whose_peer_allows_no_more_streams_is_left() {
    let world = World::new(&[], serve).await;
    delivered(&world.send().await);
    world.receiver.write(0, vec![settings(&[(MOST_STREAMS, 0)])]);
    world.receiver.until("the settings", |receiver| receiver.settled() == 2).await;
    delivered(&world.send().await);
    assert_eq!(world.receiver.begun(), [(0, 1), (1, 1)]);
    world.receiver.until_closed(1).await;
}

#[tokio::test]
async fn a_hundred_at_once_share_two_connections() {
    let world = World::new(&[], serve).await;
    let sent = all_at_once(&world.sender, world.endpoint.clone(), 100).await;
    sent.iter().for_each(delivered);
    assert!((1..=2).contains(&world.receiver.connections()), "{}", world.receiver.connections());
    let mut begun = world.receiver.begun();
    begun.sort_unstable();
    begun.dedup();
    assert_eq!(begun.len(), 100);
}

#[tokio::test]
async fn a_connection_that_takes_too_long_to_open_says_so() {
    let authority = Authority::new("ours");
    let receiver = super::testing::receiver::Receiver::start_hanging(&authority).await;
    let endpoint =
        Endpoint { timeout: Duration::from_secs(1), ..to(&receiver.url("/"), authority.trusted()) };
    let sent = sender().send(job(endpoint)).await;
    let sentence = format!("no connection to x.localhost:{} within 1s", receiver.port);
    assert_eq!((sent.verdict, error(&sent)), (TIMED_OUT, &*sentence));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_that_are_dropped_on_other_threads_disturb_none_and_leave_nothing() {
    let world = Arc::new(World::new(&[], serve).await);
    delivered(&world.send().await);
    for round in 0..20_u64 {
        let mut attempts = tokio::task::JoinSet::new();
        for number in 0..60 {
            let world = Arc::clone(&world);
            attempts.spawn(async move {
                if number % 3 == 0 {
                    // Somewhere between its first step and its last.
                    let _ = tokio::time::timeout(Duration::from_micros(round * number), world.send()).await;
                } else {
                    delivered(&world.send().await);
                }
            });
        }
        attempts.join_all().await;
    }
    assert_eq!(world.receiver.connections(), 1);
}
