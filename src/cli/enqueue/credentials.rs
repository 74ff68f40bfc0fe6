//! Secrets and parameters of a grant: read from files or standard input, held against what the grant needs.

use std::io::Read;
use std::path::PathBuf;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::cli::report::{Error, Kind};
use crate::domain::secret::Secret;
use crate::domain::spec::{GrantKind, GrantSpec, ProviderSpec};
use crate::providers;

/// No credential of any provider comes near this.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
const PARAM_LENGTH_MAX: usize = 1_024;
/// How far a word may be from one that exists, to be taken for a slip.
const LIKENESS_MIN: f64 = 0.7;

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SecretArg {
    pub(super) name: String,
    pub(super) source: SecretSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SecretSource {
    File(PathBuf),
    Stdin,
}

impl SecretArg {
    /// `K=@FILE` or `K=-`. What is refused is not quoted back: it may be the secret itself.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let Some((name, source)) = text.split_once('=') else {
            return Err(Error::bad_request("`--secret` needs NAME=@FILE or NAME=-"));
        };
        let source = match source.strip_prefix('@') {
            Some(path) if !path.is_empty() => SecretSource::File(path.into()),
            None if source == "-" => SecretSource::Stdin,
            _ => return Err(exposed(name)),
        };
        if !is_known(name) {
            return Err(Error::bad_request("`--secret` names no secret that any provider takes")
                .hint(format!("the names are {}", quoted(&known()))));
        }
        Ok(Self { name: name.to_owned(), source })
    }

    fn read(&self) -> Result<Secret, Error> {
        let text = match &self.source {
            SecretSource::Stdin => read_limited(std::io::stdin().lock()),
            SecretSource::File(path) => std::fs::File::open(path).and_then(read_limited),
        };
        let at = match &self.source {
            SecretSource::Stdin => "standard input".to_owned(),
            SecretSource::File(path) => format!("`{}`", path.display()),
        };
        let text = text.map_err(|error| {
            Error::new(Kind::BadRequest, format!("reading the secret `{}` from {at}: {error}", self.name))
        })?;
        if text.is_empty() {
            return Err(Error::bad_request(format!("the secret `{}` in {at} is empty", self.name)));
        }
        // No header takes such a character, and no provider gives out a credential with one.
        if text.contains(|c: char| c.is_control()) {
            let message =
                format!("the secret `{}` in {at} has more than one line, or a control character", self.name);
            return Err(Error::bad_request(message).hint("give the secret alone, on one line"));
        }
        Ok(Secret::new(text.as_str()))
    }
}

/// At most [`SECRET_BYTES_MAX`], without the newline at the end that editors leave.
fn read_limited(reader: impl Read) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    reader.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(std::io::Error::other(format!("more than {SECRET_BYTES_MAX} bytes")));
    }
    let end = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(end);
    Ok(text)
}

fn exposed(name: &str) -> Error {
    // Of `c2VjcmV0==` the part before the first `=` is most of a secret.
    let name = if is_known(name) { name } else { "NAME" };
    let message = "a secret was given on the command line, where every user of this machine can read it in the process \
                   list, and the shell keeps it in its history: it is refused";
    Error::bad_request(message).hint(format!(
        "give `--secret {name}=@FILE`, or pipe it into `--secret {name}=-`; if the secret was real, replace it"
    ))
}

fn known() -> Vec<&'static str> {
    let grants = providers::REGISTRY.iter().flat_map(|provider| provider.spec().grants);
    let mut names: Vec<_> = grants.flat_map(|grant| grant.secrets.iter().copied()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn is_known(name: &str) -> bool {
    known().contains(&name)
}

fn quoted(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// The provider of that name.
pub(super) fn provider(name: &str) -> Result<&'static ProviderSpec, Error> {
    if let Some(provider) = providers::provider(name) {
        return Ok(provider.spec());
    }
    let names = providers::names();
    let nearest = names.iter().map(|known| (strsim::jaro_winkler(name, known), known));
    let nearest = nearest.filter(|(likeness, _)| *likeness > LIKENESS_MIN).max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None => format!("the providers are {}", quoted(&names)),
    };
    Err(Error::new(Kind::UnknownName, format!("there is no provider `{name}`")).hint(hint))
}

/// The grant asked for, or the provider's default.
pub(super) fn grant(
    spec: &'static ProviderSpec,
    asked: Option<GrantKind>,
) -> Result<&'static GrantSpec, Error> {
    let grant = match asked {
        Some(kind) => spec.grant(kind),
        None => spec.grants.first(),
    };
    grant.ok_or_else(|| {
        let asked = asked.map_or("none", GrantKind::as_str);
        let known: Vec<_> = spec.grants.iter().map(|grant| grant.kind.as_str()).collect();
        Error::bad_request(format!("{} takes no grant `{asked}`", spec.title))
            .hint(format!("give `--grant` as one of {}", quoted(&known)))
    })
}

/// Whether exactly the names that the grant needs were given, each once. With `partly`, some may be missing.
pub(super) fn check_names(
    flag: &str,
    needed: &[&str],
    given: &[&str],
    partly: bool,
    of: &str,
) -> Result<(), Error> {
    let wants = match needed {
        [] => format!("{of} takes no `{flag}`"),
        needed => format!("{of} takes {}", quoted(needed)),
    };
    if let Some(unknown) = given.iter().find(|name| !needed.contains(name)) {
        return Err(Error::bad_request(format!("`{flag} {unknown}=…` is not for this grant")).hint(wants));
    }
    if let Some(missing) = needed.iter().find(|name| !partly && !given.contains(name)) {
        let value = if flag == "--secret" { "@FILE" } else { "…" };
        let message = format!("`{flag} {missing}={value}` is missing");
        return Err(Error::bad_request(message).hint(wants));
    }
    let twice = given.iter().enumerate().find(|(index, name)| given[..*index].contains(name));
    match twice {
        Some((_, name)) => Err(Error::bad_request(format!("`{flag} {name}=…` was given twice"))),
        None => Ok(()),
    }
}

/// The parameters as the object that the connection's row keeps.
pub(super) fn params(given: &[(String, String)]) -> Result<Map<String, Value>, Error> {
    let long = given.iter().find(|(_, value)| value.len() > PARAM_LENGTH_MAX);
    if let Some((name, _)) = long {
        let message = format!("`--param {name}=…` has more than {PARAM_LENGTH_MAX} bytes");
        return Err(Error::bad_request(message));
    }
    Ok(given.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect())
}

/// Reads the secrets, and gives what is sealed for the daemon: a JSON object of texts, by name. `None` without any.
pub(super) fn read_secrets(secrets: &[SecretArg]) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    if secrets.iter().filter(|secret| secret.source == SecretSource::Stdin).count() > 1 {
        return Err(Error::bad_request("only one `--secret` can come from standard input"));
    }
    if secrets.is_empty() {
        return Ok(None);
    }
    let mut json = Zeroizing::new(Vec::new());
    for secret in secrets {
        let before = if json.is_empty() { b'{' } else { b',' };
        json.push(before);
        let value = secret.read()?;
        // Written piece by piece: a `Value` would leave copies in memory that nobody wipes.
        for (text, after) in [(secret.name.as_str(), &b":"[..]), (value.expose(), b"")] {
            serde_json::to_writer(&mut *json, text).expect("a text can be written to memory");
            json.extend_from_slice(after);
        }
    }
    json.push(b'}');
    Ok(Some(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_files_or_standard_input_only() {
        let secret = |source| SecretArg { name: "bearer_token".into(), source };
        assert_eq!(SecretArg::parse("bearer_token=-"), Ok(secret(SecretSource::Stdin)));
        let file = SecretSource::File("/run/k=1".into());
        assert_eq!(SecretArg::parse("bearer_token=@/run/k=1"), Ok(secret(file)));
        for refused in [
            "bearer_token=hunter2",
            "hunter2",
            "bearer_token=",
            "bearer_token=@",
            "hunter2=@/file",
            "hunter2==",
            "-",
            "hunter2=-",
        ] {
            let error = SecretArg::parse(refused).expect_err(refused);
            let text = error.text(false).unwrap();
            assert!(!text.contains("hunter2"), "{refused}: {text}");
        }
        let error = SecretArg::parse("bearer_token=hunter2").unwrap_err();
        assert!(error.message.contains("process list"), "{error:?}");
        assert!(error.hint.unwrap().contains("--secret bearer_token=@FILE"));
    }

    #[test]
    fn files_are_read_without_their_last_newline() {
        let read = |bytes: &[u8]| read_limited(bytes).map(|text| text.to_string());
        assert_eq!(read(b"key\r\n").unwrap(), "key");
        assert_eq!(read(b"k y").unwrap(), "k y");
        assert!(read(&[0xff]).is_err());
        assert!(read(&vec![b'a'; 64 * 1024]).is_ok());
        assert!(read(&vec![b'a'; 64 * 1024 + 1]).is_err());
    }

    #[test]
    fn what_is_sealed_is_an_object() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        std::fs::write(&path, "a\"b\n").unwrap();
        let file = |name: &str| SecretArg { name: name.into(), source: SecretSource::File(path.clone()) };
        let json = read_secrets(&[file("one"), file("two")]).unwrap().unwrap();
        assert_eq!(json.as_slice(), br#"{"one":"a\"b","two":"a\"b"}"#);
        assert_eq!(read_secrets(&[]), Ok(None));
        let stdin = SecretArg { name: "x".into(), source: SecretSource::Stdin };
        assert!(read_secrets(&[stdin.clone(), stdin]).is_err());
        std::fs::write(&path, "\n").unwrap();
        assert!(read_secrets(&[file("one")]).unwrap_err().message.contains("is empty"));
        for odd in ["a\nb\n", "a\r\nb", "a\tb", "a\0"] {
            std::fs::write(&path, odd).unwrap();
            let error = read_secrets(&[file("one")]).expect_err(odd);
            assert_eq!(error.kind, Kind::BadRequest, "{odd:?}");
            assert!(error.message.contains("more than one line"), "{error:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read_secrets(&[file("one")]).unwrap_err().kind, Kind::BadRequest);
    }

    #[test]
    fn names_that_a_grant_needs() {
        let check = |needed: &[&str], given: &[&str], partly, expected: Option<&str>| {
            let found =
                check_names("--secret", needed, given, partly, "HubSpot").map_err(|error| error.message);
            match expected {
                None => assert_eq!(found, Ok(())),
                Some(words) => assert!(found.clone().is_err_and(|m| m.contains(words)), "{found:?}"),
            }
        };
        check(&["a", "b"], &["b", "a"], false, None);
        check(&[], &[], false, None);
        check(&["a", "b"], &["a"], false, Some("`--secret b=@FILE` is missing"));
        check(&["a", "b"], &["a"], true, None);
        check(&["a"], &["a", "c"], true, Some("`--secret c=…` is not for this grant"));
        check(&["a"], &["a", "a"], false, Some("given twice"));
    }

    #[test]
    fn providers_and_their_grants() {
        let hubspot = provider("hubspot").unwrap();
        assert_eq!(grant(hubspot, None).unwrap().kind, GrantKind::AuthorizationCode);
        assert_eq!(grant(hubspot, Some(GrantKind::BearerToken)).unwrap().secrets, ["bearer_token"]);
        assert!(
            grant(hubspot, Some(GrantKind::ApiKey)).unwrap_err().message.contains("takes no grant `api_key`")
        );
        let unknown = provider("hubpsot").unwrap_err();
        assert_eq!(
            (unknown.kind, unknown.hint.as_deref()),
            (Kind::UnknownName, Some("did you mean `hubspot`?"))
        );
        assert!(provider("zzz").unwrap_err().hint.unwrap().contains("the providers are"));
    }

    #[test]
    fn parameters() {
        let pair = |value: &str| [("tenant_id".to_owned(), value.to_owned())];
        assert_eq!(Value::from(params(&pair("7")).unwrap()), serde_json::json!({"tenant_id": "7"}));
        assert!(params(&pair(&"x".repeat(1_025))).is_err());
    }
}
