//! A stream whose watermark does not move: what is said of it, and what helps. An alert, `status` and `why` tell the same.

use super::remedy;
use crate::db::alerts::AlertKind;
use crate::db::streams::BEHIND;
use crate::domain::spec::GrantKind;

/// What it is that a stream waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standstill {
    /// A person, to agree to deletions.
    Held,
    /// A right that the grant lacks.
    Forbidden,
    /// A better answer.
    Stalled,
    /// Another stream, from which it learns what to ask for, or a read of everything.
    Behind,
}

/// Whose stream it is.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub provider: &'a str,
    pub connection: &'a str,
    pub grant: GrantKind,
}

impl Standstill {
    /// By what was recorded: the kind of the failure, or a stream's state.
    pub fn of(recorded: &str) -> Self {
        match recorded {
            "held" => Self::Held,
            "forbidden" => Self::Forbidden,
            BEHIND => Self::Behind,
            _ => Self::Stalled,
        }
    }

    pub fn of_alert(kind: AlertKind) -> Option<Self> {
        match kind {
            AlertKind::MassDeleteHeld => Some(Self::Held),
            AlertKind::StreamForbidden => Some(Self::Forbidden),
            AlertKind::StreamStalled => Some(Self::Stalled),
            _ => None,
        }
    }

    pub fn alert(self) -> AlertKind {
        match self {
            Self::Held => AlertKind::MassDeleteHeld,
            Self::Forbidden => AlertKind::StreamForbidden,
            Self::Stalled => AlertKind::StreamStalled,
            Self::Behind => AlertKind::StreamStale,
        }
    }

    /// The sentence behind the stream's name.
    pub fn says(self, reason: &str) -> String {
        let what = match self {
            Self::Held => "waits for a person to agree to deletions",
            Self::Forbidden => "is not allowed with this grant",
            Self::Stalled => "is stalled",
            Self::Behind => "is read, and not relied upon yet",
        };
        format!("{what}: {reason}")
    }

    /// The command that helps.
    pub fn remedy(self, Owner { provider, connection, grant }: Owner<'_>, stream: &str) -> String {
        match self {
            Self::Held => remedy::allow_mass_delete(connection, stream),
            // The missing right can only come from a new consent.
            Self::Forbidden if grant.needs_consent() => remedy::reconnect(provider, connection, grant),
            // A key stays good: it is the account's plan or the app's rights that are to be changed before the next try.
            Self::Forbidden | Self::Stalled | Self::Behind => remedy::try_again(connection, stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_that_a_key_lacks_does_not_come_with_another_key() {
        let next = |provider, grant| {
            Standstill::Forbidden.remedy(Owner { provider, connection: "acme", grant }, "bookings")
        };
        let again = "fieldmirror enqueue --resync acme --stream bookings";
        assert_eq!(next("oncehub", GrantKind::ApiKey), again);
        assert_eq!(next("servicetitan", GrantKind::ClientCredentials), again);
        assert_eq!(next("jobber", GrantKind::AuthorizationCode), "fieldmirror enqueue --reconnect acme");
    }

    #[test]
    fn each_has_its_alert() {
        for standstill in [Standstill::Held, Standstill::Forbidden, Standstill::Stalled] {
            assert_eq!(Standstill::of_alert(standstill.alert()), Some(standstill));
        }
        assert_eq!(Standstill::of_alert(AlertKind::StreamStale), None);
    }
}
