//! The page on which an account owner says yes or no. Plain HTML, one form per answer, no script.
//!
//! A program consents by following one GET: the authorize URL with `&auto=approve` (or `&auto=deny`), and
//! `&account=ID` where there is a choice of accounts.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use url::{Host, Url, form_urlencoded};

use super::AuthServer;
use crate::sandbox::shared::html;

/// An authorize request that may be put before the account owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsentRequest {
    pub client_id: String,
    pub redirect_uri: String,
    pub scopes: Vec<String>,
    pub state: Option<String>,
    pub code_challenge: Option<String>,
}

/// An account that can be connected.
#[derive(Debug, Clone)]
pub struct Choice {
    pub account: String,
    pub label: String,
}

/// What the request says that it cannot be answered. The browser stays here: nothing is trusted to be sent back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unfit {
    Client,
    Redirect,
    Challenge,
}

impl Unfit {
    fn text(self) -> &'static str {
        match self {
            Self::Client => "There is no app with this client_id.",
            Self::Redirect => "The redirect_uri is not one that the app has registered.",
            Self::Challenge => "code_challenge needs code_challenge_method=S256.",
        }
    }
}

/// Answers the authorize URL: the page, the redirect that `auto` asks for, or an error page.
pub fn consent_answer(
    server: &AuthServer,
    provider: &str,
    query: &str,
    choices: &[Choice],
    now_ms: i64,
) -> Response {
    let fields: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let request = match read(server, &field) {
        Ok(request) => request,
        Err(unfit) => return page(400, provider, &format!("<p>{}</p>", unfit.text())),
    };
    let chosen = match field("account") {
        None => choices.first(),
        Some(account) => choices.iter().find(|choice| choice.account == account),
    };
    match (field("auto"), chosen) {
        (_, None) => page(400, provider, "<p>You have no such account.</p>"),
        (None, _) => page(200, provider, &forms(&request, &fields, choices)),
        (Some("approve"), Some(choice)) => {
            let code = server.issue_code(&request, &choice.account, now_ms);
            redirect(&request, &[("code", &code)])
        }
        (Some(_), _) => {
            let why = "The user denied the request";
            redirect(&request, &[("error", "access_denied"), ("error_description", why)])
        }
    }
}

fn read<'a>(server: &AuthServer, field: &impl Fn(&str) -> Option<&'a str>) -> Result<ConsentRequest, Unfit> {
    let app = field("client_id").and_then(|id| server.app(id)).ok_or(Unfit::Client)?;
    let redirect_uri = field("redirect_uri").unwrap_or_default();
    let url = Url::parse(redirect_uri).map_err(|_| Unfit::Redirect)?;
    let registered = match app.redirect_uris.as_slice() {
        [] => is_loopback(&url),
        uris => uris.iter().any(|uri| uri == redirect_uri),
    };
    if !registered {
        return Err(Unfit::Redirect);
    }
    let code_challenge = field("code_challenge").map(ToOwned::to_owned);
    if code_challenge.is_some() && field("code_challenge_method") != Some("S256") {
        return Err(Unfit::Challenge);
    }
    let words = |name| field(name).unwrap_or_default().split_whitespace().map(ToOwned::to_owned);
    Ok(ConsentRequest {
        client_id: app.client_id.clone(),
        redirect_uri: redirect_uri.to_owned(),
        scopes: words("scope").chain(words("optional_scope")).collect(),
        state: field("state").map(ToOwned::to_owned),
        code_challenge,
    })
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn redirect(request: &ConsentRequest, fields: &[(&str, &str)]) -> Response {
    let mut url = Url::parse(&request.redirect_uri).expect("a redirect URI is checked before it is used");
    url.query_pairs_mut().extend_pairs(fields);
    if let Some(state) = &request.state {
        url.query_pairs_mut().append_pair("state", state);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FOUND;
    let location = HeaderValue::try_from(url.as_str()).expect("a parsed URL is plain ASCII");
    response.headers_mut().insert(LOCATION, location);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What is asked, and a form per account whose buttons send the same request once more, with the answer.
fn forms(request: &ConsentRequest, fields: &[(String, String)], choices: &[Choice]) -> String {
    let mut page = format!("<p><b>{}</b> asks for:</p><ul>", escape(&request.client_id));
    for scope in &request.scopes {
        page.extend(["<li>", escape(scope).as_str(), "</li>"]);
    }
    page.push_str("</ul>");
    let mut hidden = String::new();
    for (name, value) in fields.iter().filter(|(name, _)| name != "account") {
        hidden.push_str(&hidden_field(name, value));
    }
    for choice in choices {
        let (label, account) = (escape(&choice.label), escape(&choice.account));
        page.extend(["<form method=\"get\"><p>", label.as_str(), " (", account.as_str(), ") "]);
        page.push_str(&hidden);
        page.push_str(&hidden_field("account", &choice.account));
        page.push_str(
            "<button name=\"auto\" value=\"approve\">Approve</button> \
             <button name=\"auto\" value=\"deny\">Deny</button></p></form>",
        );
    }
    page
}

fn hidden_field(name: &str, value: &str) -> String {
    format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(name), escape(value))
}

fn page(status: u16, provider: &str, content: &str) -> Response {
    let body = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Connect an app to {provider} \
         (sandbox)</title></head><body><h1>Connect an app to {provider} (sandbox)</h1>{content}</body></html>\n"
    );
    html(status, body)
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sandbox::oauth::{App, TokenRules};

    fn answer(redirect_uris: &[&str], query: &str) -> (u16, String) {
        let app = App {
            client_id: "app".into(),
            client_secret: "s".into(),
            redirect_uris: redirect_uris.iter().map(ToString::to_string).collect(),
        };
        let life = Duration::from_mins(1);
        let rules =
            TokenRules { access_life: life, code_life: life, access_bytes: 8, one_grant_per_account: true };
        let choices = ["1", "2"].map(|id| Choice { account: id.into(), label: format!("<{id}>") });
        let response = consent_answer(&AuthServer::new(vec![app], rules), "x", query, &choices, 0);
        let location = response.headers().get(LOCATION).map(|text| text.to_str().unwrap().to_owned());
        (response.status().as_u16(), location.unwrap_or_default())
    }

    #[test]
    fn only_a_fit_request_is_put_before_the_owner() {
        let good = "client_id=app&redirect_uri=http://127.0.0.1:1/cb";
        for (uris, query, status) in [
            (&[][..], good.to_owned(), 200),
            (&[], good.replace("127.0.0.1", "localhost"), 200),
            (&[], good.replace("127.0.0.1", "[::1]"), 200),
            (&[], good.replace("127.0.0.1", "example.com"), 400),
            (&[], good.replace("127.0.0.1", "127.0.0.1.example.com"), 400),
            (&[], good.replace("app", "other"), 400),
            (&[], "client_id=app".to_owned(), 400),
            (&["https://a.example/cb"], "client_id=app&redirect_uri=https://a.example/cb".to_owned(), 200),
            (&["https://a.example/cb"], "client_id=app&redirect_uri=https://a.example/cb/".to_owned(), 400),
            (&["https://a.example/cb"], good.to_owned(), 400),
            (&[], format!("{good}&code_challenge=x&code_challenge_method=S256"), 200),
            (&[], format!("{good}&code_challenge=x"), 400),
            (&[], format!("{good}&code_challenge=x&code_challenge_method=plain"), 400),
            (&[], format!("{good}&auto=approve&account=3"), 400),
        ] {
            assert_eq!(answer(uris, &query).0, status, "{query}");
        }
    }

    #[test]
    fn the_state_goes_back_with_the_code_or_the_refusal() {
        let asked = "client_id=app&redirect_uri=http://127.0.0.1:1/cb?a=b&state=s%26t";
        let (status, approved) = answer(&[], &format!("{asked}&auto=approve&account=2"));
        assert_eq!(status, 302);
        assert!(approved.starts_with("http://127.0.0.1:1/cb?a=b&code="), "{approved}");
        assert!(approved.ends_with("&state=s%26t"), "{approved}");
        let (_, denied) = answer(&[], &format!("{asked}&auto=deny"));
        assert!(denied.contains("error=access_denied"), "{denied}");
        assert!(denied.ends_with("&state=s%26t"), "{denied}");
    }

    #[test]
    fn what_is_asked_cannot_write_the_page() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
