//! Secrets: given as the key itself, as a file, or as a systemd credential, and never shown.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use zeroize::Zeroizing;

use super::reader::Reader;
use super::sources::Purpose;
use super::validate;
use crate::domain::secret::Secret;

/// What stands for a secret that is set, wherever settings are shown.
pub const MASK: &str = "[secret]";

/// A secret of more bytes is a wrong file.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Earlier vault keys that may be in use at once.
const PREVIOUS_KEYS_MAX: usize = 16;

/// Bits of a file's mode that let others than the owner in.
const MODE_OF_OTHERS: u32 = 0o077;

/// What is known about a secret besides its length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SecretKind {
    Plain,
    DatabaseUrl,
    /// Its file is for its owner only.
    VaultKey,
}

impl SecretKind {
    fn expected(self) -> &'static str {
        match self {
            Self::Plain => "a secret of one line, in quotes where it stands in a settings file",
            Self::DatabaseUrl => "a URL such as postgres://user:password@host/database",
            Self::VaultKey => "32 bytes as base64",
        }
    }

    fn fault(self, text: &str) -> Option<String> {
        match self {
            Self::Plain => {
                text.contains(char::is_control).then(|| "more than one line (not shown)".to_owned())
            }
            Self::DatabaseUrl => validate::database_url_fault(text),
            Self::VaultKey => validate::vault_key_fault(text),
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::VaultKey => {
                "put the right key back; for a first start, make one with `fieldmirror key generate` (a new key does \
                 not open what another one sealed)"
            }
            Self::Plain | Self::DatabaseUrl => "correct it",
        }
    }

    /// Whether this process needs it.
    fn wanted(self, purpose: Purpose) -> bool {
        purpose == Purpose::Daemon || self == Self::DatabaseUrl
    }
}

/// Where a secret was given.
enum Given {
    Inline(Secret),
    File(PathBuf),
    Credential { name: String, path: PathBuf },
}

impl Reader<'_> {
    /// The secret `key`, which may be given by the setting `file_key` or as a credential too. `None` when it is not
    /// set, or not wanted for this purpose.
    pub(super) fn secret(&mut self, key: &str, file_key: &str, kind: SecretKind) -> Option<Secret> {
        let mut given = Vec::new();
        given.extend(self.inline(key, kind));
        given.extend(self.path(file_key).map(|path| (self.layers.effective(file_key).1, Given::File(path))));
        given.extend(self.credential(key));
        self.resolve(key, Json::Null, self.layers.effective(key).1);
        if let [(one, _), (other, _), ..] = given.as_slice() {
            let (found, origin) = (format!("a secret given twice: by {one} and by {other}"), other.clone());
            let remedy = format!("remove one of them; `{key}` or `{file_key}` set to \"\" is not set");
            self.problem(key, found, "one source", &origin, remedy);
        }
        let (stated_in, given) = given.into_iter().next()?;
        let origin = match &given {
            Given::File(path) => format!("file {}", path.display()),
            Given::Inline(_) | Given::Credential { .. } => stated_in,
        };
        self.resolve(key, MASK.into(), origin.clone());
        if !kind.wanted(self.sources.purpose) {
            return None;
        }
        match given {
            Given::Inline(secret) => self.checked(key, secret, kind, &origin),
            Given::File(path) => self.secret_file(file_key, &path, kind),
            Given::Credential { name, path } => self.secret_file(&name, &path, kind),
        }
    }

    /// The earlier vault keys.
    pub(super) fn previous_keys(&mut self, key: &str) -> Vec<Secret> {
        let paths = self.paths(key, PREVIOUS_KEYS_MAX);
        if !SecretKind::VaultKey.wanted(self.sources.purpose) {
            return Vec::new();
        }
        paths.iter().filter_map(|path| self.secret_file(key, path, SecretKind::VaultKey)).collect()
    }

    fn inline(&mut self, key: &str, kind: SecretKind) -> Option<(String, Given)> {
        let (value, origin) = self.layers.effective(key);
        let Some(text) = value.as_str() else {
            self.problem(
                key,
                "a value that is no text (not shown)",
                kind.expected(),
                &origin,
                "put it in quotes",
            );
            return None;
        };
        (!text.is_empty()).then(|| (origin, Given::Inline(Secret::new(text))))
    }

    fn credential(&self, key: &str) -> Option<(String, Given)> {
        let path = self.sources.credentials.as_ref()?.join(key);
        let given = Given::Credential { name: key.to_owned(), path: path.clone() };
        path.exists().then(|| (format!("credential {key}"), given))
    }

    fn secret_file(&mut self, key: &str, path: &Path, kind: SecretKind) -> Option<Secret> {
        let in_credentials =
            self.sources.credentials.as_ref().is_some_and(|directory| path.starts_with(directory));
        let private = kind == SecretKind::VaultKey && !in_credentials;
        let origin = format!("file {}", path.display());
        match read(path, private) {
            Ok(secret) => self.checked(key, secret, kind, &origin),
            Err(fault) => {
                self.problem(key, fault.found, fault.expected, &origin, fault.remedy);
                None
            }
        }
    }

    fn checked(&mut self, key: &str, secret: Secret, kind: SecretKind, origin: &str) -> Option<Secret> {
        match kind.fault(secret.expose()) {
            None => Some(secret),
            Some(found) => {
                self.problem(key, found, kind.expected(), origin, kind.remedy());
                None
            }
        }
    }
}

struct Fault {
    found: String,
    expected: &'static str,
    remedy: String,
}

/// The text of a secret file without the newline at its end. `private`: refused when others than its owner may read it.
fn read(path: &Path, private: bool) -> Result<Secret, Fault> {
    let unreadable = |error: io::Error| Fault {
        found: format!("a file that cannot be read ({error})"),
        expected: "a readable file",
        remedy: "check its path and permissions".to_owned(),
    };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    if private && mode & MODE_OF_OTHERS != 0 {
        return Err(Fault {
            found: format!("a file that others may use (mode {:04o})", mode & 0o7777),
            expected: "a file for its owner only",
            remedy: format!("run `chmod 600 {}`", path.display()),
        });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    text(&bytes)
}

fn text(bytes: &[u8]) -> Result<Secret, Fault> {
    let fault = |found: &str| Fault {
        found: found.to_owned(),
        expected: "a file with the secret in one line",
        remedy: "write it again".to_owned(),
    };
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(fault("a file of more than 64 KiB"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| fault("a file that is not text"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.trim().is_empty() { Err(fault("an empty file")) } else { Ok(Secret::new(text)) }
}
