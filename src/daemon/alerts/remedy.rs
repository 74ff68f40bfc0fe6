//! The command that helps, as an admin types it.

use crate::domain::spec::GrantKind;
use crate::providers::{self, Provider};

/// The command for a new consent of a connection, or new credentials.
pub fn reconnect(provider: &str, name: &str, grant: GrantKind) -> String {
    let mut words = vec![format!("fieldmirror enqueue --reconnect {name}")];
    // A consent keeps what was handed over before; a key is new by being handed over.
    if !grant.needs_consent() {
        words.extend(secrets(provider, grant));
    }
    words.join(" ")
}

/// The flags that hand over what a grant needs.
pub fn secrets(provider: &str, grant: GrantKind) -> Vec<String> {
    let spec = providers::provider(provider).map(Provider::spec);
    let secrets = spec.and_then(|spec| spec.grant(grant)).map_or(&[][..], |grant| grant.secrets);
    secrets.iter().map(|secret| format!("--secret {secret}=@FILE")).collect()
}

/// The command that gives a connection up.
pub fn disconnect(name: &str) -> String {
    format!("fieldmirror enqueue --disconnect {name}")
}

/// The command that has a stream tried at once.
pub fn try_again(name: &str, stream: &str) -> String {
    format!("fieldmirror enqueue --resync {name} --stream {stream}")
}

/// The command that lets a held deletion pass.
pub fn allow_mass_delete(name: &str, stream: &str) -> String {
    format!("fieldmirror enqueue --resync {name} --stream {stream} --full --allow-mass-delete")
}
