//! Text of strangers, made fit for a line that people read.

/// Characters that cannot be seen, or that change how others are seen, as ranges: white space but the space, controls,
/// what turns the direction of writing, and what Unicode calls noncharacters.
pub const HIDDEN: &[(char, char)] = &[
    ('\0', '\u{1f}'),
    ('\u{7f}', '\u{a0}'),
    ('\u{ad}', '\u{ad}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{2000}', '\u{200f}'),
    ('\u{2028}', '\u{202f}'),
    ('\u{205f}', '\u{206f}'),
    ('\u{3000}', '\u{3000}'),
    ('\u{fdd0}', '\u{fdef}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{fffe}', '\u{ffff}'),
    ('\u{1fffe}', '\u{1ffff}'),
    ('\u{2fffe}', '\u{2ffff}'),
    ('\u{3fffe}', '\u{3ffff}'),
    ('\u{4fffe}', '\u{4ffff}'),
    ('\u{5fffe}', '\u{5ffff}'),
    ('\u{6fffe}', '\u{6ffff}'),
    ('\u{7fffe}', '\u{7ffff}'),
    ('\u{8fffe}', '\u{8ffff}'),
    ('\u{9fffe}', '\u{9ffff}'),
    ('\u{afffe}', '\u{affff}'),
    ('\u{bfffe}', '\u{bffff}'),
    ('\u{cfffe}', '\u{cffff}'),
    ('\u{dfffe}', '\u{dffff}'),
    ('\u{e0000}', '\u{e007f}'),
    ('\u{efffe}', '\u{effff}'),
    ('\u{ffffe}', '\u{fffff}'),
    ('\u{10fffe}', '\u{10ffff}'),
];

/// Whether a character is one of [`HIDDEN`].
pub fn is_hidden(c: char) -> bool {
    HIDDEN.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// At most so many characters of a text, each that is hidden written as Rust writes it (`\u{202e}`), with an ellipsis
/// for what was cut.
pub fn legible(text: &str, most: usize) -> String {
    let (mut shown, mut length) = (String::with_capacity(text.len().min(4 * most)), 0);
    let mut end_if_cut = 0;
    for c in text.chars() {
        if is_hidden(c) {
            length += c.escape_default().count();
            shown.extend(c.escape_default());
        } else {
            length += 1;
            shown.push(c);
        }
        if length > most {
            shown.truncate(end_if_cut);
            shown.push('…');
            return shown;
        }
        // An escape is never cut in two, and the ellipsis needs a place.
        if length < most {
            end_if_cut = shown.len();
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_spelled_out() {
        for (text, shown) in [
            ("order.created", "order.created"),
            ("a b", "a b"),
            ("Zürich.注文", "Zürich.注文"),
            ("order\u{202e}detaerc", r"order\u{202e}detaerc"),
            ("a\nb\tc\u{0}\u{7f}\u{85}", r"a\nb\tc\u{0}\u{7f}\u{85}"),
            (
                "\u{feff}\u{200b}\u{a0}\u{2028}\u{2066}\u{61c}",
                r"\u{feff}\u{200b}\u{a0}\u{2028}\u{2066}\u{61c}",
            ),
            ("\u{1b}[31mred", r"\u{1b}[31mred"),
        ] {
            assert_eq!(legible(text, 100), shown);
        }
    }

    #[test]
    fn a_long_text_is_cut_and_no_escape_in_two() {
        for (text, most, shown) in [
            ("abcd", 4, "abcd"),
            ("abcde", 4, "abc…"),
            ("äöüß!", 4, "äöü…"),
            ("ab\u{202e}", 9, "ab…"),
            ("ab\u{202e}", 10, r"ab\u{202e}"),
            ("ab\u{202e}c", 10, "ab…"),
            ("ab\u{202e}c", 11, r"ab\u{202e}c"),
            ("\u{202e}", 1, "…"),
            ("", 1, ""),
        ] {
            assert_eq!(legible(text, most), shown, "{text:?} {most}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_hidden_is_left_and_nothing_is_too_long(text in ".{0,40}", most in 1_usize..50) {
            let shown = legible(&text, most);
            proptest::prop_assert!(shown.chars().count() <= most, "{shown:?}");
            proptest::prop_assert!(!shown.chars().any(|c| is_hidden(c) || c.is_control()), "{shown:?}");
        }
    }
}
