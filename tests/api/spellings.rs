//! Spellings that parsers read differently, and good ones.

/// Of durations.
#[rustfmt::skip]
pub(crate) const DURATIONS: &[&str] = &[
    "1h30m", "90m", "1.5h", "1d", "1w", "1 h", " 1h", "1h ", "1h\n", "", "s", "0", "0s", "1", "+1s", "-1s",
    "1S", "1H", "1MS", "1us", "1µs", "1μs", "1ns", "1e3s", "0x1s", "1_0s", "٣s", "１s", "१s", "1s\u{0}", "∞",
    "9999999h", "999999h", "999999h999999h", "9999999m", "99999999s", "99ms", "100ms", "101ms", "0s100ms",
    "999ms", "1s", "1000ms", "01s", "60s", "1m", "60s1ms", "59s1000ms", "1m0s", "61s", "24h", "1440m",
    "86400s", "24h1ms", "23h59m60s", "168h", "168h0ms", "168h1ms", "10080m", "604800s", "0h0m0s0ms1s",
    "0s0s0s0s0s0s0s1s", "0s0s0s0s0s0s0s01s", "1h1h1h", "30m1h", "1m1ms", "1ms1m", "infinity", "PT15S", "15",
    "15 s", "15sec", "1h-30m", "1h+30m", "1,5s", ".5s", "5.s", "1\u{a0}s", "1s\u{85}",
];

/// Of times.
#[rustfmt::skip]
pub(crate) const TIMES: &[&str] = &[
    "2026-11-24T22:00:00Z", "2026-11-24t22:00:00z", "2026-11-24T22:00:00z", "2026-11-24 22:00:00Z",
    "2026-11-24T22:00:00", "2026-11-24T22:00Z", "2026-11-24", "2026-W48-2", "2026-328", "20261124T220000Z",
    "2026-11-24T22:00:00.5Z", "2026-11-24T22:00:00,5Z", "2026-11-24T22:00:00.Z", "2026-11-24T22:00:00x5Z",
    "2026-11-24T22:00:00.123456789Z", "2026-11-24T22:00:00.1234567890Z", "2026-11-24T22:00:00+01:00",
    "2026-11-24T22:00:00-00:00", "2026-11-24T22:00:00+0100", "2026-11-24T22:00:00+01",
    "2026-11-24T22:00:00+23:59", "2026-11-24T22:00:00+24:00", "2026-11-24T22:00:00+01:60",
    "2026-11-24T22:00:00−01:00", "2026-11-24T22:00:00[Europe/Berlin]",
    "2026-11-24T22:00:00+01:00[Europe/Berlin]", "2026-11-24T23:59:60Z", "2016-12-31T23:59:60Z",
    "2026-11-24T24:00:00Z", "2026-11-24T22:60:00Z", "2026-00-24T22:00:00Z", "2026-13-24T22:00:00Z",
    "2026-11-00T22:00:00Z", "2026-11-31T22:00:00Z", "2026-02-29T00:00:00Z", "2024-02-29T00:00:00Z",
    "2000-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z",
    "0999-12-31T00:00:00Z", "1000-01-01T00:00:00Z", "1000-01-01T00:00:00+23:59", "1969-12-31T23:59:59Z",
    "9999-12-31T23:59:59Z", "9999-12-30T22:00:01Z", "9999-12-31T23:59:59.999999999Z",
    "9999-12-31T23:59:59+23:59", "10000-01-01T00:00:00Z", "+2026-11-24T22:00:00Z", "-2026-11-24T22:00:00Z",
    "2026-11-24T22:00:00Z ", " 2026-11-24T22:00:00Z", "2026-11-24T22:00:00Z\n", "2026-11-24T22:00:00 Z",
    "٢٠٢٦-11-24T22:00:00Z", "２０２６-11-24T22:00:00Z", "now", "1795514400", "", "2026-1-24T22:00:00Z",
    "2026-11-24T2:00:00Z", "Tue, 24 Nov 2026 22:00:00 GMT", "2026-11-24T22:00:00Z\u{0}",
    "2026-11-24T22:00:00UTC",
];

/// Of event types and patterns.
#[rustfmt::skip]
pub(crate) const TYPES: &[&str] = &[
    "order.created", "a", "A.b-c_d/e", "注文.作成", "émoji.🎉", "*", "**", "a*", "*a", "a.*", "a.b.*", ".*", "..*",
    "a.*.b", "a.**", "", " ", "a b", " a", "a ", "a\tb", "a\n", "\u{0}", "a\u{7f}", "a\u{80}", "a\u{85}b",
    "a\u{9f}", "a\u{a0}b", "\u{a0}", "a\u{ad}b", "a\u{34f}b", "a\u{61c}b", "a\u{1680}b", "a\u{180e}b",
    "a\u{2000}", "a\u{200a}b", "a\u{200b}b", "a\u{200c}b", "a\u{200d}b", "a\u{200e}b", "a\u{2010}b",
    "a\u{2027}b", "a\u{2028}b", "a\u{2029}b", "a\u{202a}b", "a\u{202e}b", "a\u{202f}b", "a\u{2030}b",
    "a\u{205e}b", "a\u{205f}b", "a\u{2060}b", "a\u{2066}b", "a\u{2069}b", "a\u{206f}b", "a\u{2070}b",
    "a\u{3000}b", "a\u{3001}b", "a\u{fdcf}b", "a\u{fdd0}b", "a\u{fdef}b", "a\u{fdf0}b", "\u{feff}a",
    "a\u{fff8}b", "a\u{fff9}b", "a\u{fffd}b", "a\u{fffe}b", "a\u{ffff}b", "a\u{1fffd}b", "a\u{1fffe}b",
    "a\u{e0001}b", "a\u{e0080}b", "a\u{10fffd}b", "a\u{10ffff}b", "a\\b", "a\"b", "a'b", "$(a)", "${a}", "%00",
    "a]b", "a^b", "a-z",
];

/// Of URLs: whatever a URL parser, Go and a resolver do not agree on.
#[rustfmt::skip]
pub(crate) const URLS: &[&str] = &[
    "https://hooks.example.com", "https://hooks.example.com:8443/a/b?c=d&e=%20", "https://hooks.example.com?x",
    "https://e.xn--p1ai/@user:x;y,~!$'()*+=", "https://a-b.1c.d/", "https://x.localhost:1/",
    "https://127.0.0.1:65535/", "https://[::1]/", "https://[::]/", "https://[::ffff:7f00:1]:8443/",
    "https://[2606:4700:0:0:0:0:0:1]/", "https://[1:2:3:4:5:6:7::]/", "https://[::2:3:4:5:6:7:8]/",
    "https://[1::8]/", "https://[1:2:3:4:5:6:7:8:9]/", "https://[1::2::3]/", "https://[:]/", "https://[:::]/",
    "https://[1:2]/", "https://[12345::]/", "https://[1:2:3:4:5:6:7:8::]/", "https://[::1:2:3:4:5:6:7:8]/",
    "https://2130706433/", "https://0x7f000001/", "https://017700000001/", "https://0177.0.0.1/",
    "https://0x7f.0.0.1/", "https://127.1/", "https://127.0.1/", "https://127.0.0.01/", "https://127/",
    "https://0/", "https://0x/", "https://4294967296/", "https://256.0.0.1/", "https://1.2.3.4.5/",
    "https://08.0.0.1/", "https://foo.1/", "https://foo.0x7f/", "https://127.0.0.1./", "https://127.0.0.1../",
    "https://１２７.0.0.1/", "https://127。0．0｡1/", "https://①②⑦.0.0.1/", "https://%31%32%37.0.0.1/",
    "https://127%2e0.0.1/", "https://%6c%6fcalhost/", "https://ex%41mple.com/", "https://Ⓛocalhost/",
    "https://loc\u{ad}alhost/", "https://loca\u{200b}lhost/", "https://[::ffff:127.0.0.1]/",
    "https://[::127.0.0.1]/", "https://[64:ff9b::127.0.0.1]/", "https://[2002:7f00:1::]/",
    "https://[fe80::1%25eth0]/", "https://[::ffff:127.1]/", "https://[::ffff:0177.0.0.1]/", "https://[::1]x/",
    "https://[]/", "https://[127.0.0.1]/", "https://[v1.a]/", "https://[00000::1]/",
    "https://[::FFFF:7F00:1]/", "https:127.0.0.1", "https:/127.0.0.1/", "https:///127.0.0.1/",
    "https:\\\\127.0.0.1\\", "https:example.com", "https://127.0.0.1\\@good.com/",
    "https://good.com#@127.0.0.1/", "https://good@127.0.0.1/", "https://good.com:443@127.0.0.1/",
    "https://a@b@127.0.0.1/", "https://good.com%23@127.0.0.1/", "https://@127.0.0.1/", "https://:@127.0.0.1/",
    "ht\ttps://example.com/", "https://exam\tple.com/", "https://example.com/\r\n", " https://example.com/",
    "https://example.com/ ", "\0https://example.com/", "https://localhost/", "https://localhost./",
    "https://kubernetes/", "https://metadata/", "https://instance-data/", "https://kubernetes.default.svc/",
    "https://metadata.google.internal/", "https://127.0.0.1.nip.io/", "https://bücher.example/",
    "https://XN--BCHER-KVA.example/", "https://xn--bcher-kva.example/", "https://-a.com/", "https://a-.com/",
    "https://a*b.com/", "https://a;b.com/", "https://a_b.com/", "https://a{b}.com/", "https://a\"b.com/",
    "https://example..com/", "https://.example.com/", "https://./", "https://", "https:///", "https://:443/",
    "https://?x", "https://@/", "https://example.com:/", "https://example.com:0443/", "https://example.com:0/",
    "https://example.com:1/", "https://example.com:65535/", "https://example.com:65536/", "//example.com/",
    "/path", "*", "http://example.com/", "HTTPS://example.com/", "", "https://example.com/%",
    "https://example.com/%4", "https://example.com/%zz", "https://example.com/a b", "https://example.com/é",
    "https://example.com/?a={b}", "https://example.com/?a=b?c", "https://example.com/[",
    "https://example.com/#", "https://example.com/..",
];
