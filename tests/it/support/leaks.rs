//! Looks for secrets where they must not be, as they are and as they may have been dressed up on the way.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};

/// Shorter texts stand everywhere by chance.
const SECRET_MIN: usize = 8;
/// Of a long secret, a piece of this length gives it away as well as all of it: texts are cut short.
const PIECE: usize = 24;

/// The forms in which any of `secrets` is in `text`: its label and the form.
pub fn leaks(text: &str, secrets: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    for (label, secret) in secrets {
        assert!(secret.len() >= SECRET_MIN, "{label} is too short to be looked for");
        for (form, dressed) in forms(secret) {
            if text.contains(&dressed) {
                found.push(format!("{label}, {form}"));
            }
        }
    }
    found
}

fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let json = serde_json::to_string(secret).expect("text is JSON");
    let percent: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let each =
        |prefix: &str| secret.bytes().map(|byte| format!("{prefix}{byte:02X}")).collect::<Vec<_>>().concat();
    let mut forms = vec![
        ("plain", secret.to_owned()),
        ("JSON-escaped", json[1..json.len() - 1].to_owned()),
        ("percent-encoded", percent.clone()),
        ("percent-encoded twice", percent.replace('%', "%25")),
        ("every byte percent-encoded", each("%")),
        ("hexadecimal", each("").to_lowercase()),
    ];
    for engine in [BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD] {
        forms.push(("base64", engine.encode(secret)));
    }
    // In the middle of something that was encoded as a whole, such as `id:secret`, by how far it is shifted.
    for shift in 1..=2 {
        let shifted = BASE64_STANDARD_NO_PAD.encode(&secret.as_bytes()[shift..]);
        forms.push(("base64 within", shifted[..shifted.len() - shifted.len() % 4 - 4].to_owned()));
    }
    if secret.len() >= 2 * PIECE && secret.is_char_boundary(PIECE) {
        forms.push(("its beginning", secret[..PIECE].to_owned()));
        forms.push(("its end", secret[secret.len() - PIECE..].to_owned()));
    }
    forms
}

/// That the search can fail, in every form that it knows.
#[test]
fn the_search_finds_what_it_is_for() {
    let secret = "Zm9v/b+r\"baz=0123456789abcdefghijklmnopqrstuvwxyz-ABC~";
    let secrets = [("it".to_owned(), secret.to_owned())];
    let finds = |text: &str, form: &str| {
        let found = leaks(text, &secrets);
        assert!(found.iter().any(|found| found.contains(form)), "{form} in {text}: {found:?}");
    };
    finds(&format!("token={secret}"), "plain");
    finds(&serde_json::json!({ "a": secret }).to_string(), "JSON-escaped");
    finds(url::Url::parse_with_params("http://h/", [("code", secret)]).unwrap().as_str(), "percent-encoded");
    for engine in [BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD] {
        finds(&engine.encode(secret), "base64");
    }
    for before in ["client:", "client-:", "client--:"] {
        finds(&format!("Basic {}", BASE64_STANDARD.encode(format!("{before}{secret}"))), "base64");
    }
    finds(&secret[..40], "its beginning");
    finds(&format!("…{}", &secret[secret.len() - 30..]), "its end");
    assert_eq!(leaks("[secret] and nothing else, Zm9v included", &secrets), Vec::<String>::new());
}
