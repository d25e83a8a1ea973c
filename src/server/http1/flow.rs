//! Where in a stream of HTTP/1 requests we are: in a head, in a body of known length, or in chunks. Pure.

use super::head::{self, Framing, Heads};
use crate::server::status::Failure;

/// The place in the stream.
#[derive(Debug)]
pub(super) struct Flow {
    limits: Heads,
    place: Place,
    /// Of a head that has not come whole, so much was searched for its end.
    searched: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Head,
    Length(u64),
    Chunks(Chunks),
}

/// What may go on of some bytes, from their start: so many, and why no more.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) passes: usize,
    pub(super) then: Then,
}

/// What is after the bytes that may go on.
#[derive(Debug)]
pub(super) enum Then {
    /// Nothing.
    End,
    /// So many bytes of empty lines before a request, which go no further.
    Blank(usize),
    /// A head that has not come whole.
    Partial,
    /// A head that is refused.
    Refused(Failure),
    /// Something that is no chunk.
    Broken,
}

impl Flow {
    pub(super) fn new(limits: Heads) -> Self {
        Self { limits, place: Place::Head, searched: 0 }
    }

    /// Looks at what comes next. What does not go on is looked at again, with what comes after it.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Look {
        let mut passes = 0;
        while let Some(rest) = bytes.get(passes..).filter(|rest| !rest.is_empty()) {
            let step = match &mut self.place {
                Place::Head => self.head(rest),
                Place::Length(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= taken as u64;
                    Ok(taken)
                }
                Place::Chunks(chunks) => chunks.take(rest).ok_or(Then::Broken),
            };
            match step {
                Ok(taken) => passes += taken,
                Err(then) => return Look { passes, then },
            }
            if matches!(self.place, Place::Length(0) | Place::Chunks(Chunks { state: State::Done, .. })) {
                self.place = Place::Head;
            }
        }
        Look { passes, then: Then::End }
    }

    fn head(&mut self, rest: &[u8]) -> Result<usize, Then> {
        // Empty lines before a request mean nothing (RFC 9112, section 2.2). The parser counts them to the head.
        let blank = rest.chunks_exact(2).take_while(|pair| pair == b"\r\n").count();
        if blank > 0 {
            return Err(Then::Blank(2 * blank));
        }
        let from = std::mem::take(&mut self.searched).saturating_sub(3);
        let Some(end) = head::end(rest, from) else {
            if rest.len() > self.limits.bytes {
                return Err(Then::Refused(self.limits.refusal()));
            }
            self.searched = rest.len();
            return Err(Then::Partial);
        };
        if end > self.limits.bytes {
            return Err(Then::Refused(self.limits.refusal()));
        }
        let framing = head::judge(rest.get(..end).unwrap_or_default(), self.limits).map_err(Then::Refused)?;
        self.place = match framing {
            Framing::Length(length) => Place::Length(length),
            Framing::Chunked => Place::Chunks(Chunks { state: State::Start, left: 0 }),
        };
        Ok(end)
    }
}

/// The chunked coding (RFC 9112, section 7.1), read for its end alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunks {
    state: State,
    /// Size of the chunk, then what is left of it.
    left: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Size,
    Blank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a line after the last chunk.
    Line,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

impl Chunks {
    /// How many of these bytes are of this body; none: they are not chunked.
    fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            if self.state == State::Data {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.left -= taken as u64;
                at += taken;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.next(byte)?;
            at += 1;
            if self.state == State::Done {
                break;
            }
        }
        Some(at)
    }

    fn next(&mut self, byte: u8) -> Option<State> {
        Some(match (self.state, byte) {
            (State::Start | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16)?;
                self.left = self.left.checked_mul(16)?.checked_add(u64::from(digit))?;
                State::Size
            }
            (State::Size | State::Blank, b' ' | b'\t') => State::Blank,
            (State::Size | State::Blank, b';') => State::Extension,
            (State::Size | State::Blank | State::Extension, b'\r') => State::SizeLf,
            (State::Extension, _) if byte != b'\n' => State::Extension,
            (State::SizeLf, b'\n') if self.left == 0 => State::Line,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Start,
            (State::Line, b'\r') => State::EndLf,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::Line | State::Trailer, _) if byte != b'\n' => State::Trailer,
            (State::TrailerLf, b'\n') => State::Line,
            (State::EndLf, b'\n') => State::Done,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Heads = Heads { bytes: 200, headers: 10 };
    const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";

    fn shown(look: &Look) -> (usize, &'static str) {
        let then = match look.then {
            Then::End => "end",
            Then::Blank(4) => "two empty lines",
            Then::Blank(_) => "empty lines",
            Then::Partial => "partial",
            Then::Refused(_) => "refused",
            Then::Broken => "broken",
        };
        (look.passes, then)
    }

    fn look(text: &str) -> (usize, &'static str) {
        shown(&Flow::new(LIMITS).look(text.as_bytes()))
    }

    fn post(body: &str) -> String {
        format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn requests_follow_each_other_and_each_head_is_judged() {
        let good = [
            GET.to_owned(),
            post("GET / HTTP/1.1\n\n"),
            format!("{CHUNKED}5\r\n\n\n\n\n\n\r\n0 ; a=\"b\"\r\nx: y\r\n\r\n"),
            format!("{CHUNKED}00a\r\n0123456789\r\nF;x\r\n0123456789abcde\r\n000\r\n\r\n"),
        ];
        let all = good.concat();
        assert_eq!(look(&all), (all.len(), "end"));
        for good in &good {
            let bad = format!("{good}GET / HTTP/1.1\r\n\r\n");
            assert_eq!(look(&bad), (good.len(), "refused"), "{good:?}");
        }
    }

    #[test]
    fn empty_lines_before_a_request_go_no_further() {
        assert_eq!(look(&format!("\r\n\r\n{GET}")), (0, "two empty lines"));
        assert_eq!(look(&format!("{GET}\r\n\r\n\r")), (GET.len(), "two empty lines"));
        assert_eq!(look("\r"), (0, "partial"));
    }

    #[test]
    fn it_makes_no_difference_in_which_pieces_bytes_come() {
        let all = [GET, &post("0123"), CHUNKED, "3\r\nabc\r\n0\r\nt: u\r\n\r\n", GET].concat();
        for size in 1..40 {
            let (mut flow, mut held, mut passed) = (Flow::new(LIMITS), Vec::new(), 0);
            for piece in all.as_bytes().chunks(size) {
                held.extend_from_slice(piece);
                let look = flow.look(&held);
                assert!(matches!(look.then, Then::End | Then::Partial), "{size}: {look:?}");
                held.drain(..look.passes);
                passed += look.passes;
            }
            assert_eq!((passed, held.len()), (all.len(), 0), "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_chunk_does_not_pass() {
        for body in [
            "x",
            "\r\n",
            "5\n",
            "5\r5",
            "5 5\r\n",
            "1\r\nab",
            "1\r\na\n",
            "0\r\n\n",
            "0\r\na\n",
            "-1\r\n",
            "5;\n",
            "ffffffffffffffffff\r\n",
            "0\r\nx: y\rz",
        ] {
            let (passes, then) = look(&format!("{CHUNKED}{body}"));
            assert_eq!(then, "broken", "{body:?}");
            assert!(passes >= CHUNKED.len(), "{body:?}");
        }
    }

    #[test]
    fn a_head_is_awaited_up_to_its_limit_and_refused_beyond() {
        assert_eq!(look("GET / HT"), (0, "partial"));
        assert_eq!(look(&format!("{GET}GET / HT")), (GET.len(), "partial"));
        assert_eq!(look(&"a".repeat(200)), (0, "partial"));
        assert_eq!(look(&"a".repeat(201)), (0, "refused"));
        let head = |n: usize| format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "b".repeat(n));
        let most = 200 - head(0).len();
        assert_eq!(look(&head(most)), (200, "end"));
        assert_eq!(look(&head(most + 1)), (0, "refused"));
    }
}
