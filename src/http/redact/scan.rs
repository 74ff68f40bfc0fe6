//! Finds where a value begins behind its name, and where it ends, in JSON, forms, headers and addresses, plain,
//! percent-encoded or escaped.

/// What opens a value, hence what closes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opener {
    None,
    /// A double quote behind so many backslashes.
    Double(usize),
    Single,
    /// `%22`
    Percent,
}

/// What stands between a name and its value.
pub(super) struct Separator {
    /// Of everything between the name and the value.
    pub(super) length: usize,
    /// `name: value` as in prose, YAML and headers, the name not quoted.
    pub(super) spaced_colon: bool,
    pub(super) opener: Opener,
}

/// Reads `":"`, `=`, `%3D`, `\": \"` and the like at the start of `after`.
pub(super) fn separator(after: &str) -> Option<Separator> {
    let closed = run_tokens(after, &["\\", "\"", "'", "%22", "%27", "%5C", " "]);
    let middle = &after[closed..];
    let sign = ["=>", "=", ":", "%3D", "%3A"].iter().find(|sign| starts_with(middle, sign))?;
    let blanks = run(&middle[sign.len()..], char::is_whitespace);
    let start = closed + sign.len() + blanks;
    let (opener, quotes) = opener_at(&after[start..]);
    Some(Separator {
        length: start + quotes,
        spaced_colon: closed == 0 && *sign == ":" && blanks > 0,
        opener,
    })
}

fn opener_at(text: &str) -> (Opener, usize) {
    let slashes = run(text, |c| c == '\\');
    if text[slashes..].starts_with('"') {
        (Opener::Double(slashes), slashes + 1)
    } else if text.starts_with('\'') {
        (Opener::Single, 1)
    } else if text.starts_with("%22") {
        (Opener::Percent, 3)
    } else {
        (Opener::None, 0)
    }
}

/// How long the value at the start of `value` is. A quoted one ends at its own kind of quote (or with the text, when
/// the text was cut), an open one at the first character that forms, JSON or sentences end a value with.
pub(super) fn value_length(value: &str, opener: Opener, authorization: bool) -> usize {
    let end = match opener {
        Opener::Double(slashes) => closing_quote(value, slashes),
        Opener::Single => value.find('\''),
        Opener::Percent => value.find("%22"),
        Opener::None => {
            let stops = |c: char| "&,;\"'\\}])<>\r\n".contains(c) || (c.is_whitespace() && !authorization);
            let plain = &value[..value.find(stops).unwrap_or(value.len())];
            let encoded = ["%22", "%26", "%27", "%7D", "%7d", "%2C", "%2c", "%5C", "%5c", "%20"];
            encoded.iter().filter_map(|stop| plain.find(stop)).min().or(Some(plain.len()))
        }
    };
    end.unwrap_or(value.len())
}

/// The first double quote with at most `slashes` backslashes before it; one with more is escaped inside the value.
fn closing_quote(value: &str, slashes: usize) -> Option<usize> {
    value.match_indices('"').find_map(|(at, _)| {
        let before = value[..at].bytes().rev().take_while(|b| *b == b'\\').count();
        (before <= slashes).then_some(at - before)
    })
}

/// The length in bytes of the leading run of characters that are `wanted`.
pub(super) fn run(text: &str, wanted: impl Fn(char) -> bool) -> usize {
    text.find(|c| !wanted(c)).unwrap_or(text.len())
}

/// The length of the leading run of any of `tokens`.
fn run_tokens(text: &str, tokens: &[&str]) -> usize {
    let mut at = 0;
    while let Some(token) = tokens.iter().find(|token| starts_with(&text[at..], token)) {
        at += token.len();
    }
    at
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}
