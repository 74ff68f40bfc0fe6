//! The database: whether it answers, fits, takes writes and notifications, and what the daemons have left there.

use chrono::TimeDelta;

use super::{Finding, Patient};
use crate::cli::context::DAEMON_LIVES;
use crate::cli::report::one_line;
use crate::daemon::alerts::message;
use crate::db::alerts::{Alert, AlertKind, HookTrouble};
use crate::db::authorizations::LinkOut;
use crate::db::connections::Connection;
use crate::db::daemons::Daemon;
use crate::db::queue::SessionError;
use crate::db::server::ServerFacts;
use crate::db::vault_use::KeyUse;
use crate::db::{
    Db, DbError, admin, alerts, authorizations, connections, daemons, migrations, queue, server, vault_use,
};
use crate::domain::failure::Failure;
use crate::domain::time::{Clock as _, SystemClock};
use crate::vault::Vault;

/// Clocks of one installation may differ by this much.
const SKEW_MAX: TimeDelta = TimeDelta::seconds(5);
/// Sessions that a daemon opens besides its pool: one listens, one migrates.
const SESSIONS_BESIDES: usize = 2;

/// What the database knows that other checks need.
pub(super) struct Known {
    pub(super) daemons: Vec<Daemon>,
    pub(super) connections: Vec<Connection>,
    pub(super) links: Vec<LinkOut>,
    keys: Vec<KeyUse>,
    alerts: Vec<Alert>,
    hook: Option<HookTrouble>,
}

pub(super) async fn examine(patient: &Patient) -> (Option<Known>, Vec<Finding>) {
    let mut findings = Vec::new();
    let known = look(patient, &mut findings).await;
    if let Some(known) = &known {
        findings.extend(vault(patient, &known.keys));
        findings.push(living(&known.daemons));
        findings.extend(known.alerts.iter().filter_map(alert));
        findings.extend(known.hook.as_ref().map(hook));
    }
    (known, findings)
}

/// Looks as far as it goes: what does not answer is asked no more.
async fn look(patient: &Patient, findings: &mut Vec<Finding>) -> Option<Known> {
    const CHECK: &str = "database";
    let url = patient.cx.database_url();
    let private = patient.settings().database.url.is_none();
    let db = match Db::connect(&url, 1) {
        Ok(db) => db,
        Err(error) => {
            findings.push(of_error(CHECK, &error));
            return None;
        }
    };
    let facts = match db.run(server::facts).await {
        Ok(facts) => facts,
        Err(DbError::Connect(_)) if private => {
            let found = "`database.url` is empty, and no private server runs";
            findings.push(Finding::ill(
                CHECK,
                found,
                "start the daemon with `fieldmirror run`, or set `database.url`",
            ));
            return None;
        }
        Err(error) => {
            findings.push(of_error(CHECK, &error));
            return None;
        }
    };
    findings.push(Finding::ok(CHECK, format!("Postgres {} answers", facts.version)));
    findings.extend(of_facts(&facts, private));
    findings.push(match db.run(admin::is_writable).await {
        Ok(true) => Finding::ok("database_writable", "it takes writes"),
        Ok(false) => Finding::ill(
            "database_writable",
            "it is a standby, or read-only: tokens cannot be stored",
            "let `database.url` lead to the primary, and see `default_transaction_read_only`",
        ),
        Err(error) => of_error("database_writable", &error),
    });
    let direct = tokio::task::spawn_blocking(move || queue::prove_listening(&url)).await;
    findings.push(match direct {
        Ok(Ok(())) => {
            Finding::ok("database_session", "notifications arrive: nothing pools transactions in between")
        }
        Ok(Err(SessionError::Pooler)) => Finding::ill(
            "database_session",
            "notifications do not arrive: a pooler that works by transactions stands in between",
            "let `database.url` lead to Postgres itself, or set the pooler to pool by sessions",
        ),
        Ok(Err(error)) => Finding::ill("database_session", one_line(&error.to_string()), CONNECT_REMEDY),
        Err(error) => Finding::unknown("database_session", error),
    });
    if let Err(error) = db.run(migrations::check).await {
        findings.push(of_error("schema", &error));
        return None;
    }
    findings.push(Finding::ok("schema", "it is this program's"));
    let read = db.run(|conn| {
        Ok(Known {
            daemons: daemons::live(conn, DAEMON_LIVES)?,
            connections: connections::list(conn)?,
            links: authorizations::out(conn)?,
            keys: vault_use::keys(conn, DAEMON_LIVES)?.keys,
            alerts: alerts::open(conn)?,
            hook: alerts::hook_trouble(conn, DAEMON_LIVES)?,
        })
    });
    match read.await {
        Ok(known) => {
            findings.push(sessions(patient.settings().database.pool_size, &known, &facts));
            Some(known)
        }
        Err(error) => {
            findings.push(of_error(CHECK, &error));
            None
        }
    }
}

const CONNECT_REMEDY: &str = "see that Postgres runs and that `database.url` leads to it";

/// An error with what to do about it, by the words of libpq and the server.
fn of_error(check: &'static str, error: &DbError) -> Finding {
    let text = one_line(&Failure::from(error).message);
    let remedies: [(&str, &str); 8] = [
        ("authentication failed", "correct user and password in `database.url`"),
        ("no password supplied", "add the password to `database.url`"),
        ("no pg_hba.conf entry", "let this host in with a line in the server's pg_hba.conf"),
        ("permission denied", "give the role of `database.url` the rights of the database's owner"),
        ("role \"", "make that role with `createuser`, or correct the user in `database.url`"),
        ("database \"", "make that database with `createdb`, or correct its name in `database.url`"),
        ("could not translate host name", "correct the host in `database.url`"),
        ("too many", "raise the server's max_connections, or lower `database.pool_size`"),
    ];
    let remedy = match error {
        DbError::Address(_) => "write `database.url` as postgres://user:password@host/database",
        DbError::ServerTooOld { .. } => "use Postgres 15 or newer",
        DbError::SchemaNewer { .. } => "install the newer fieldmirror on this host too",
        DbError::SchemaBehind { .. } => "run `fieldmirror migrate`, or start the daemon",
        _ => remedies
            .iter()
            .find(|(words, _)| text.contains(words))
            .map_or(CONNECT_REMEDY, |(_, remedy)| remedy),
    };
    Finding::ill(check, text, remedy)
}

fn of_facts(facts: &ServerFacts, private: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.encoding != "UTF8" {
        findings.push(Finding::ill(
            "database_encoding",
            format!("the database is encoded in {}, which does not hold every record", facts.encoding),
            "make a database with `createdb --encoding=UTF8 --template=template0`",
        ));
    }
    if !facts.durable && !private {
        findings.push(Finding::warning(
            "database_durability",
            "the server does not wait for its disk (fsync or full_page_writes is off): a crash may lose tokens",
            "set `fsync = on` and `full_page_writes = on` in postgresql.conf",
        ));
    }
    let ahead = SystemClock.now() - facts.clock;
    if ahead.abs() > SKEW_MAX {
        findings.push(Finding::warning(
            "database_clock",
            format!(
                "the clocks of this machine and of the database differ by {} s",
                ahead.num_seconds().abs()
            ),
            "let both follow a time server, for example with `timedatectl set-ntp true`",
        ));
    }
    findings
}

/// Whether the server has room for the pools of all daemons.
fn sessions(pool_size: usize, known: &Known, facts: &ServerFacts) -> Finding {
    const CHECK: &str = "database_sessions";
    let daemons = known.daemons.len().max(1);
    let wanted = (pool_size + SESSIONS_BESIDES) * daemons;
    let text = format!("{daemons} daemons want up to {wanted} sessions of {}", facts.sessions_max);
    if i64::try_from(wanted).unwrap_or(i64::MAX) > facts.sessions_max {
        let remedy = "lower `database.pool_size`, or raise max_connections in postgresql.conf";
        return Finding::ill(CHECK, text, remedy);
    }
    Finding::ok(CHECK, text)
}

/// The key in hand against those that are in use.
fn vault(patient: &Patient, keys: &[KeyUse]) -> Option<Finding> {
    const CHECK: &str = "vault_key_in_use";
    let settings = &patient.settings().vault;
    let active = keys.iter().find(|key| key.active).and_then(|key| key.key_id.as_deref());
    let Some(key) = settings.key.as_ref().filter(|_| patient.has_secrets) else {
        return active.map(|id| {
            Finding::unknown(
                CHECK,
                format!("daemons seal with key `{id}`; this user's key cannot be compared"),
            )
        });
    };
    let vault = Vault::new(key, &settings.previous_keys).ok()?;
    let ours = |id: &str| vault.key_id() == id || vault.previous_key_ids().any(|previous| previous == id);
    let used = keys.iter().filter(|key| key.total() > 0);
    let foreign: Vec<_> = used.filter_map(|key| key.key_id.as_deref()).filter(|id| !ours(id)).collect();
    if !foreign.is_empty() {
        return Some(Finding::ill(
            CHECK,
            format!(
                "what is stored was sealed with key `{}`, and the key in hand is `{}`",
                foreign.join("`, `"),
                vault.key_id()
            ),
            "put that key back into `[vault] key_file`, or add its file to `previous_key_files`",
        ));
    }
    match active {
        Some(id) if !ours(id) => Some(Finding::warning(
            CHECK,
            format!("daemons seal with key `{id}`, and the key in hand is `{}`", vault.key_id()),
            "give all daemons that share a database the same key",
        )),
        _ => Some(Finding::ok(CHECK, "the key in hand opens what is stored")),
    }
}

fn living(daemons: &[Daemon]) -> Finding {
    const CHECK: &str = "daemons";
    let ours = env!("CARGO_PKG_VERSION");
    let names: Vec<_> = daemons.iter().map(|daemon| format!("{} {}", daemon.host, daemon.version)).collect();
    let names = names.join(", ");
    if daemons.is_empty() {
        return Finding::ill(
            CHECK,
            "no daemon lives: nothing is read or refreshed",
            "start one with `fieldmirror run`, or `systemctl start fieldmirror`",
        );
    }
    if daemons.iter().any(|daemon| daemon.version != ours) {
        return Finding::warning(
            CHECK,
            format!("not all have the same version: {names}, and this program is {ours}"),
            "install one version on all hosts and restart the daemons",
        );
    }
    Finding::ok(CHECK, names)
}

/// Alerts that are about the set-up rather than about an account.
fn alert(alert: &Alert) -> Option<Finding> {
    let of = &alert.of;
    match AlertKind::parse(&of.kind)? {
        AlertKind::ConfigurationFault => {
            let provider = of.provider.as_deref().unwrap_or("PROVIDER");
            let remedy = match &of.connection_name {
                None => format!(
                    "correct `providers.{provider}.client_id` and its secret, see that the app is registered there, and \
                     restart the daemon"
                ),
                Some(name) => {
                    format!("hand over the right credentials with `fieldmirror enqueue --reconnect {name} …`")
                }
            };
            Some(Finding::ill("client", message::summary(of), remedy))
        }
        AlertKind::JobParked => {
            let remedy = message::next_action(alert).unwrap_or_default();
            Some(Finding::ill("jobs", message::summary(of), format!("see the log, then `{remedy}`")))
        }
        AlertKind::SpillFault => Some(Finding::ill(
            "spills",
            message::summary(of),
            "make room in `spills` below `daemon.state_dir` and let the daemon's user write there; a key that is missing \
             belongs in `vault.previous_key_files`",
        )),
        _ => None,
    }
}

fn hook(trouble: &HookTrouble) -> Finding {
    let text = format!("{} alerts are untold: {}", trouble.waiting, trouble.last_error);
    Finding::ill(
        "alert_program",
        text,
        "mend the program in `alerts.exec`: it must end with 0; what waits is told then",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn servers_that_do_not_fit() {
        let well = ServerFacts {
            version: "15.1".into(),
            encoding: "UTF8".into(),
            sessions_max: 97,
            durable: true,
            clock: SystemClock.now(),
        };
        let check = |facts: ServerFacts, private, expected: &[(&str, Level)]| {
            let found = of_facts(&facts, private);
            let found: Vec<_> = found.iter().map(|finding| (finding.check, finding.level)).collect();
            assert_eq!(found, expected, "{facts:?}");
        };
        check(well.clone(), false, &[]);
        let latin = ServerFacts { encoding: "LATIN1".into(), ..well.clone() };
        check(latin, false, &[("database_encoding", Level::Ill)]);
        let careless = ServerFacts { durable: false, ..well.clone() };
        check(careless.clone(), false, &[("database_durability", Level::Warning)]);
        check(careless, true, &[]);
        let late = ServerFacts { clock: well.clock - TimeDelta::seconds(60), ..well };
        check(late, false, &[("database_clock", Level::Warning)]);
    }

    #[test]
    fn errors_have_their_remedies() {
        let check = |error: DbError, remedy: &str| {
            let found = of_error("database", &error);
            assert!(found.remedy.as_ref().is_some_and(|said| said.contains(remedy)), "{found:?}");
        };
        let server =
            |text: &str| DbError::Connect(format!("connection to server at \"h\", port 5432 failed: {text}"));
        check(server("FATAL: password authentication failed for user \"u\""), "correct user and password");
        check(server("fe_sendauth: no password supplied"), "add the password");
        check(server("FATAL: no pg_hba.conf entry for host \"10.0.0.1\""), "pg_hba.conf");
        check(server("FATAL: role \"u\" does not exist"), "createuser");
        check(server("FATAL: database \"d\" does not exist"), "createdb");
        check(server("FATAL: permission denied for database \"d\""), "the rights of the database's owner");
        check(server("FATAL: sorry, too many clients already"), "max_connections");
        check(server("Connection refused"), "see that Postgres runs");
        check(DbError::Connect("could not translate host name \"h\"".into()), "correct the host");
        check(
            DbError::Address("it must start with `postgresql://`"),
            "postgres://user:password@host/database",
        );
        check(DbError::ServerTooOld { found: "14.1".into(), needed: 15 }, "Postgres 15");
        check(DbError::SchemaNewer { version: "1".into() }, "newer fieldmirror");
        check(DbError::SchemaBehind { version: "1".into() }, "fieldmirror migrate");
    }

    #[test]
    fn versions() {
        let daemon = |version: &str| Daemon {
            id: uuid::Uuid::nil(),
            host: "h".into(),
            pid: 1,
            version: version.into(),
            last_seen_at: SystemClock.now(),
            seals_with: None,
            opens_with: Vec::new(),
            spill_keys: None,
        };
        let ours = env!("CARGO_PKG_VERSION");
        assert_eq!(living(&[]).level, Level::Ill);
        assert_eq!(living(&[daemon(ours)]).level, Level::Ok);
        assert_eq!(living(&[daemon(ours), daemon("0.0.0")]).level, Level::Warning);
    }
}
