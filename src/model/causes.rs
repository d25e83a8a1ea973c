//! An error with what caused it, in one line, without what a URL may say of whoever uses it.

use std::borrow::Cow;

/// What stands in place of the name and password in a URL.
const MASK: &str = "***";

/// The error's text and those of its causes, one after the other; one that the text before it ends with is not repeated. No
/// URL in it has its userinfo, whoever wrote the message.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = cause.source();
    }
    clean(&text).into_owned()
}

/// A text in which no URL has its userinfo (`https://user:password@host/`): the name may be secret like the password. A
/// word that ends like one without a scheme (`user:password@host:3128`) is masked too, and so is all before the last `@`
/// of a word with `://`: what is no valid URL may have anything in its password.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains('@') {
        return Cow::Borrowed(text);
    }
    let (mut cleaned, mut rest) = (String::with_capacity(text.len()), text);
    while !rest.is_empty() {
        let word_ends = rest.find(is_between_words).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_ends);
        clean_word(word, &mut cleaned);
        let space_ends = after.find(|each| !is_between_words(each)).unwrap_or(after.len());
        let (space, after) = after.split_at(space_ends);
        cleaned.push_str(space);
        rest = after;
    }
    Cow::Owned(cleaned)
}

/// A value that somebody gave as a whole, such as that of a flag: here blanks and quotes may belong to a password.
pub fn clean_value(value: &str) -> Cow<'_, str> {
    let mut cleaned = String::new();
    clean_word(value, &mut cleaned);
    if cleaned == value { Cow::Borrowed(value) } else { Cow::Owned(cleaned) }
}

fn is_between_words(each: char) -> bool {
    each.is_whitespace() || matches!(each, '"' | '\'' | '`' | '<' | '>')
}

fn clean_word(word: &str, cleaned: &mut String) {
    let Some((before, host)) = word.rsplit_once('@') else { return cleaned.push_str(word) };
    let end_of_scheme = before.find("://").map(|at| at + "://".len());
    // `user:password@host`, maybe after `name=`.
    let user = before.split_once(':').map(|(user, _)| user);
    let begins = |user: &str| user.rfind(['=', '(', '[', '{']).map_or(0, |at| at + 1);
    let begin = end_of_scheme.or_else(|| user.map(begins));
    match begin.and_then(|begin| before.get(..begin)) {
        Some(scheme) => cleaned.extend([scheme, MASK, "@", host]),
        None => cleaned.push_str(word),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write")]
    struct Outer(#[from] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot go on: {0}")]
    struct Repeats(#[source] Outer);

    #[test]
    fn every_cause_is_said_once_after_what_it_caused() {
        let full = std::io::Error::other("the disk is full");
        assert_eq!(chain(&full), "the disk is full");
        assert_eq!(chain(&Outer(full)), "cannot write: the disk is full");
        let repeats = Repeats(Outer(std::io::Error::other("no")));
        assert_eq!(chain(&repeats), "cannot go on: cannot write: no");
    }

    #[test]
    fn a_url_loses_its_userinfo_whoever_made_the_message() {
        for (text, expected) in [
            ("nothing to hide", "nothing to hide"),
            ("ask alice@example.com", "ask alice@example.com"),
            ("https://hooks.example.com/a?b=c", "https://hooks.example.com/a?b=c"),
            ("http://user:canary@proxy:3128", "http://***@proxy:3128"),
            ("proxy \"http://user:canary@proxy:3128/\" is bad", "proxy \"http://***@proxy:3128/\" is bad"),
            ("http://canary@proxy", "http://***@proxy"),
            ("http://user:can/ary@proxy", "http://***@proxy"),
            ("http://user:can@ary@proxy", "http://***@proxy"),
            ("http://user:can?a#ry@proxy", "http://***@proxy"),
            ("http://user:c%40nary@[::1]:3128", "http://***@[::1]:3128"),
            ("user:canary@proxy:3128", "***@proxy:3128"),
            ("HTTPS_PROXY=user:canary@proxy:3128", "HTTPS_PROXY=***@proxy:3128"),
            ("https_proxy=http://user:canary@proxy, no", "https_proxy=http://***@proxy, no"),
            ("proxy=user:can=ary@proxy", "proxy=***@proxy"),
            ("(HTTP://USER:CANARY@PROXY)", "(HTTP://***@PROXY)"),
            ("a http://u:canary@h b socks5://u:canary@i c", "a http://***@h b socks5://***@i c"),
            ("{\"error\":\"http://u:canary@h\"}", "{\"error\":\"http://***@h\"}"),
            ("'https://ü:canary@höst'", "'https://***@höst'"),
            ("@", "@"),
            ("://@", "://***@"),
        ] {
            assert_eq!(clean(text), expected, "{text}");
        }
        assert_eq!(clean_value("http://user:can ary\"@proxy"), "http://***@proxy");
        assert_eq!(clean_value("10.0.0.0/8"), "10.0.0.0/8");
    }

    #[test]
    fn a_chain_is_clean_at_each_of_its_causes() {
        let inner = std::io::Error::other("dial http://user:canary@proxy:3128");
        assert_eq!(chain(&Outer(inner)), "cannot write: dial http://***@proxy:3128");
    }

    proptest! {
        #[test]
        fn no_password_survives(before in "[ a-z(=]{0,5}", scheme in "(https?|socks5)://", user in "[a-z]{0,5}",
                                password in "[!-~&&[^\"'`<>]]{0,12}", after in "[ a-z/?=]{0,9}") {
            let text = format!("{before}{scheme}{user}:canary{password}@proxy:1{after}");
            prop_assert!(!clean(&text).contains("canary"), "{text}");
        }

        #[test]
        fn anything_is_cleaned_without_harm_and_once(text in "\\PC{0,40}") {
            let once = clean(&text).into_owned();
            prop_assert_eq!(clean(&once), once.as_str());
        }
    }
}
