//! Consents in a real browser, as the account's owner sees them: by day and by night, on a desk and on a phone.

use std::path::PathBuf;

use serde_json::{Value, json};
use url::Url;

use crate::support::app::{TestApp, small};
use crate::support::webdriver::{Browser, Installed};

const PHONE: (u32, u32) = (390, 844);
const DESK: (u32, u32) = (1280, 800);
/// What WCAG 2.2 asks of text (1.4.3).
const CONTRAST_MIN: f64 = 4.5;

/// A folder to leave pictures of the pages in, for who wants to look at them.
#[expect(clippy::disallowed_methods, reason = "for whoever runs the test; it changes nothing that is tested")]
fn pictures() -> Option<PathBuf> {
    std::env::var_os("FIELDMIRROR_TEST_PICTURES").map(PathBuf::from)
}

/// What of a page can be measured.
const MEASURE: &str = r"
    const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    const parts = color => color.match(/[\d.]+/g).map(Number);
    const light = color => { const [r, g, b] = parts(color); return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
    const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if ((parts(c)[3] ?? 1) > 0) return c; } return 'rgb(255, 255, 255)'; };
    const all = [...document.body.querySelectorAll('*')];
    const texts = all.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
    const contrasts = texts.map(e => { const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); });
    return {
        text: document.body.innerText, title: document.title, language: document.documentElement.lang,
        width: innerWidth, scrolled: document.documentElement.scrollWidth,
        outside: all.filter(e => { const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth; }).length,
        cut: all.filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline').length,
        texts: texts.length, contrast: Math.min(...contrasts), ground: light(ground(document.body)),
        smallest: Math.min(...texts.map(e => parseFloat(getComputedStyle(e).fontSize))),
        scripts: document.scripts.length, active: document.querySelectorAll('img,iframe,form,input,link,object,embed,video,audio').length,
        handlers: all.filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length,
        resources: performance.getEntriesByType('resource').map(r => r.name), cookies: document.cookie,
    };";

/// The shown page is ours, whole and legible.
fn assert_good(page: &Value, scheme: &str, width: u32) {
    let number = |name: &str| page[name].as_f64().unwrap_or_else(|| panic!("no `{name}` in {page}"));
    for none in ["outside", "cut", "scripts", "active", "handlers"] {
        assert!(number(none) == 0.0, "{none}: {page}");
    }
    assert_eq!(page["width"], width, "{page}");
    assert!(number("scrolled") <= number("width"), "it scrolls sideways: {page}");
    assert!(number("texts") >= 3.0, "{page}");
    assert!(number("contrast") >= CONTRAST_MIN, "{page}");
    assert!(number("smallest") >= 12.0, "{page}");
    let ground = number("ground");
    assert!(if scheme == "dark" { ground < 0.1 } else { ground > 0.8 }, "{scheme}: {page}");
    assert_eq!(
        (&page["resources"], &page["cookies"], &page["language"]),
        (&json!([]), &"".into(), &"en".into())
    );
}

struct Visit<'a> {
    app: &'a TestApp,
    browser: &'a Browser,
    scheme: &'a str,
    screen: (u32, u32),
}

impl Visit<'_> {
    /// Follows the start link, and presses a button on the provider's page.
    async fn answer(&self, line: &str, button: &str) -> Value {
        let asked = self.app.run(&format!("{line} --no-wait --json")).await.done().last();
        self.browser.open(asked["start_url"].as_str().expect("a link was made")).await;
        self.browser.arrive(&self.app.sandbox.base_url()).await;
        self.browser.press(&format!("button[value={button}]")).await;
        self.result(button).await
    }

    /// The page that is shown now, which has to be one of ours.
    async fn result(&self, name: &str) -> Value {
        self.browser.arrive(&self.app.endpoint).await;
        let page = self.browser.ask(MEASURE).await;
        if let Some(folder) = pictures() {
            let file = format!("{name}-{}-{}.png", self.scheme, self.screen.0);
            self.browser.picture(&folder.join(file)).await;
        }
        assert_good(&page, self.scheme, self.screen.0);
        page
    }

    /// The cookies name the attempts to us alone, one for each link.
    async fn assert_cookies(&self, links: usize) {
        let cookies = self.browser.cookies().await;
        assert_eq!(cookies.len(), links, "{cookies:?}");
        for cookie in cookies {
            let name = cookie["name"].as_str().unwrap_or_default();
            assert!(name.starts_with("fieldmirror_attempt_hubspot_"), "{cookie}");
            assert_eq!((&cookie["httpOnly"], &cookie["sameSite"]), (&true.into(), &"Lax".into()), "{cookie}");
            assert_eq!(cookie["path"], "/oauth/callback/hubspot", "{cookie}");
        }
    }
}

#[track_caller]
fn assert_says(page: &Value, words: &[&str]) {
    let text = page["text"].as_str().expect("text");
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

/// Every address that was asked for is the endpoint's or the provider's, and both were asked.
#[track_caller]
fn assert_nothing_outside(app: &TestApp, requested: &[String]) {
    let origin =
        |url: &str| Url::parse(url).map(|url| url.origin().ascii_serialization()).unwrap_or_default();
    let ours = [app.endpoint.clone(), origin(&app.sandbox.base_url())];
    let outside: Vec<_> = requested.iter().filter(|url| !ours.contains(&origin(url))).collect();
    assert!(outside.is_empty(), "{outside:?}");
    for own in &ours {
        assert!(requested.iter().any(|url| origin(url) == *own), "{own} was not asked: {requested:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_connects_and_declines() {
    let Some(installed) = Installed::or_skip("an_owner_connects_and_declines") else { return };
    let app = TestApp::new(small(20), &[]).await;
    let daemon = app.daemon().await;
    let browser = Browser::start(&installed, &app.folder).await;
    let (mut line, mut links) = ("enqueue --connect hubspot --name acme", 0);
    for (scheme, screen) in [("light", PHONE), ("dark", PHONE), ("light", DESK), ("dark", DESK)] {
        browser.look(screen.0, screen.1, scheme).await;
        let visit = Visit { app: &app, browser: &browser, scheme, screen };
        let page = visit.answer(line, "deny").await;
        assert_says(&page, &["Not connected", "HubSpot", "Nothing has been changed"]);
        visit.assert_cookies(links + 1).await;
        let page = visit.answer(line, "approve").await;
        assert_says(&page, &["Connected to HubSpot", "connected as acme.", "close this window"]);
        links += 2;
        visit.assert_cookies(links).await;
        // Loading the page again is a replay.
        browser.open(&browser.url().await).await;
        assert_says(&visit.result("again").await, &["Used already"]);
        for (path, words) in [("/connect/x", "does not work"), ("/nothing", "Nothing here")] {
            browser.open(&format!("{}{path}", app.endpoint)).await;
            assert_says(&visit.result(&path[1..].replace('/', "-")).await, &[words]);
        }
        line = "enqueue --reconnect acme";
    }
    let state = app.one("SELECT state FROM mirror.connections WHERE name = 'acme'").await;
    assert_eq!(state, "connected");

    assert_nothing_outside(&app, &browser.requested().await);
    let console = browser.console().await;
    assert!(!console.iter().any(|line| line.contains("Content Security Policy")), "{console:?}");
    drop(browser);
    daemon.stop().await;
}

/// The link was mailed, opened in one program and finished in another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consent_may_change_browsers() {
    let Some(installed) = Installed::or_skip("a_consent_may_change_browsers") else { return };
    let app = TestApp::new(small(20), &[]).await;
    let daemon = app.daemon().await;
    let asked = app.run("enqueue --connect hubspot --name acme --no-wait --json").await.done().last();
    let (first, second) = (app.folder.join("first"), app.folder.join("second"));
    std::fs::create_dir_all(&first).unwrap();
    std::fs::create_dir_all(&second).unwrap();
    let begun = Browser::start(&installed, &first).await;
    begun.open(asked["start_url"].as_str().unwrap()).await;
    let other = Browser::start(&installed, &second).await;
    other.look(PHONE.0, PHONE.1, "light").await;
    other.open(&begun.arrive(&app.sandbox.base_url()).await).await;
    other.press("button[value=approve]").await;
    let visit = Visit { app: &app, browser: &other, scheme: "light", screen: PHONE };
    assert_says(&visit.result("other-browser").await, &["Connected to HubSpot"]);
    let state = "SELECT state FROM fieldmirror.connections WHERE name = 'acme'";
    assert_eq!(app.one(state).await, "connected");
    drop((begun, other));
    daemon.stop().await;
}
