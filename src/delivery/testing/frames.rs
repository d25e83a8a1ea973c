//! A receiver that speaks HTTP/2 frame by frame (RFC 9113), so that it can also do what no server would.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::receiver::Authority;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;

/// The settings that matter here.
pub(crate) const MOST_STREAMS: u16 = 3;
pub(crate) const FIRST_WINDOW: u16 = 4;

/// Codes of resets and of going away.
pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const INTERNAL_ERROR: u32 = 2;
pub(crate) const REFUSED: u32 = 7;
pub(crate) const CANCEL: u32 = 8;

/// The flag that is `END_STREAM` of some frames, and `ACK` of others.
const END: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame that came.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Of which connection, counted from 0.
    pub(crate) connection: usize,
    pub(crate) kind: u8,
    flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Whether it is the last of its stream.
    pub(crate) fn ends(&self) -> bool {
        self.flags & END != 0
    }

    /// Whether it ends a request.
    pub(crate) fn ends_request(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.ends()
    }

    /// Of a reset: its code.
    pub(crate) fn code(&self) -> Option<u32> {
        let code = self.payload.first_chunk().filter(|_| self.kind == RESET)?;
        Some(u32::from_be_bytes(*code))
    }
}

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Frame(Vec<u8>),
    /// Sends nothing more.
    Close,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Reply {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    Reply::Frame([&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat())
}

/// The head of an answer, with no more than its status.
pub(crate) fn head(stream: u32, status: u16, ends: bool) -> Reply {
    // A literal that is not indexed, named as the eighth of the static table (RFC 7541).
    let block = [&[0x08, 3], status.to_string().as_bytes()].concat();
    frame(HEADERS, END_HEADERS | u8::from(ends), stream, &block)
}

/// The end of an answer that has ended otherwise.
pub(crate) fn trailers(stream: u32) -> Reply {
    frame(HEADERS, END_HEADERS | END, stream, &[&[0, 1][..], b"x", &[1], b"y"].concat())
}

/// The head of an answer with a header of 20,000 bytes.
pub(crate) fn large_head(stream: u32) -> Vec<Reply> {
    // Status 200, and a literal of as many bytes: 127, and the rest in seven bits a byte, the lowest first.
    let start = [0x88, 0, 1, b'x', 127, 0xa1, 0x9b, 1];
    let block = [&start[..], &b"y".repeat(20_000)].concat();
    let (first, rest) = block.split_at(16_384);
    vec![frame(HEADERS, 0, stream, first), frame(CONTINUATION, END_HEADERS, stream, rest)]
}

pub(crate) fn data(stream: u32, body: &str, ends: bool) -> Reply {
    frame(DATA, u8::from(ends), stream, body.as_bytes())
}

pub(crate) fn reset(stream: u32, code: u32) -> Reply {
    frame(RESET, 0, stream, &code.to_be_bytes())
}

/// Says that it may have acted on streams up to this one.
pub(crate) fn go_away(last: u32, code: u32) -> Reply {
    frame(GO_AWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// More room for a stream, or for the connection, which is stream 0.
pub(crate) fn window(stream: u32, more: usize) -> Reply {
    frame(WINDOW, 0, stream, &u32::try_from(more).unwrap().to_be_bytes())
}

pub(crate) fn settings(all: &[(u16, u32)]) -> Reply {
    let one = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &all.iter().flat_map(one).collect::<Vec<_>>())
}

type Script = Arc<dyn Fn(&Frame) -> Vec<Reply> + Send + Sync>;

#[derive(Default)]
struct Seen {
    frames: watch::Sender<Vec<Frame>>,
    /// By connection: what is to be written.
    writers: Mutex<Vec<mpsc::UnboundedSender<Vec<Reply>>>>,
    /// Connections that the other side has closed.
    closed: watch::Sender<usize>,
}

/// A running receiver; ends when dropped.
pub(crate) struct FrameReceiver {
    pub(crate) port: u16,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

impl FrameReceiver {
    /// Says these settings on each connection, and answers each frame as the script says. Settings and pings it
    /// acknowledges by itself.
    pub(crate) async fn start(
        authority: &Authority,
        first: &[(u16, u32)],
        script: impl Fn(&Frame) -> Vec<Reply> + Send + Sync + 'static,
    ) -> Self {
        let mut config = authority.server("x.localhost", None);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (script, seen): (Script, _) = (Arc::new(script), Arc::<Seen>::default());
        let (first, shown) = (settings(first), Arc::clone(&seen));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (write, orders) = mpsc::unbounded_channel();
                write.send(vec![first.clone()]).unwrap();
                let connection = {
                    let mut writers = shown.writers.lock().unwrap();
                    writers.push(write.clone());
                    writers.len() - 1
                };
                let (acceptor, script, seen) = (acceptor.clone(), Arc::clone(&script), Arc::clone(&shown));
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let (reader, writer) = tokio::io::split(stream);
                    let writing = write_all(writer, orders);
                    let reading = read_all(reader, connection, &script, &seen, &write);
                    tokio::join!(writing, async {
                        reading.await;
                        let _ = write.send(vec![Reply::Close]);
                    });
                });
            }
        });
        Self { port, seen, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://x.localhost:{}/", self.port)
    }

    /// Writes on a connection, asked by nobody.
    pub(crate) fn write(&self, connection: usize, replies: Vec<Reply>) {
        self.seen.writers.lock().unwrap()[connection].send(replies).unwrap();
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.writers.lock().unwrap().len()
    }

    /// Connections and streams of the requests that began.
    pub(crate) fn begun(&self) -> Vec<(usize, u32)> {
        let frames = self.seen.frames.borrow();
        let heads = frames.iter().filter(|frame| frame.kind == HEADERS);
        heads.map(|frame| (frame.connection, frame.stream)).collect()
    }

    /// The head of a request, compressed.
    pub(crate) fn head(&self, connection: usize, stream: u32) -> Vec<u8> {
        let frames = self.seen.frames.borrow();
        let is_it =
            |frame: &&Frame| (frame.kind, frame.connection, frame.stream) == (HEADERS, connection, stream);
        frames.iter().find(is_it).unwrap().payload.clone()
    }

    /// Streams that were reset, with the codes.
    pub(crate) fn resets(&self) -> Vec<(u32, u32)> {
        let frames = self.seen.frames.borrow();
        frames.iter().filter_map(|frame| Some((frame.stream, frame.code()?))).collect()
    }

    /// Settings that were acknowledged.
    pub(crate) fn settled(&self) -> usize {
        let frames = self.seen.frames.borrow();
        frames.iter().filter(|frame| frame.kind == SETTINGS && frame.ends()).count()
    }

    /// Bytes of the bodies.
    pub(crate) fn received(&self) -> usize {
        let frames = self.seen.frames.borrow();
        frames.iter().filter(|frame| frame.kind == DATA).map(|frame| frame.payload.len()).sum()
    }

    /// Waits until what came looks so.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let mut frames = self.seen.frames.subscribe();
        let waiting = async {
            while !is_so(self) {
                frames.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
        assert!(waited.is_ok(), "{what} did not come: {:?} {:?}", self.begun(), self.resets());
    }

    /// Waits until the other side has closed so many connections.
    pub(crate) async fn until_closed(&self, count: usize) {
        let mut closed = self.seen.closed.subscribe();
        let waiting = closed.wait_for(|closed| *closed >= count);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("still open").unwrap();
    }
}

async fn write_all(
    mut writer: impl tokio::io::AsyncWrite + Unpin,
    mut orders: mpsc::UnboundedReceiver<Vec<Reply>>,
) {
    while let Some(replies) = orders.recv().await {
        for reply in replies {
            let written = match reply {
                Reply::Frame(bytes) => writer.write_all(&bytes).await,
                Reply::Close => {
                    let _ = writer.shutdown().await;
                    return;
                }
            };
            if written.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    }
}

async fn read_all(
    mut reader: impl AsyncRead + Unpin,
    connection: usize,
    script: &Script,
    seen: &Seen,
    write: &mpsc::UnboundedSender<Vec<Reply>>,
) {
    let mut preface = [0; 24];
    if reader.read_exact(&mut preface).await.is_ok() {
        while let Some(came) = read(&mut reader, connection).await {
            let replies = match (came.kind, came.ends()) {
                (SETTINGS, false) => vec![frame(SETTINGS, END, 0, &[])],
                (PING, false) => vec![frame(PING, END, 0, &came.payload)],
                (SETTINGS | PING, true) => Vec::new(),
                _ => script(&came),
            };
            let _ = write.send(replies);
            seen.frames.send_modify(|frames| frames.push(came));
        }
    }
    seen.closed.send_modify(|closed| *closed += 1);
}

async fn read(reader: &mut (impl AsyncRead + Unpin), connection: usize) -> Option<Frame> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, s1, s2, s3, s4] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    reader.read_exact(&mut payload).await.ok()?;
    Some(Frame { connection, kind, flags, stream: u32::from_be_bytes([s1, s2, s3, s4]), payload })
}
