//! Views: of one account, and of all tickets; and the casts that they are made of, which must never raise.

use diesel::PgConnection;
use diesel::connection::SimpleConnection as _;
use diesel::sql_types::Text;
use fieldmirror::db::{DbError, rows, views};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::step::Facts;
use fieldmirror::domain::view::{AccountView, ViewColumn, ViewType};
use fieldmirror::providers::provider;
use serde_json::{Value, json};

use crate::support::postgres::TestDb;

const OF: ConnectionId = ConnectionId(1);
const TYPES: [ViewType; 5] =
    [ViewType::Text, ViewType::Numeric, ViewType::Boolean, ViewType::Timestamptz, ViewType::Date];

/// A database with one connection, which has the number 1.
async fn with_connection() -> TestDb {
    let database = TestDb::new();
    execute(
        &database,
        "INSERT INTO fieldmirror.connections (name, provider, grant_kind, state, account_id)
         VALUES ('acme', 'hubspot', 'bearer_token', 'connected', '17')",
    )
    .await;
    database
}

async fn execute(database: &TestDb, sql: impl Into<String>) {
    let sql = sql.into();
    let done = database.db.run(move |connection| connection.batch_execute(&sql).map_err(DbError::from)).await;
    done.expect("the statement is right");
}

/// The texts in the column `value`, in UTC.
async fn texts(database: &TestDb, query: impl Into<String>) -> Vec<String> {
    let query = query.into();
    let found = database.db.run(move |connection| {
        connection.batch_execute("SET TIME ZONE 'UTC'")?;
        rows::values::<Text, String, _>(connection, diesel::sql_query(query))
    });
    found.await.expect("the query is right")
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Writes a ticket by its columns; `raw` and what must not be null are filled in.
async fn ticket(database: &TestDb, id: &str, raw: &Value, columns: &str, values: &str) {
    let sql = format!(
        "INSERT INTO mirror.hubspot_tickets
             (connection_id, id, raw, first_seen_at, synced_at, content_hash{columns})
         VALUES (1, {}, {}, now(), now(), ''{values})",
        literal(id),
        literal(&raw.to_string())
    );
    execute(database, sql).await;
}

/// Texts that are nearly something.
const GARBAGE: [&str; 52] = [
    "",
    " ",
    "null",
    "true",
    "TRUE",
    "false",
    "t",
    "1",
    "-1",
    "+1",
    "1.",
    ".5",
    ".",
    "-",
    "1e5",
    "1e999",
    "1e9999",
    "NaN",
    "Infinity",
    "-infinity",
    "0x1f",
    "1_000",
    "1,5",
    " 7 ",
    "12 apples",
    "٣",
    "５",
    "\u{2003}5",
    "5\u{a0}",
    "5\u{85}",
    "1\n",
    "2026-05-04",
    "2026-02-30",
    "2024-02-29",
    "2026-13-01",
    "2026-00-10",
    "0000-01-01",
    "2026-05-04T08:00:00Z",
    "2026-05-04T08:00:00.123456789Z",
    "2026-05-04T25:00:00Z",
    "2026-05-04T24:00:00Z",
    "2026-05-04T08:61:00Z",
    "2026-05-04T08:00:00+99:99",
    "2026-05-04T08:00:00+02:00",
    "2026-05-04T08:00:00",
    "2026-05-04T08:00Z",
    "1777881600000",
    "1777881600000.0",
    "-99999999999999",
    "999999999999999",
    "today",
    "epoch",
];

fn check_casts(connection: &mut PgConnection, function: &str, table: &[(&str, Option<&str>)]) {
    let query = format!("SELECT coalesce(mirror.{function}($1)::text, 'none') AS value");
    for (input, expected) in table {
        let query = diesel::sql_query(&query).bind::<Text, _>(*input);
        let got: String = rows::value::<Text, String, _>(connection, query)
            .unwrap_or_else(|error| panic!("{function}({input:?}) raises: {error:?}"));
        assert_eq!(got, expected.unwrap_or("none"), "{function}({input:?})");
    }
}

#[tokio::test]
async fn casts() {
    let database = TestDb::new();
    let checked = database.db.run(|connection| {
        connection.batch_execute("SET TIME ZONE 'UTC'")?;
        check_casts(
            connection,
            "as_numeric",
            &[
                ("1.10", Some("1.10")),
                (" -7 ", Some("-7")),
                ("+.5", Some("0.5")),
                ("1.", Some("1")),
                ("1e3", Some("1000")),
                ("9007199254740993", Some("9007199254740993")),
                ("NaN", None),
                ("Infinity", None),
                ("1e9999", None),
                ("12 apples", None),
                ("٣", None),
                ("\u{2003}5", None),
            ],
        );
        check_casts(
            connection,
            "as_boolean",
            &[("true", Some("true")), ("FALSE", Some("false")), ("t", None), ("1", None), ("", None)],
        );
        check_casts(
            connection,
            "as_timestamptz",
            &[
                ("2026-05-04T08:00:00Z", Some("2026-05-04 08:00:00+00")),
                ("2026-05-04T08:00:00.25+02:00", Some("2026-05-04 06:00:00.25+00")),
                ("2026-05-04T08:00:00-0330", Some("2026-05-04 11:30:00+00")),
                ("2026-05-04T08:00Z", Some("2026-05-04 08:00:00+00")),
                ("2026-05-04", Some("2026-05-04 00:00:00+00")),
                ("2024-02-29", Some("2024-02-29 00:00:00+00")),
                ("1777881600000", Some("2026-05-04 08:00:00+00")),
                ("1777881600000.0", Some("2026-05-04 08:00:00+00")),
                ("0", Some("1970-01-01 00:00:00+00")),
                ("2026-02-29", None),
                ("2026-04-31", None),
                ("2026-13-01", None),
                ("0000-01-01", None),
                ("2026-05-04T24:00:01Z", None),
                ("2026-05-04T08:00:00+99:99", None),
                ("2026-05-04T08:00:00", None),
                ("-99999999999999", None),
                ("999999999999999", None),
                ("٣", None),
                ("today", None),
                ("infinity", None),
            ],
        );
        check_casts(
            connection,
            "as_date",
            &[
                ("2026-05-04", Some("2026-05-04")),
                ("2026-05-04T23:30:00-02:00", Some("2026-05-05")),
                ("1777852800000", Some("2026-05-04")),
                ("2026-02-30", None),
                ("", None),
            ],
        );
        for function in ["as_numeric", "as_boolean", "as_timestamptz", "as_date"] {
            let query = format!("SELECT coalesce(mirror.{function}($1)::text, 'none') AS value");
            for input in GARBAGE {
                let query = diesel::sql_query(&query).bind::<Text, _>(input);
                let _any: String = rows::value::<Text, String, _>(connection, query)
                    .unwrap_or_else(|error| panic!("{function}({input:?}) raises: {error:?}"));
            }
        }
        Ok(())
    });
    checked.await.unwrap();
}

#[tokio::test]
async fn every_day_that_there_is_and_no_other() {
    let database = TestDb::new();
    let days = texts(
        &database,
        "SELECT count(mirror.as_date(format('%s-%s-%s', lpad(y::text, 4, '0'), lpad(m::text, 2, '0'),
                                            lpad(d::text, 2, '0'))))::text AS value
         FROM unnest(ARRAY[1, 4, 1900, 2000, 2023, 2024, 9999]) y, generate_series(0, 13) m, generate_series(0, 32) d",
    )
    .await;
    // Three of them are leap years.
    assert_eq!(days, [(7 * 365 + 3).to_string()]);
}

/// Analysts read large tables in parallel, where a cast may not catch errors: Postgres 15 and 16 refuse that.
#[tokio::test]
async fn casts_in_parallel_plans() {
    let database = with_connection().await;
    execute(
        &database,
        "INSERT INTO mirror.hubspot_tickets (connection_id, id, raw, first_seen_at, synced_at, content_hash)
         SELECT 1, n::text, jsonb_build_object('t', '2026-02-' || lpad((n % 32)::text, 2, '0')), now(), now(), ''
         FROM generate_series(1, 5000) n;
         ANALYZE mirror.hubspot_tickets",
    )
    .await;
    let query = "SELECT format('%s %s %s', count(mirror.as_timestamptz(raw ->> 't')),
                               count(mirror.as_date(raw ->> 't')), count(mirror.as_numeric(raw ->> 't'))) AS value
                 FROM mirror.hubspot_tickets";
    let read = database.db.run(move |connection| {
        connection.batch_execute(
            "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
             SET max_parallel_workers_per_gather = 2",
        )?;
        let plan = "CREATE FUNCTION pg_temp.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS
                    $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN ' || query; END $$";
        connection.batch_execute(plan)?;
        let plan =
            format!("SELECT string_agg(line, ' ') AS value FROM pg_temp.plan({}) line", literal(query));
        let plan: String = rows::value::<Text, String, _>(connection, diesel::sql_query(plan))?;
        let counts: String = rows::value::<Text, String, _>(connection, diesel::sql_query(query))?;
        Ok((plan, counts))
    });
    let (plan, counts) = read.await.expect("casts do not raise");
    assert!(plan.contains("Gather"), "not in parallel: {plan}");
    // 5,000 rows over days 0 to 31, of which February of 2026 has 1 to 28.
    assert_eq!(counts, "4376 4376 0");
}

fn column(name: &str, kind: ViewType) -> ViewColumn {
    ViewColumn {
        name: name.to_owned(),
        path: vec!["properties".to_owned(), name.to_owned()],
        kind,
        comment: format!("Ticket property {name}"),
    }
}

async fn create(database: &TestDb, columns: Vec<ViewColumn>) -> AccountView {
    let view = AccountView { table: "hubspot_tickets", columns };
    let made = view.clone();
    let created = database.db.run(move |connection| views::create(connection, OF, &made)).await;
    created.expect("the view is made");
    assert!(is_current(database, &view).await, "{view:?}");
    view
}

async fn is_current(database: &TestDb, view: &AccountView) -> bool {
    let view = view.clone();
    database.db.run(move |connection| views::is_current(connection, OF, &view)).await.unwrap()
}

/// Name and type of each column, in order.
async fn shape(database: &TestDb) -> Vec<String> {
    texts(
        database,
        "SELECT attname || ': ' || format_type(atttypid, NULL) AS value FROM pg_attribute
         WHERE attrelid = 'mirror.hubspot_tickets_c1'::regclass AND attnum > 0 ORDER BY attnum",
    )
    .await
}

#[tokio::test]
async fn odd_names_become_columns_of_their_own() {
    let database = with_connection().await;
    let long = "p".repeat(70);
    let longer = format!("{long}x");
    let odd = [
        "id",
        "deleted_at",
        "raw",
        "connection_id",
        "Upper",
        "upper",
        "quo\"te",
        "it's",
        r"back\slash",
        "ünïcode",
        "with space",
        "select",
        "ctid",
        "a.b",
        "$1",
        "%I",
        "--",
        "",
        &long,
        &longer,
    ];
    create(&database, odd.iter().map(|name| column(name, ViewType::Text)).collect()).await;
    let properties: Value =
        odd.iter().map(|name| ((*name).to_owned(), json!(format!("value of {name}")))).collect();
    ticket(&database, "1", &json!({"properties": properties}), "", "").await;

    let values = texts(
        &database,
        "SELECT value FROM mirror.hubspot_tickets_c1 v, jsonb_each_text(to_jsonb(v))
         WHERE value LIKE 'value of %' ORDER BY value",
    )
    .await;
    let mut expected: Vec<String> = odd.iter().map(|name| format!("value of {name}")).collect();
    expected.sort();
    let mut values = values;
    values.sort();
    assert_eq!(values, expected);

    let shape = shape(&database).await;
    for name in
        ["id_2: text", "deleted_at_2: text", "raw: text", "Upper: text", "upper: text", "quo\"te: text"]
    {
        assert!(shape.contains(&name.to_owned()), "{name} in {shape:?}");
    }
    let uncommented = texts(
        &database,
        "SELECT attname::text AS value FROM pg_attribute
         WHERE attrelid = 'mirror.hubspot_tickets_c1'::regclass AND attnum > 0
           AND col_description(attrelid, attnum) IS NULL",
    )
    .await;
    assert_eq!(uncommented, Vec::<String>::new(), "columns without a comment");
}

#[tokio::test]
async fn garbage_of_every_type_shows_as_null_and_never_raises() {
    let database = with_connection().await;
    let columns = TYPES.map(|kind| column(&format!("p_{}", kind.word()), kind));
    create(&database, columns.to_vec()).await;
    let others =
        [json!(null), json!(7), json!(1.5), json!(true), json!([1, "x"]), json!({"deep": {"er": null}})];
    let values: Vec<Value> = GARBAGE.iter().map(|text| json!(text)).chain(others).collect();
    for (number, value) in values.iter().enumerate() {
        let properties: Value =
            TYPES.iter().map(|kind| (format!("p_{}", kind.word()), value.clone())).collect();
        ticket(&database, &number.to_string(), &json!({"properties": properties}), "", "").await;
    }
    for (number, raw) in [json!(null), json!([]), json!({}), json!({"properties": "none"})].iter().enumerate()
    {
        ticket(&database, &format!("raw{number}"), raw, "", "").await;
    }
    let shown = texts(&database, "SELECT to_jsonb(v)::text AS value FROM mirror.hubspot_tickets_c1 v").await;
    assert_eq!(shown.len(), values.len() + 4);

    let empty = texts(
        &database,
        "SELECT id AS value FROM mirror.hubspot_tickets_c1
         WHERE id = '0' AND num_nonnulls(p_text, p_numeric, p_boolean, p_timestamptz, p_date) = 0",
    )
    .await;
    assert_eq!(empty, ["0"], "a value that was cleared is null");
}

#[tokio::test]
async fn made_anew_when_properties_and_types_change() {
    let database = with_connection().await;
    create(&database, vec![column("a", ViewType::Text), column("b", ViewType::Numeric)]).await;
    create(&database, vec![column("b", ViewType::Date), column("c", ViewType::Boolean)]).await;
    let view = create(&database, vec![column("c", ViewType::Text)]).await;
    assert_eq!(shape(&database).await.last().map(String::as_str), Some("c: text"));
    assert_eq!(shape(&database).await.len(), 6);

    // What an analyst built on it stays, and so does the view, until that is out of the way.
    execute(&database, "CREATE VIEW public.report AS SELECT c FROM mirror.hubspot_tickets_c1").await;
    let other = AccountView { columns: vec![column("d", ViewType::Numeric)], ..view.clone() };
    let wanted = other.clone();
    let made = database.db.run(move |connection| views::create(connection, OF, &other)).await;
    assert!(made.is_err(), "a view that others stand on was dropped");
    assert!(!is_current(&database, &wanted).await && is_current(&database, &view).await);
    assert_eq!(shape(&database).await.last().map(String::as_str), Some("c: text"));
    execute(&database, "DROP VIEW public.report").await;

    let none = create(&database, Vec::new()).await;
    assert_eq!(shape(&database).await.len(), 5);
    execute(&database, "DROP VIEW mirror.hubspot_tickets_c1").await;
    assert!(!is_current(&database, &none).await);
}

#[tokio::test]
async fn many_properties_fit() {
    const WORDS: [&str; 3] = ["string", "number", "datetime"];
    let database = with_connection().await;
    let properties: Vec<Value> = (0..2_000).map(|n| json!([format!("property_{n}"), WORDS[n % 3]])).collect();
    let facts = Facts::from([("ticket_properties".to_owned(), Value::Array(properties))]);
    let view = provider("hubspot").unwrap().account_view(&facts).expect("properties are known");
    create(&database, view.columns).await;
    ticket(&database, "1", &json!({"properties": {"property_0": "x", "property_1": "1.5"}}), "", "").await;
    let shown =
        texts(&database, "SELECT property_0 || property_1 AS value FROM mirror.hubspot_tickets_c1").await;
    assert_eq!(shown, ["x1.5"]);
}

const STAGES_AND_OWNERS: &str = "
    INSERT INTO mirror.hubspot_pipeline_stages
        (connection_id, id, pipeline_id, pipeline_label, stage_id, label, ticket_state, is_closed,
         raw, first_seen_at, synced_at, content_hash)
    SELECT 1, p || '/' || s, p, pl, s, l, state, closed, '{}', now(), now(), ''
    FROM (VALUES
        ('0', 'Support', '1', 'New', 'OPEN', false), ('0', 'Support', '4', 'Done', 'CLOSED', NULL),
        ('7', 'Emergency', '1', 'Rung', NULL, NULL), ('7', 'Emergency', '2', 'Left', NULL, true),
        ('7', 'Emergency', '3', 'Again', NULL, false)) AS stage (p, pl, s, l, state, closed);
    INSERT INTO mirror.hubspot_owners
        (connection_id, id, first_name, last_name, email, raw, first_seen_at, synced_at, content_hash)
    SELECT 1, id, f, l, e, '{}', now(), now(), ''
    FROM (VALUES ('71', 'Ina', 'Frey', 'i@firm.example'), ('72', '', 'Frey', NULL), ('73', NULL, NULL, 'q@firm.example'),
                 ('74', '', '', NULL)) AS owner (id, f, l, e)";

/// A ticket of the unified view: its columns, and what the view makes of them.
#[tokio::test]
async fn tickets_in_the_unified_view() {
    let database = with_connection().await;
    execute(&database, STAGES_AND_OWNERS).await;
    let closed = "closed_at = '2026-05-04 08:00Z'";
    for (id, set, expected) in [
        ("1", "pipeline_id = '0', stage_id = '1', owner_id = '71'", "open, New, Support, Ina Frey, -"),
        ("2", "pipeline_id = '0', stage_id = '4', owner_id = '72'", "closed, Done, Support, Frey, -"),
        // The same stage id in another pipeline is another stage.
        (
            "3",
            "pipeline_id = '7', stage_id = '1', owner_id = '73'",
            "open, Rung, Emergency, q@firm.example, -",
        ),
        ("4", "pipeline_id = '7', stage_id = '2', owner_id = '74'", "closed, Left, Emergency, -, -"),
        ("5", &format!("pipeline_id = '7', stage_id = '1', {closed}"), "closed, Rung, Emergency, -, -"),
        // Opened again: the stage's word counts more than a date that was left behind.
        ("6", &format!("pipeline_id = '7', stage_id = '3', {closed}"), "open, Again, Emergency, -, -"),
        ("7", &format!("pipeline_id = '0', stage_id = '1', {closed}"), "open, New, Support, -, -"),
        // Not known: ids stand for words.
        ("8", "pipeline_id = '99', stage_id = '98', owner_id = '97'", "open, 98, 99, -, -"),
        ("9", &format!("pipeline_id = '99', stage_id = '98', {closed}"), "closed, 98, 99, -, -"),
        ("10", "stage_id = '1'", "open, 1, -, -, -"),
        ("11", "company_ids = '{501,502}', contact_ids = '{601}'", "open, -, -, -, 501"),
        ("12", "company_ids = '{}', contact_ids = '{601}'", "open, -, -, -, 601"),
        ("13", "deleted_at = now()", "open, -, -, -, -"),
    ] {
        ticket(&database, id, &json!({}), "", "").await;
        execute(&database, format!("UPDATE mirror.hubspot_tickets SET {set} WHERE id = '{id}'")).await;
        let query = format!(
            "SELECT concat_ws(', ', status, coalesce(provider_status, '-'), coalesce(pipeline, '-'),
                              coalesce(owner_name, '-'), coalesce(customer_id, '-')) AS value
             FROM mirror.tickets WHERE id = '{id}' AND connection_name = 'acme' AND provider = 'hubspot'"
        );
        assert_eq!(texts(&database, query).await, [expected], "ticket {id}: {set}");
    }
}
