//! The head of an HTTP/1 request, judged by RFC 9112 before anything else reads it. Pure.
//!
//! Stricter than the parser behind it: whatever two parsers could read in two ways is refused, so no request can be
//! hidden in another; and whatever that parser would refuse without a word is refused here with one.

use http::Uri;

use crate::server::status::{Failure, Reason};

/// How large the head of a request may be; the same for both versions of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Method, path and headers together: their names and values, and 32 bytes for each header, as HTTP/2 counts it
    /// (RFC 9113, section 6.5.2).
    pub bytes: usize,
    /// How many headers.
    pub headers: usize,
}

impl Heads {
    /// 431, with what would be taken.
    pub(in crate::server) fn refusal(self) -> Failure {
        let Self { bytes, headers } = self;
        let message = format!(
            "the head of the request is too large: path and headers must be at most {bytes} bytes together, in at \
             most {headers} headers"
        );
        Failure::new(Reason::RequestHeaderFieldsTooLarge, message)
    }
}

/// Longest name of a header that is read at all.
pub(in crate::server) const MAX_NAME: usize = 8 << 10;
/// Longest target of a request: longer ones are no URI for the libraries.
pub(in crate::server) const MAX_TARGET: usize = 60 << 10;
/// Most digits of a length: everything of that size is far beyond all limits.
const MAX_DIGITS: usize = 18;

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Where a head ends, looking from `from` on: after its first empty line, however its lines end.
pub(super) fn end(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', bytes.get(from..)?).map(|at| from + at + 1).find_map(|at| {
        match bytes.get(at..)? {
            [b'\n', ..] => Some(at + 1),
            [b'\r', b'\n', ..] => Some(at + 2),
            _ => None,
        }
    })
}

/// Judges a whole head, the empty line at its end included.
pub(super) fn judge(head: &[u8], limits: Heads) -> Result<Framing, Failure> {
    let mut lines = Lines(head);
    let version = request_line(lines.next_line()?)?;
    let mut fields = Fields::default();
    let mut count = 0;
    loop {
        let line = lines.next_line()?;
        if line.is_empty() {
            return fields.framing(version);
        }
        count += 1;
        if count > limits.headers {
            return Err(limits.refusal());
        }
        fields.take(line)?;
    }
}

/// 431 for a target over [`MAX_TARGET`].
pub(in crate::server) fn long_target() -> Failure {
    let message = format!("the path must be at most {MAX_TARGET} bytes");
    Failure::new(Reason::RequestHeaderFieldsTooLarge, message)
}

/// 431 for a name over [`MAX_NAME`].
pub(in crate::server) fn long_name() -> Failure {
    let message = format!("the name of a header must be at most {MAX_NAME} bytes");
    Failure::new(Reason::RequestHeaderFieldsTooLarge, message)
}

fn bad(message: &'static str) -> Failure {
    Failure::new(Reason::BadRequest, message)
}

/// Lines that end with CR LF.
struct Lines<'h>(&'h [u8]);

impl<'h> Lines<'h> {
    fn next_line(&mut self) -> Result<&'h [u8], Failure> {
        let end = memchr::memchr(b'\n', self.0);
        let (line, rest) = end.and_then(|end| self.0.split_at_checked(end + 1)).unwrap_or((self.0, &[]));
        self.0 = rest;
        let line = line.strip_suffix(b"\r\n").ok_or_else(|| {
            bad("each line of the head must end with CR LF, and the head with an empty line")
        })?;
        if line.contains(&b'\r') {
            return Err(bad("a CR must be at the end of a line, before its LF"));
        }
        Ok(line)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

fn request_line(line: &[u8]) -> Result<Version, Failure> {
    const WRONG: &str = "the request must begin with METHOD PATH HTTP/1.1, with one space between them";
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad(WRONG));
    };
    if !is_token(method) {
        return Err(bad(WRONG));
    }
    let version = match version {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        _ => return Err(bad("the version must be HTTP/1.1 or HTTP/1.0 on this connection")),
    };
    if target.len() > MAX_TARGET {
        return Err(long_target());
    }
    if is_target(method, target) { Ok(version) } else { Err(bad("the path of the request is not valid")) }
}

/// RFC 9112, section 3.2: a path, a whole URL, for OPTIONS a star, for CONNECT an authority.
fn is_target(method: &[u8], target: &[u8]) -> bool {
    let plain = |byte: &u8| {
        matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~' | b'?' | b'=' | b'&' | b'%' | b'+' | b':' | b',')
            || byte.is_ascii_alphanumeric()
    };
    if target.starts_with(b"/") && target.iter().all(plain) {
        return true;
    }
    let form = match target {
        [b'/', ..] => true,
        b"*" => method == b"OPTIONS",
        _ if method == b"CONNECT" => true,
        _ => {
            let scheme = target.iter().take(8).map(u8::to_ascii_lowercase).collect::<Vec<_>>();
            scheme.starts_with(b"http://") || scheme == b"https://"
        }
    };
    form && target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#')
        && Uri::try_from(target).is_ok()
}

/// The headers that say where the request ends and whom it is for.
#[derive(Default)]
struct Fields<'h> {
    host: Option<&'h [u8]>,
    length: Option<&'h [u8]>,
    encoding: Option<&'h [u8]>,
}

impl<'h> Fields<'h> {
    fn take(&mut self, line: &'h [u8]) -> Result<(), Failure> {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(bad("a header must not be folded onto a next line"));
        }
        let colon = memchr::memchr(b':', line);
        let Some((name, value)) = colon.and_then(|colon| line.split_at_checked(colon)) else {
            return Err(bad("each header must be NAME: VALUE"));
        };
        if !is_token(name) {
            return Err(bad("the name of a header must be a token, with the colon right after it"));
        }
        if name.len() > MAX_NAME {
            return Err(long_name());
        }
        let value = value.get(1..).unwrap_or_default();
        let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
        // All of it, without stopping early: so the compiler looks at many bytes at once.
        if value.iter().filter(|byte| is_control(byte)).count() > 0 {
            return Err(bad("the value of a header has a control character"));
        }
        let (place, twice) = match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => (&mut self.host, "Host must be given once"),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                (&mut self.length, "Content-Length must be given once")
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                (&mut self.encoding, "Transfer-Encoding must be given once")
            }
            _ => return Ok(()),
        };
        if place.replace(value.trim_ascii()).is_some() { Err(bad(twice)) } else { Ok(()) }
    }

    fn framing(&self, version: Version) -> Result<Framing, Failure> {
        match self.host {
            None if version == Version::Http11 => return Err(bad("Host must be given")),
            Some(host) if !is_host(host) => {
                return Err(bad("Host must be a name or an address, with a port or without"));
            }
            _ => {}
        }
        match (self.encoding, self.length) {
            (None, None) => Ok(Framing::Length(0)),
            (None, Some(length)) => number(length)
                .map(Framing::Length)
                .ok_or_else(|| bad("Content-Length must be one number, of at most 18 digits")),
            (Some(_), Some(_)) => Err(bad("Transfer-Encoding and Content-Length must not be given together")),
            (Some(_), None) if version == Version::Http10 => {
                Err(bad("Transfer-Encoding must not be given with HTTP/1.0"))
            }
            (Some(encoding), None) if encoding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
            (Some(_), None) => Err(bad("Transfer-Encoding must be chunked, once and alone")),
        }
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = (1..=MAX_DIGITS).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// `token` of RFC 9110, section 5.6.2.
fn is_token(text: &[u8]) -> bool {
    let is_char = |byte: &u8| {
        matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
            || byte.is_ascii_alphanumeric()
    };
    !text.is_empty() && text.iter().all(is_char)
}

/// Empty, or characters that a host and port can have; which host it is nobody asks.
fn is_host(text: &[u8]) -> bool {
    text.iter().all(|byte| {
        matches!(byte, b'!' | b'$'..=b'.' | b':' | b';' | b'=' | b'[' | b']' | b'_' | b'~')
            || byte.is_ascii_alphanumeric()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Heads = Heads { bytes: 32 << 10, headers: 100 };

    fn judged(head: &str) -> Result<Framing, (u16, String)> {
        judge(head.as_bytes(), LIMITS).map_err(|failure| (failure.reason.code().as_u16(), failure.message))
    }

    #[test]
    fn a_head_of_the_standard_says_how_its_body_is_framed() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.0\r\n\r\n", Framing::Length(0)),
            ("OPTIONS * HTTP/1.1\r\nhost: [::1]:8443\r\n\r\n", Framing::Length(0)),
            ("GET https://x.example/a?b=%20 HTTP/1.1\r\nhost: x\r\n\r\n", Framing::Length(0)),
            ("CONNECT x.example:443 HTTP/1.1\r\nhost: x\r\n\r\n", Framing::Length(0)),
            ("POST / HTTP/1.1\r\nhOsT: x\r\ncontent-LENGTH: \t 12 \r\n\r\n", Framing::Length(12)),
            ("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n\r\n", Framing::Chunked),
            ("POST / HTTP/1.1\r\nhost: x\r\nx-a: \u{e9}\t;\"\r\nx-b:\r\n\r\n", Framing::Length(0)),
        ] {
            assert_eq!(judged(head), Ok(expected), "{head:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let line = |line: &str| format!("{line}\r\nhost: x\r\n\r\n");
        let with = |headers: &str| format!("POST / HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n");
        for (what, head) in [
            ("no Host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
            ("two Hosts", with("Host: x")),
            ("a Host with a path", "GET / HTTP/1.1\r\nhost: x/y\r\n\r\n".to_owned()),
            ("a Host with a user", "GET / HTTP/1.1\r\nhost: a@x\r\n\r\n".to_owned()),
            ("two lengths that agree", with("content-length: 3\r\ncontent-length: 3")),
            ("two lengths that differ", with("content-length: 3\r\ncontent-length: 4")),
            ("a list of lengths", with("content-length: 3, 3")),
            ("a signed length", with("content-length: +3")),
            ("a length of hexadecimals", with("content-length: 0x3")),
            ("an empty length", with("content-length:")),
            ("a length beyond numbers", with("content-length: 9999999999999999999")),
            ("length and chunks", with("content-length: 3\r\ntransfer-encoding: chunked")),
            ("chunks and length", with("transfer-encoding: chunked\r\ncontent-length: 3")),
            ("chunked, chunked", with("transfer-encoding: chunked, chunked")),
            ("chunked twice", with("transfer-encoding: chunked\r\ntransfer-encoding: chunked")),
            ("gzip, chunked", with("transfer-encoding: gzip, chunked")),
            ("identity", with("transfer-encoding: identity")),
            ("xchunked", with("transfer-encoding: xchunked")),
            ("an empty encoding", with("transfer-encoding:")),
            ("an encoding with a vertical tab", with("transfer-encoding:\u{b}chunked")),
            ("chunks of 1.0", "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n".to_owned()),
            ("a space before the colon", with("content-length : 3")),
            ("a header without a colon", with("content-length 3")),
            ("a header without a name", with(": 3")),
            ("a folded header", with("x-a: b\r\n c")),
            ("a first header that is folded", "GET / HTTP/1.1\r\n host: x\r\n\r\n".to_owned()),
            ("a bare LF after a header", "GET / HTTP/1.1\r\nhost: x\nx-a: b\r\n\r\n".to_owned()),
            ("bare LFs", "GET / HTTP/1.1\nhost: x\n\n".to_owned()),
            ("a bare LF at the end", "GET / HTTP/1.1\r\nhost: x\r\n\n".to_owned()),
            ("a bare CR", with("x-a: b\rc")),
            ("two CRs", with("x-a: b\r")),
            ("NUL in a value", with("x-a: b\0c")),
            ("DEL in a value", with("x-a: b\u{7f}c")),
            ("two spaces", line("GET  / HTTP/1.1")),
            ("a tab", line("GET\t/ HTTP/1.1")),
            ("a space at the end", line("GET / HTTP/1.1 ")),
            ("no version", line("GET /")),
            ("HTTP/2.0", line("PRI * HTTP/2.0")),
            ("HTTP/1.2", line("GET / HTTP/1.2")),
            ("http/1.1", line("GET / http/1.1")),
            ("no method", line(" / HTTP/1.1")),
            ("a method that is no token", line("G(T / HTTP/1.1")),
            ("a path that is none", line("GET x HTTP/1.1")),
            ("a star of GET", line("GET * HTTP/1.1")),
            ("another scheme", line("GET ftp://x/ HTTP/1.1")),
            ("a fragment", line("GET /a#b HTTP/1.1")),
            ("a path that is not ASCII", line("GET /\u{e9} HTTP/1.1")),
            ("TLS", "\u{16}\u{3}\u{1}\n\n".to_owned()),
        ] {
            let refused = judged(&head);
            assert!(matches!(&refused, Err((400, _))), "{what}: {refused:?}");
        }
    }

    #[test]
    fn a_head_beyond_its_limits_is_a_431() {
        let many = |n: usize| format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert_eq!(judged(&many(99)), Ok(Framing::Length(0)));
        let name = format!("GET / HTTP/1.1\r\nhost: x\r\n{}: b\r\n\r\n", "n".repeat(MAX_NAME + 1));
        let path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "p".repeat(MAX_TARGET));
        for head in [many(100), name, path] {
            assert!(matches!(judged(&head), Err((431, _))), "{:?}", judged(&head));
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_however_its_lines_end() {
        for (text, expected) in [
            ("a\r\n\r\nb", Some(5)),
            ("a\n\nb", Some(3)),
            ("a\r\n\nb", Some(4)),
            ("a\n\r\nb", Some(4)),
            ("a\r\nb\r\n", None),
            ("a\r\n\r", None),
            ("", None),
        ] {
            assert_eq!(end(text.as_bytes(), 0), expected, "{text:?}");
        }
        assert_eq!(end(b"a\r\n\r\nb", 2), Some(5));
        assert_eq!(end(b"a", 5), None);
    }
}
