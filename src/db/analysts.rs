//! Roles that may read schema `mirror`, and nothing else of ours: rights are given for what is there, and for what will
//! be made there later.
//!
//! Postgres gives rights to what comes later by who makes it, so default privileges are set for every role that owns
//! something in `mirror`, and for the one that this session comes as, since a daemon makes views of accounts. What the
//! role then holds is read back from the server: a right that comes to it another way, such as by a role that it belongs
//! to, takes everything back.

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};

use super::admin::quoted;
use super::error::DbError;
use super::{audit, migrations, rows};
use crate::domain::secret::Secret;

/// Held, shared, by whoever makes a view while the daemon runs, and alone by whoever gives rights: a view whose
/// transaction is open has neither been there nor come later. `fmgrants` in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"fmgrants");
/// Rights, and roles, that a refusal names.
const NAMED_MAX: i64 = 5;

/// What a role was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Tables and views that it may read now.
    pub relations: i64,
    /// False for a role that stands for a group.
    pub can_login: bool,
    /// The roles whose later tables and views it may read.
    pub makers: Vec<String>,
}

/// Why a role was given nothing.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    #[error(transparent)]
    Database(#[from] DbError),
    #[error("there is no role `{role}` on this server")]
    Unknown { role: String, others: Vec<String> },
    #[error("role `{role}` {might}: it would not be held to reading `mirror`")]
    TooMighty { role: String, might: String },
    #[error("role `{role}` makes or owns what is in `mirror`: it is no reader")]
    Maker { role: String },
    #[error(
        "role `{us}`, which `database.url` comes as, may not give rights for `{owner}`, which owns some of `mirror`"
    )]
    NotOurs { us: String, owner: String },
    /// `through`: the roles that it belongs to.
    #[error("role `{role}` would have more than read access to `mirror`: {}", rights.join(", "))]
    More { role: String, rights: Vec<String>, through: Vec<String> },
    #[error("role `{role}` would not be able to read all of `mirror`: {} refused", relations.join(", "))]
    Less { role: String, relations: Vec<String> },
    #[error("role `{role}` may not connect to database `{database}`, and `{us}` cannot let it")]
    NoConnection { role: String, database: String, us: String },
}

impl From<diesel::result::Error> for GrantError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Gives `role` read access to `mirror` and takes everything else of ours from it, all or nothing. Waits for migrations that
/// run. Safe to repeat.
pub async fn grant(url: &Secret, role: &str) -> Result<Granted, GrantError> {
    let (url, role) = (url.clone(), role.to_owned());
    let granting =
        move || migrations::locked(&url, |conn| Ok(conn.transaction(|conn| grant_in(conn, &role))));
    migrations::blocking(granting).await?
}

/// What keeps those who give rights away until the transaction ends.
pub(super) fn held_off() -> String {
    format!("SELECT pg_advisory_xact_lock_shared({LOCK});")
}

fn grant_in(conn: &mut PgConnection, role: &str) -> Result<Granted, GrantError> {
    conn.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})"))?;
    let facts = facts(conn, role)?;
    let makers = makers(conn)?;
    refuse(conn, &facts, &makers)?;
    let makers: Vec<String> = makers.into_iter().map(|maker| maker.name).collect();
    conn.batch_execute(&statements(role, &makers))?;
    let_in(conn, role)?;
    let relations = prove(conn, role)?;
    let detail = format!("role {role} may read schema mirror");
    audit::write_of_command(conn, "grant_analyst", &detail)?;
    Ok(Granted { relations, can_login: facts.can_login, makers })
}

#[derive(QueryableByName)]
struct Facts {
    #[diesel(sql_type = Text)]
    name: String,
    /// What rights cannot bound.
    #[diesel(sql_type = Nullable<Text>)]
    might: Option<String>,
    #[diesel(sql_type = Bool)]
    can_login: bool,
}

fn facts(conn: &mut PgConnection, role: &str) -> Result<Facts, GrantError> {
    let query = diesel::sql_query(
        "SELECT rolname::text AS name, rolcanlogin AS can_login,
                CASE WHEN rolname ~ '^pg_' THEN 'is one of Postgres'' own'
                     WHEN rolsuper THEN 'is a superuser'
                     WHEN rolreplication THEN 'may replicate the whole server'
                     WHEN rolcreaterole THEN 'may make roles'
                     WHEN oid = (SELECT datdba FROM pg_database WHERE datname = current_database())
                         THEN 'owns the database' END AS might
         FROM pg_roles WHERE rolname = $1",
    );
    if let Some(facts) = query.bind::<Text, _>(role).get_result(conn).optional()? {
        return Ok(facts);
    }
    Err(GrantError::Unknown { role: role.to_owned(), others: roles(conn)? })
}

/// The server's roles, but for superusers and its own.
pub fn roles(conn: &mut PgConnection) -> Result<Vec<String>, DbError> {
    let query = diesel::sql_query(
        "SELECT rolname::text AS value FROM pg_roles WHERE NOT rolsuper AND rolname !~ '^pg_' ORDER BY rolname",
    );
    rows::values::<Text, String, _>(conn, query)
}

/// A role that owns something in `mirror`, or will.
#[derive(QueryableByName)]
struct Maker {
    #[diesel(sql_type = Text)]
    name: String,
    /// Whether this session may do what that role may.
    #[diesel(sql_type = Bool)]
    is_ours: bool,
}

fn makers(conn: &mut PgConnection) -> Result<Vec<Maker>, DbError> {
    Ok(diesel::sql_query(
        "SELECT rolname::text AS name, pg_has_role(oid, 'USAGE') AS is_ours FROM pg_roles
         WHERE rolname = current_user
            OR oid IN (SELECT nspowner FROM pg_namespace WHERE nspname = 'mirror')
            OR oid IN (SELECT relowner FROM pg_class
                       WHERE relnamespace = 'mirror'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f'))
         ORDER BY rolname",
    )
    .load(conn)?)
}

/// Roles that rights cannot bound, and makers that we cannot speak for.
fn refuse(conn: &mut PgConnection, facts: &Facts, makers: &[Maker]) -> Result<(), GrantError> {
    let role = facts.name.clone();
    if makers.iter().any(|maker| maker.name == role) {
        return Err(GrantError::Maker { role });
    }
    if let Some(might) = facts.might.clone() {
        return Err(GrantError::TooMighty { role, might });
    }
    if let Some(maker) = makers.iter().find(|maker| !maker.is_ours) {
        return Err(GrantError::NotOurs { us: us(conn)?, owner: maker.name.clone() });
    }
    Ok(())
}

/// Everything of ours is taken away first, so that what is left is what is given here.
fn statements(role: &str, makers: &[String]) -> String {
    let role = quoted(role);
    let now = format!(
        "REVOKE ALL ON ALL TABLES IN SCHEMA fieldmirror, mirror FROM {role};
         REVOKE ALL ON ALL SEQUENCES IN SCHEMA fieldmirror, mirror FROM {role};
         REVOKE ALL ON SCHEMA fieldmirror, mirror FROM {role};
         GRANT USAGE ON SCHEMA mirror TO {role};
         GRANT SELECT ON ALL TABLES IN SCHEMA mirror TO {role};"
    );
    let later = makers.iter().map(|maker| {
        let later = format!("ALTER DEFAULT PRIVILEGES FOR ROLE {}", quoted(maker));
        format!(
            "{later} REVOKE ALL ON TABLES FROM {role};
             {later} IN SCHEMA fieldmirror REVOKE ALL ON TABLES FROM {role};
             {later} IN SCHEMA mirror REVOKE ALL ON TABLES FROM {role};
             {later} IN SCHEMA mirror GRANT SELECT ON TABLES TO {role};"
        )
    });
    std::iter::once(now).chain(later).collect()
}

/// Everybody may connect to a database, unless somebody has closed it.
fn let_in(conn: &mut PgConnection, role: &str) -> Result<(), GrantError> {
    let may = "SELECT has_database_privilege($1, current_database(), 'CONNECT') AS value";
    let may = |conn: &mut PgConnection| {
        rows::value::<Bool, bool, _>(conn, diesel::sql_query(may).bind::<Text, _>(role))
    };
    if may(conn)? {
        return Ok(());
    }
    let database =
        rows::value::<Text, String, _>(conn, diesel::sql_query("SELECT current_database()::text AS value"))?;
    let grant = format!("GRANT CONNECT ON DATABASE {} TO {}", quoted(&database), quoted(role));
    // In a transaction of its own within ours: a refusal leaves ours usable, to say so.
    let given = conn.transaction(|conn| conn.batch_execute(&grant));
    if given.is_ok() && may(conn)? {
        return Ok(());
    }
    Err(GrantError::NoConnection { role: role.to_owned(), database, us: us(conn)? })
}

/// What the server says that the role may do now, whichever way it came to that: everything in `mirror` can be read,
/// nothing else can be done. Returns how many relations can be read.
fn prove(conn: &mut PgConnection, role: &str) -> Result<i64, GrantError> {
    let some = |conn: &mut PgConnection, query: &str| {
        let query = diesel::sql_query(format!("SELECT what AS value FROM ({query}) q LIMIT $2"));
        let query = query.bind::<Text, _>(role).bind::<BigInt, _>(NAMED_MAX);
        rows::values::<Text, String, _>(conn, query)
    };
    let rights = some(conn, RIGHTS_TOO_MANY)?;
    if !rights.is_empty() {
        let through = some(
            conn,
            "SELECT rolname::text AS what FROM pg_roles
             WHERE pg_has_role($1, oid, 'MEMBER') AND rolname <> $1 ORDER BY rolname",
        )?;
        return Err(GrantError::More { role: role.to_owned(), rights, through });
    }
    let relations = some(
        conn,
        "SELECT format('mirror.%I', relname) AS what FROM pg_class
         WHERE relnamespace = 'mirror'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
           AND NOT has_table_privilege($1, oid, 'SELECT') ORDER BY relname",
    )?;
    if !relations.is_empty() {
        return Err(GrantError::Less { role: role.to_owned(), relations });
    }
    let count = "SELECT count(*) AS value FROM pg_class
         WHERE relnamespace = 'mirror'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')";
    Ok(rows::value::<BigInt, i64, _>(conn, diesel::sql_query(count))?)
}

/// Of the role, and of every role that it may turn into with `SET ROLE`, whether it inherits its rights or not.
const RIGHTS_TOO_MANY: &str = "
    WITH held AS (SELECT oid FROM pg_roles WHERE pg_has_role($1, oid, 'MEMBER'))
    SELECT DISTINCT format('%s on schema %I', may, nspname) AS what
    FROM held, pg_namespace schema, unnest(ARRAY['CREATE', 'USAGE']) AS may
    WHERE nspname IN ('fieldmirror', 'mirror') AND (nspname, may) <> ('mirror', 'USAGE')
      AND has_schema_privilege(held.oid, schema.oid, may)
    UNION ALL
    SELECT DISTINCT format('%s on %s.%I', may, relnamespace::regnamespace, relname)
    FROM held, pg_class relation,
         unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS may
    WHERE relnamespace IN ('fieldmirror'::regnamespace, 'mirror'::regnamespace)
      AND relkind IN ('r', 'p', 'v', 'm', 'f')
      AND (relnamespace = 'fieldmirror'::regnamespace OR may <> 'SELECT')
      AND (has_table_privilege(held.oid, relation.oid, may)
           OR may IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
              AND has_any_column_privilege(held.oid, relation.oid, may))";

fn us(conn: &mut PgConnection) -> Result<String, DbError> {
    rows::value::<Text, String, _>(conn, diesel::sql_query("SELECT current_user::text AS value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_wherever_they_stand() {
        let statements = statements("O\"Brien; x", &["own\"er".to_owned()]);
        assert_eq!(statements.matches("\"O\"\"Brien; x\"").count(), 9, "{statements}");
        assert_eq!(statements.matches("FOR ROLE \"own\"\"er\"").count(), 4, "{statements}");
        assert!(!statements.replace("\"O\"\"Brien; x\"", "").contains("Brien"), "{statements}");
    }
}
