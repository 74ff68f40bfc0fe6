//! The few pages that a person at the customer sees: small, plain, without scripts, readable on a phone in light and
//! dark.
//!
//! Texts are ours. What a connection or an account is called comes from outside and is escaped; a provider's
//! `error_description` never gets here.

use std::fmt::Write as _;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use crate::auth::Ending;
use crate::auth::authorize::Refusal;
use crate::domain::failure::FailureKind;
use crate::domain::text::is_invisible;

/// Characters of a text from outside.
const OUTSIDE_MAX: usize = 120;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--page:#f4f6f8;--card:#fff;--line:#e2e7ec;--good:#14804a;--bad:#b3261e}\
@media(prefers-color-scheme:dark){:root{--ink:#e8ecf1;--soft:#a3adba;--page:#12161b;--card:#1b2128;--line:#2b333d;--good:#5fce95;--bad:#ff8a80}}\
*{box-sizing:border-box}\
body{margin:0;min-height:100vh;min-height:100svh;display:grid;place-items:center;padding:1.5rem;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}\
main{width:100%;max-width:30rem;padding:2rem;background:var(--card);border:1px solid var(--line);border-radius:14px;overflow-wrap:anywhere}\
h1{margin:0 0 .75rem;font-size:1.35rem;line-height:1.25;text-wrap:balance}\
h1::before{content:var(--sign,'\\2013');content:var(--sign,'\\2013')/'';display:grid;place-items:center;width:2.5rem;height:2.5rem;margin-bottom:1.1rem;border-radius:50%;border:2px solid;font-size:1.2rem;line-height:1;color:var(--tone,var(--soft))}\
.good{--tone:var(--good);--sign:'\\2713'}.bad{--tone:var(--bad);--sign:'!'}\
p{margin:.5rem 0 0;text-wrap:pretty}.hint{color:var(--soft);font-size:.93rem}\
footer{margin-top:1.75rem;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);font-size:.8rem}";

/// Nothing but our own style sheet, named by its hash. No scripts, frames, forms or requests of any kind.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// How a page looks and what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Good,
    Bad,
    Plain,
}

/// A page with its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub status: u16,
    pub html: String,
}

/// What a consent came to.
pub fn ending(ending: &Ending) -> Page {
    match ending {
        Ending::Connected { name, title, account } => {
            let text = format!("The account {} is now connected as {}.", shown(account), shown(name));
            page(200, Tone::Good, &format!("Connected to {title}"), &text, "You can close this window.")
        }
        Ending::Denied { title } => page(
            400,
            Tone::Plain,
            "Not connected",
            &format!("Access was declined at {title}. Nothing has been changed."),
            "If that was a mistake, open the link that you were sent once more.",
        ),
        Ending::Refused(reason) => refused(*reason),
        Ending::Restart(_) => refused(Refusal::Invalid),
        Ending::WrongAccount { name, title } => page(
            400,
            Tone::Bad,
            "Another account",
            &format!(
                "The connection {} belongs to another account at {title}. It was left as it is.",
                shown(name)
            ),
            "Sign in to the right account there, then open the link that you were sent once more.",
        ),
        Ending::AccountTaken { by, title } => page(
            400,
            Tone::Bad,
            "Connected already",
            &format!("This account at {title} is connected already, as {}.", shown(by)),
            "An account can be connected once. Ask the person who sent you the link.",
        ),
        Ending::Postponed { .. } => page(
            502,
            Tone::Plain,
            "Not connected yet",
            "Your consent has arrived, but the connection could not be made for now.",
            "You need not do anything more: it is made as soon as possible.",
        ),
        Ending::Failed(failure) => {
            let (text, hint) = match failure.kind {
                FailureKind::Transient | FailureKind::Throttled { .. } => (
                    "The connection could not be made for now.",
                    "Open the link that you were sent once more in a few minutes.",
                ),
                _ => (
                    "The connection could not be made.",
                    "Tell the person who sent you the link. The reason is on record there.",
                ),
            };
            page(502, Tone::Bad, "Not connected", text, hint)
        }
    }
}

/// Why a link or an answer leads nowhere.
pub fn refused(reason: Refusal) -> Page {
    if reason == Refusal::OtherConsent {
        return page(
            400,
            Tone::Plain,
            "Another sign-in",
            "This browser is in the middle of another sign-in.",
            "Open the link that you were sent once more, and finish that one.",
        );
    }
    let (heading, text) = match reason {
        Refusal::Invalid | Refusal::OtherConsent => {
            ("This link does not work", "It is incomplete, or not one of ours.")
        }
        Refusal::Expired => ("Too late", "This link, or the sign-in that was begun with it, has expired."),
        Refusal::Replayed => ("Used already", "This answer has been used before. It works only once."),
        Refusal::Closed => {
            ("No longer in use", "This link has done its work, or a newer one has taken its place.")
        }
    };
    let hint = "Open the link that you were sent once more, or ask for a new one.";
    page(400, Tone::Plain, heading, text, hint)
}

/// The exchange goes on, and the person need not wait.
pub fn still_working() -> Page {
    let text = "The provider takes long to answer. The connection may still come about.";
    page(502, Tone::Plain, "This takes longer than it should", text, "You can close this window.")
}

/// Any other answer that a person may see.
pub fn plain(status: u16) -> Page {
    let (heading, text) = match status {
        404 => ("Nothing here", "There is no such page."),
        414 => ("Too long", "The address is too long."),
        429 | 503 => ("Busy", "Too many requests at once. Try again in a moment."),
        _ => ("Something went wrong", "Try again in a few minutes."),
    };
    page(status, Tone::Plain, heading, text, "")
}

/// `text` is HTML, in which what comes from outside has gone through [`shown`].
fn page(status: u16, tone: Tone, heading: &str, text: &str, hint: &str) -> Page {
    let class = match tone {
        Tone::Good => " class=\"good\"",
        Tone::Bad => " class=\"bad\"",
        Tone::Plain => "",
    };
    let heading = escaped(heading);
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"robots\" content=\"noindex\"><title>{heading} – fieldmirror</title><style>{STYLE}</style></head>\
         <body><main{class}><h1>{heading}</h1><p>{text}</p>"
    );
    if !hint.is_empty() {
        let _ = write!(html, "<p class=\"hint\">{}</p>", escaped(hint));
    }
    html.push_str("<footer>fieldmirror</footer></main></body></html>");
    Page { status, html }
}

/// A text from outside as HTML: set off, cut, and without characters that control how others are shown.
fn shown(text: &str) -> String {
    format!("<b>{}</b>", escaped(&tamed(text)))
}

fn tamed(text: &str) -> String {
    let mut kept: String = text.chars().filter(|c| !c.is_control() && !is_invisible(*c)).collect();
    if let Some((end, _)) = kept.char_indices().nth(OUTSIDE_MAX) {
        kept.truncate(end);
        kept.push('…');
    }
    kept
}

/// For use between tags and in quoted attributes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            plain => out.push(plain),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::failure::Failure;

    #[test]
    fn what_comes_from_outside_is_escaped() {
        for (text, expected) in [
            ("Acme & Söhne", "Acme &amp; Söhne"),
            ("<script>alert('x')</script>", "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"),
            ("\"><img src=x onerror=y>", "&quot;&gt;&lt;img src=x onerror=y&gt;"),
            ("safe\u{202E}evil", "safeevil"),
            ("two\nlines\u{0}", "twolines"),
            ("in\u{2028}vi\u{200B}si\u{FEFF}ble\u{61C}", "invisible"),
        ] {
            let connected =
                Ending::Connected { name: "acme".into(), title: "HubSpot", account: text.to_owned() };
            let html = ending(&connected).html;
            assert!(html.contains(&format!("The account <b>{expected}</b> is now")), "{html}");
            assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
        }
    }

    #[test]
    fn long_names_are_cut() {
        let account = "ü".repeat(OUTSIDE_MAX + 5);
        assert_eq!(tamed(&account), format!("{}…", "ü".repeat(OUTSIDE_MAX)));
        assert_eq!(tamed(&"x".repeat(OUTSIDE_MAX)), "x".repeat(OUTSIDE_MAX));
    }

    #[test]
    fn statuses() {
        let connected = Ending::Connected { name: "a".into(), title: "HubSpot", account: "b".into() };
        for (end, status) in [
            (connected, 200),
            (Ending::Denied { title: "HubSpot" }, 400),
            (Ending::Refused(Refusal::Invalid), 400),
            (Ending::Refused(Refusal::Expired), 400),
            (Ending::Refused(Refusal::Replayed), 400),
            (Ending::Refused(Refusal::Closed), 400),
            (Ending::Refused(Refusal::OtherConsent), 400),
            (Ending::WrongAccount { name: "a".into(), title: "HubSpot" }, 400),
            (Ending::AccountTaken { by: "a".into(), title: "HubSpot" }, 400),
            (Ending::Postponed { title: "HubSpot", failure: Failure::transient("x") }, 502),
            (Ending::Failed(Failure::transient("x")), 502),
            (Ending::Failed(Failure::bug("x")), 502),
        ] {
            assert_eq!(ending(&end).status, status, "{end:?}");
        }
    }

    #[test]
    fn a_failures_own_text_is_not_shown() {
        let html = ending(&Ending::Failed(Failure::transient("connection to 10.0.0.7 refused"))).html;
        assert!(!html.contains("10.0.0.7"));
    }

    #[test]
    fn the_policy_names_the_style_that_pages_carry() {
        let html = plain(404).html;
        let style =
            html.split("<style>").nth(1).and_then(|rest| rest.split("</style>").next()).expect("a style");
        let hash = BASE64_STANDARD.encode(Sha256::digest(style.as_bytes()));
        assert!(POLICY.contains(&format!("style-src 'sha256-{hash}'")), "{}", *POLICY);
        assert!(!POLICY.contains("script-src") && POLICY.starts_with("default-src 'none'"));
    }
}
