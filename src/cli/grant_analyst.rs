//! `fieldmirror grant-analyst`: lets a role of the database read schema `mirror`, and nothing else of ours.

use clap::Args;
use serde_json::json;

use super::context::{Context, alike};
use super::report::{Error, Exit, Kind};
use crate::db::admin::quoted as sql;
use crate::db::analysts::{self, GrantError, Granted};

/// Bytes of a name in Postgres, which cuts off what is longer.
const NAME_MAX: usize = 63;

#[derive(Debug, Args)]
pub struct GrantAnalystArgs {
    /// A role of the database server, made with `CREATE ROLE analyst LOGIN`; letter by letter, without quotes
    #[arg(value_name = "ROLE", value_parser = role)]
    role: String,
}

/// A name that a role can have.
fn role(text: &str) -> Result<String, String> {
    match text {
        "" => Err("expected the name of a role, such as `analyst`".to_owned()),
        "public" => Err("`public` means everybody: name one role, such as `analyst`".to_owned()),
        name if name.len() > NAME_MAX => Err(format!("no role has a name of more than {NAME_MAX} bytes")),
        name => Ok(name.to_owned()),
    }
}

pub async fn run(cx: &Context, args: GrantAnalystArgs) -> Result<Exit, Error> {
    let GrantAnalystArgs { role } = args;
    cx.db().await?;
    let spinner = cx.terminal.spinner("granting");
    let granted = analysts::grant(&cx.database_url(), &role).await;
    spinner.finish_and_clear();
    let granted = granted.map_err(|error| refused(cx, error))?;
    if !granted.can_login {
        cx.terminal.note(&format!("role `{role}` cannot log in; those that belong to it may read now"));
    }
    cx.terminal.result(
        || {
            json!({
                "role": role, "schema": "mirror", "relations": granted.relations,
                "can_login": granted.can_login, "later_of": granted.makers,
            })
        },
        || text(&role, &granted),
    )?;
    Ok(Exit::Done)
}

fn text(role: &str, granted: &Granted) -> String {
    let makers: Vec<_> = granted.makers.iter().map(|maker| format!("`{maker}`")).collect();
    format!(
        "`{role}` may read the {} tables and views of schema mirror, and those that {} will make there",
        granted.relations,
        makers.join(" or ")
    )
}

/// Why nothing was given, with what to do about it.
fn refused(cx: &Context, error: GrantError) -> Error {
    let message = error.to_string();
    let (kind, hint) = match error {
        GrantError::Database(error) => return cx.database_error(error),
        GrantError::Unknown { role, others } => {
            let make = format!("make it with `CREATE ROLE {} LOGIN`", sql(&role));
            (
                Kind::UnknownName,
                match alike(&role, others.iter().map(String::as_str)) {
                    Some(name) => format!("did you mean `{name}`? Otherwise {make}"),
                    None => make,
                },
            )
        }
        GrantError::TooMighty { .. } | GrantError::Maker { .. } => {
            let hint = "name a role that only reads; `CREATE ROLE analyst LOGIN` makes one";
            (Kind::BadRequest, hint.to_owned())
        }
        GrantError::NotOurs { owner, .. } => {
            (Kind::Configuration, format!("run it with a `database.url` that comes as `{owner}`"))
        }
        GrantError::More { role, through, .. } if !through.is_empty() => {
            let through: Vec<_> = through.iter().map(|name| sql(name)).collect();
            let hint = format!(
                "take it out of the roles that it belongs to: `REVOKE {} FROM {}`",
                through.join(", "),
                sql(&role)
            );
            (Kind::BadRequest, hint)
        }
        GrantError::More { .. } => {
            let hint = "everybody has them, or another than the owner gave them: take them back with `REVOKE … FROM PUBLIC`, or \
                        as the one who gave them";
            (Kind::BadRequest, hint.to_owned())
        }
        GrantError::Less { .. } => {
            (Kind::Configuration, "run it with a `database.url` that comes as their owner".to_owned())
        }
        GrantError::NoConnection { role, database, .. } => {
            let hint = format!(
                "as the database's owner: `GRANT CONNECT ON DATABASE {} TO {}`",
                sql(&database),
                sql(&role)
            );
            (Kind::Configuration, hint)
        }
    };
    Error::new(kind, message).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_role_can_have() {
        let check = |text: &str, expected: Result<&str, &str>| match (role(text), expected) {
            (Ok(name), Ok(expected)) => assert_eq!(name, expected),
            (Err(said), Err(expected)) => assert!(said.contains(expected), "{said}"),
            (found, _) => panic!("{text}: {found:?}"),
        };
        check("analyst", Ok("analyst"));
        check("Anna Liese \"x\"", Ok("Anna Liese \"x\""));
        check("", Err("expected the name"));
        check("public", Err("means everybody"));
        check(&"é".repeat(31), Ok(&"é".repeat(31)));
        check(&"é".repeat(32), Err("63 bytes"));
    }
}
