//! Lists of every kind against small servers made of rules: what a walk brings, and how it ends.

mod tied;

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::domain::spec::{BodyStyle, BucketSpec, StreamSpec};
use crate::domain::step::{Facts, Params, Walk};

static SPEC: ProviderSpec = ProviderSpec {
    name: "acme",
    title: "Acme",
    grants: &[],
    authorize_url: "",
    token_url: "",
    revoke_url: "",
    introspect_path: "",
    api_base: "",
    api_version: "",
    scopes: &[],
    pkce: false,
    denies_in_silence: false,
    token_body: BodyStyle::Form,
    reads_jwt: false,
    token_life_default: std::time::Duration::ZERO,
    buckets: &[],
    token_bucket: BucketSpec::requests("token", 1, std::time::Duration::from_secs(1)),
    in_flight_max: 1,
    page_size: 2,
    streams: &[],
};

const fn stream(paging: Paging, changes: Changes) -> StreamSpec {
    StreamSpec {
        name: "visits",
        table: "acme_visits",
        modes: &[],
        needs_facts: &[],
        id: "/id",
        created_at: "",
        updated_at: "/at",
        columns: &[],
        merges: false,
        keep_only: &[],
        omit: &[],
        read: Read::List(ListSpec {
            path: "/firm/{firm}/visits",
            records: "/data",
            query: &[("expand", "all")],
            paging,
            size: "limit",
            changes,
            buckets: &["b"],
        }),
    }
}

const NUMBERED: Paging = Paging::Numbered { param: "page", more: "/pages", total: "/total" };
const NEWEST: Changes =
    Changes::NewestFirst { newest: &[("sort", "-at")], full: &[("sort", "id")], full_is_unique: false };

static PAGES: StreamSpec = stream(NUMBERED, NEWEST);
static BORN: StreamSpec = StreamSpec { created_at: "/at", ..stream(NUMBERED, NEWEST) };
static IDS: StreamSpec = stream(
    Paging::LastId { param: "after", more: "/has_more" },
    Changes::Window { from: "at.gt", to: Some("at.lt") },
);
static CURSORS: StreamSpec = stream(Paging::Cursor { param: "cursor", next: "/next" }, Changes::None);
static SINGLE: StreamSpec = stream(Paging::Single, Changes::None);

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(second, 0).unwrap()
}

fn walk(mode: Mode, from: Option<i64>) -> Walk {
    Walk { mode, started_at: at(1_000), from: from.map(at), facts_as_of: None }
}

/// Lines of requests, ids of records, and how it ended.
struct Went {
    lines: Vec<String>,
    ids: Vec<String>,
    end: Result<(), Failure>,
}

/// Walks with `answers` in their order; the walk is taken up anew from its saved position after every page.
fn go(stream: &'static StreamSpec, walk: &Walk, answers: Vec<Value>) -> Went {
    go_from(Position::start(), stream, walk, answers)
}

fn go_from(start: Position, stream: &'static StreamSpec, walk: &Walk, answers: Vec<Value>) -> Went {
    let params = Params::from([("firm".to_owned(), "f7".to_owned())]);
    let cx = StepContext { page_size: 2, params: &params, ..StepContext::bare(stream, walk) };
    let mut answers = answers.into_iter();
    let mut went = Went { lines: Vec::new(), ids: Vec::new(), end: Ok(()) };
    let (mut here, mut replies) = (start, Vec::new());
    loop {
        match step(&SPEC, &cx, &here, std::mem::take(&mut replies)) {
            Ok(Step::Send { requests, at }) => {
                let query: Vec<String> =
                    requests[0].query.iter().map(|(name, value)| format!("{name}={value}")).collect();
                went.lines.push(format!("{}?{}", requests[0].path, query.join("&")));
                let body = answers.next().expect("an answer for each request");
                let headers = BTreeMap::new();
                replies = vec![Reply { status: 200, headers, body: Body::Json(body), sent_at: at_now() }];
                here = at;
            }
            Ok(Step::Emit { page, at }) => {
                went.ids.extend(page.records.into_iter().map(|record| record.id));
                here = serde_json::from_str(&serde_json::to_string(&at).unwrap()).unwrap();
            }
            Ok(Step::Done) => break,
            Ok(Step::Partial { why }) => {
                went.end = Err(Failure::transient(why));
                break;
            }
            Err(failure) => {
                went.end = Err(failure);
                break;
            }
        }
    }
    assert!(went.end.is_err() || answers.next().is_none(), "answers that nobody asked for");
    went
}

#[test]
fn pages_that_take_too_long_are_halved_and_grow_again() {
    let params = Params::from([("firm".to_owned(), "f7".to_owned())]);
    let walk = walk(Mode::Backfill, None);
    let context =
        |facts| StepContext { page_size: 200, facts, params: &params, ..StepContext::bare(&PAGES, &walk) };
    let nothing = Facts::new();
    let cx = context(&nothing);
    let mut kept = Vec::new();
    // Which replies are slow, and what is then asked for: the page and its size.
    let slow = [1, 2, 3];
    let (mut here, mut replies, mut asked, mut met) = (Position::start(), Vec::new(), Vec::new(), Vec::new());
    loop {
        match step(&SPEC, &cx, &here, std::mem::take(&mut replies)).unwrap() {
            Step::Send { requests, at } => {
                let number = |name: &str| {
                    let found = requests[0].query.iter().find(|(known, _)| *known == name);
                    found.and_then(|(_, text)| text.parse::<usize>().ok()).unwrap()
                };
                let (page, size) = (number("page"), number("limit"));
                let status = if slow.contains(&asked.len()) { 408 } else { 200 };
                asked.push((page, size));
                let rows: Vec<Value> =
                    (0..1_000).skip((page - 1) * size).take(size).map(|id| json!({"id": id})).collect();
                let body =
                    json!({"page": page, "pages": 1_000_usize.div_ceil(size), "total": 1_000, "data": rows});
                replies = vec![Reply {
                    status,
                    headers: BTreeMap::new(),
                    body: Body::Json(body),
                    sent_at: at_now(),
                }];
                here = at;
            }
            Step::Emit { page, at } => {
                met.extend(page.records.into_iter().map(|record| record.id));
                kept.extend(page.facts.get("page_size/visits").cloned());
                here = serde_json::from_str(&serde_json::to_string(&at).unwrap()).unwrap();
            }
            Step::Done => break,
            Step::Partial { why } => panic!("{why}"),
        }
    }
    // Whoever begins afresh meanwhile begins with that.
    assert_eq!(kept, [json!(100), json!(50), json!(25), json!(50), json!(100), Value::Null]);
    let starts = [(json!(50), "50"), (json!(200), "200"), (json!(0), "200"), (Value::Null, "200")];
    let starts = starts.map(|(kept, size)| (Facts::from([("page_size/visits".to_owned(), kept)]), size));
    for (facts, size) in &starts {
        let first = step(&SPEC, &context(facts), &Position::start(), Vec::new());
        let Ok(Step::Send { requests, .. }) = first else { panic!("{first:?}") };
        assert!(requests[0].query.contains(&("limit", (*size).to_owned())), "{facts:?}: {requests:?}");
    }
    let sizes: Vec<usize> = asked.iter().map(|(_, size)| *size).collect();
    assert_eq!(sizes, [200, 200, 100, 50, 25, 25, 25, 25, 50, 50, 50, 50, 100, 100, 100, 100, 200]);
    assert_eq!(asked[4], (9, 25), "what was read stays read");
    let distinct: std::collections::BTreeSet<&String> = met.iter().collect();
    assert_eq!(distinct.len(), 1_000, "nothing is left out");
    assert!(met.len() < 1_200, "and little comes twice: {}", met.len());
    let shrinks = |size: &str| {
        let mut request = Request::get("/".to_owned(), "visits", &[]);
        request.query.push(("limit", size.to_owned()));
        may_shrink(&request, "limit")
    };
    assert!(shrinks("50") && !shrinks("49") && !shrinks("x"));
}

fn at_now() -> DateTime<Utc> {
    at(1_001)
}

/// A page of records: id and second of modification.
fn page(records: &[(&str, i64)], rest: Value) -> Value {
    let data: Vec<Value> = records.iter().map(|(id, second)| json!({"id": id, "at": at(*second)})).collect();
    let mut page = json!({"data": data});
    page.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    page
}

#[test]
fn numbered_pages_are_read_to_their_end() {
    let went = go(
        &PAGES,
        &walk(Mode::Backfill, None),
        vec![
            page(&[("a", 1), ("b", 2)], json!({"pages": 2, "total": 3})),
            page(&[("c", 3)], json!({"pages": 2, "total": 3})),
        ],
    );
    assert!(went.end.is_ok());
    assert_eq!(went.ids, ["a", "b", "c"]);
    assert_eq!(
        went.lines,
        [
            "/firm/f7/visits?expand=all&limit=2&sort=id&page=1",
            "/firm/f7/visits?expand=all&limit=2&sort=id&page=2",
        ]
    );
}

#[test]
fn a_page_that_was_not_asked_for_is_not_taken_for_another() {
    let went = go(
        &PAGES,
        &walk(Mode::Backfill, None),
        vec![
            page(&[("a", 1), ("b", 2)], json!({"pages": 3, "page": 1})),
            page(&[("c", 3), ("d", 4)], json!({"pages": 3, "page": 2})),
            page(&[("a", 1), ("b", 2)], json!({"pages": 3, "page": 1})),
        ],
    );
    let failure = went.end.unwrap_err();
    assert!(failure.message.contains("answers page 1 when asked for page 3"), "{failure}");
}

#[test]
fn a_list_that_has_become_shorter_has_moved_up() {
    // `a` is deleted after page 1: `c` moves there, unseen, and page 2 begins with `d`.
    let went = go(
        &PAGES,
        &walk(Mode::Backfill, None),
        vec![
            page(&[("a", 1), ("b", 2)], json!({"pages": 2, "total": 4})),
            page(&[("d", 4)], json!({"pages": 2, "total": 3})),
            page(&[("b", 2), ("c", 3)], json!({"pages": 2, "total": 3})),
            page(&[("d", 4)], json!({"pages": 2, "total": 3})),
        ],
    );
    assert!(went.end.is_ok());
    assert_eq!(went.ids, ["a", "b", "d", "b", "c", "d"]);
}

/// A pass over `a` to `e`, in which `a` is deleted after page 1 and `new` is created: `c` moves to page 1, and the count
/// stays as it is.
fn a_pass_that_misses(new: &str) -> Vec<Value> {
    vec![
        page(&[("a", 1), ("b", 2)], json!({"pages": 3, "total": 5})),
        page(&[("d", 4), ("e", 5)], json!({"pages": 3, "total": 5})),
        page(&[(new, 1_000)], json!({"pages": 3, "total": 5})),
    ]
}

#[test]
fn a_list_that_has_moved_unseen_is_read_again() {
    let calm = [
        page(&[("b", 2), ("c", 3)], json!({"pages": 3, "total": 5})),
        page(&[("d", 4), ("e", 5)], json!({"pages": 3, "total": 5})),
        page(&[("f", 800)], json!({"pages": 3, "total": 5})),
    ];
    for mode in [Mode::Backfill, Mode::Sweep] {
        let answers = a_pass_that_misses("f").into_iter().chain(calm.clone()).collect();
        let went = go(&BORN, &walk(mode, None), answers);
        assert!(went.end.is_ok());
        assert_eq!(went.ids.join(""), "abdefbcdef");
    }
    let restless = ["f", "g", "h"].into_iter().flat_map(a_pass_that_misses).collect();
    let went = go(&BORN, &walk(Mode::Backfill, None), restless);
    let said = "Acme's `visits` moved under each of 3 reads: it counts 5 records where 6 should be left, so some may have been \
                passed over";
    assert_eq!(went.end.unwrap_err().message, said);
    // What has come back has been passed over by no one.
    let back = || {
        let first = page(&[("b", 2), ("c", 3)], json!({"pages": 2, "total": 3}));
        [first, page(&[("d", 4), ("e", 5)], json!({"pages": 2, "total": 4}))]
    };
    let went = go(&BORN, &walk(Mode::Backfill, None), back().to_vec());
    assert!(went.end.is_ok());
}

#[test]
fn a_list_that_only_grows_or_gets_visibly_shorter_is_read_once() {
    let went = go(
        &BORN,
        &walk(Mode::Backfill, None),
        vec![
            page(&[("a", 1), ("b", 2)], json!({"pages": 2, "total": 3})),
            page(&[("c", 3), ("d", 1_000)], json!({"pages": 2, "total": 4})),
        ],
    );
    assert_eq!(went.ids.join(""), "abcd");
    let went = go(
        &BORN,
        &walk(Mode::Backfill, None),
        vec![
            page(&[("a", 1), ("b", 2)], json!({"pages": 3, "total": 6})),
            page(&[("c", 3), ("d", 4)], json!({"pages": 3, "total": 6})),
            page(&[("f", 6)], json!({"pages": 3, "total": 5})),
            page(&[("d", 4), ("e", 5)], json!({"pages": 3, "total": 5})),
            page(&[("f", 6)], json!({"pages": 3, "total": 5})),
        ],
    );
    assert_eq!(went.ids.join(""), "abcdfdef");
}

#[test]
fn a_first_page_has_nothing_before_it() {
    // Stepped back to page 1, and another record of a later page is deleted meanwhile.
    let went = go(
        &PAGES,
        &walk(Mode::Backfill, None),
        vec![
            page(&[("a", 1), ("b", 2)], json!({"pages": 3, "total": 6})),
            page(&[("d", 4), ("e", 5)], json!({"pages": 3, "total": 5})),
            page(&[("b", 2), ("c", 3)], json!({"pages": 2, "total": 4})),
            page(&[("d", 4), ("f", 6)], json!({"pages": 2, "total": 4})),
        ],
    );
    assert!(went.end.is_ok());
    assert_eq!(went.ids.join(""), "abdebcdf");
}

#[test]
fn a_walk_keeps_the_page_size_that_it_began_with() {
    let began = Position::of(&json!({"page": 3, "size": 5}));
    let last = vec![page(&[("k", 1)], json!({"pages": 3}))];
    let went = go_from(began, &PAGES, &walk(Mode::Backfill, None), last);
    assert_eq!(went.lines, ["/firm/f7/visits?expand=all&limit=5&sort=id&page=3"]);
}

#[test]
fn records_without_a_time_say_nothing_about_the_order() {
    let undated = |rest: Value| {
        let mut page = page(&[("n", 0), ("a", 900)], rest);
        page["data"][0]["at"] = Value::Null;
        page
    };
    let went = go(
        &PAGES,
        &walk(Mode::Incremental, Some(500)),
        vec![undated(json!({"pages": 9})), page(&[("b", 400), ("c", 300)], json!({"pages": 9}))],
    );
    assert!(went.end.is_ok());
    assert_eq!(went.ids, ["n", "a", "b", "c"]);
}

#[test]
fn newest_first_stops_at_the_first_page_that_lies_whole_below() {
    let went = go(
        &PAGES,
        &walk(Mode::Incremental, Some(500)),
        vec![
            page(&[("a", 900), ("b", 500)], json!({"pages": 9})),
            page(&[("c", 500), ("d", 499)], json!({"pages": 9})),
            page(&[("e", 498), ("f", 497)], json!({"pages": 9})),
        ],
    );
    assert!(went.end.is_ok());
    assert_eq!(went.ids, ["a", "b", "c", "d", "e", "f"]);
    assert!(went.lines[0].contains("sort=-at"), "{:?}", went.lines);
}

#[test]
fn an_inversion_is_read_to_the_end() {
    let went = go(
        &PAGES,
        &walk(Mode::Incremental, Some(500)),
        vec![
            page(&[("a", 400), ("b", 450)], json!({"pages": 3})),
            page(&[("c", 300), ("d", 200)], json!({"pages": 3})),
            page(&[("e", 600)], json!({"pages": 3})),
        ],
    );
    assert!(went.end.is_ok());
    assert_eq!(went.ids, ["a", "b", "c", "d", "e"]);
}

#[test]
fn records_that_were_pushed_to_the_next_page_are_no_inversion() {
    let went = go(
        &PAGES,
        &walk(Mode::Incremental, Some(500)),
        vec![
            page(&[("a", 900), ("b", 800)], json!({"pages": 9})),
            page(&[("b", 800), ("c", 700)], json!({"pages": 9})),
            page(&[("d", 400), ("e", 300)], json!({"pages": 9})),
        ],
    );
    assert!(went.end.is_ok());
    assert_eq!(went.ids, ["a", "b", "b", "c", "d", "e"]);
}

#[test]
fn windows_are_closed_and_ids_are_passed_on() {
    let went = go(
        &IDS,
        &walk(Mode::Incremental, Some(500)),
        vec![
            page(&[("z", 900), ("y", 800)], json!({"has_more": true})),
            page(&[("x", 700)], json!({"has_more": false})),
        ],
    );
    assert!(went.end.is_ok());
    assert_eq!(
        went.lines,
        [
            "/firm/f7/visits?expand=all&limit=2&at.gt=1970-01-01T00:08:20.000Z&at.lt=1970-01-01T00:16:40.000Z",
            "/firm/f7/visits?expand=all&limit=2&at.gt=1970-01-01T00:08:20.000Z&at.lt=1970-01-01T00:16:40.000Z&after=y",
        ]
    );
    // Everything: no window, and an empty page is the end whatever it promises.
    let went = go(&IDS, &walk(Mode::Backfill, None), vec![page(&[], json!({"has_more": true}))]);
    assert!(went.end.is_ok() && !went.lines[0].contains("at."), "{:?}", went.lines);
}

#[test]
fn cursors_and_single_pages() {
    let pages = vec![
        page(&[("a", 1)], json!({"next": "c 1"})),
        page(&[], json!({"next": 7})),
        page(&[("b", 1)], json!({})),
    ];
    let went = go(&CURSORS, &walk(Mode::Snapshot, None), pages);
    assert!(went.end.is_ok());
    assert_eq!((went.ids.join(""), went.lines.len()), ("ab".to_owned(), 3));
    let went = go(&SINGLE, &walk(Mode::Snapshot, None), vec![page(&[("a", 1)], json!({"next": "x"}))]);
    assert!(went.end.is_ok() && went.lines.len() == 1);
}

#[test]
fn what_breaks_the_shape_or_repeats_is_said() {
    let check = |stream: &'static StreamSpec, answers: Vec<Value>, says: &str| {
        let failure = go(stream, &walk(Mode::Backfill, None), answers).end.expect_err(says);
        assert!(failure.message.contains(says), "{}", failure.message);
        assert_eq!(failure.kind.label(), "provider_changed");
    };
    check(&SINGLE, vec![json!({"items": []})], "no list at `/data`");
    check(&SINGLE, vec![json!([])], "no list at `/data`");
    check(&SINGLE, vec![json!({"data": [{"id": "1"}, {"name": "x"}]})], "without an id");
    check(&SINGLE, vec![json!({"data": [{"id": ""}]})], "without an id");
    let same = page(&[("a", 1), ("b", 2)], json!({"pages": 9}));
    check(&PAGES, vec![same.clone(), same], "repeats a page");
    let same = page(&[("a", 1)], json!({"next": "c"}));
    check(&CURSORS, vec![same.clone(), same], "repeats a page");
    let empty = page(&[], json!({"next": "c"}));
    check(&CURSORS, vec![empty.clone(), empty], "repeats a page");
}

#[test]
fn parameters_cannot_change_the_path() {
    for value in ["", "a/b", "..", "a?b", "a b", "é"] {
        let params = Params::from([("firm".to_owned(), value.to_owned())]);
        let walk = walk(Mode::Backfill, None);
        let cx = StepContext { params: &params, ..StepContext::bare(&SINGLE, &walk) };
        assert!(step(&SPEC, &cx, &Position::start(), Vec::new()).is_err(), "{value:?}");
    }
}

#[test]
fn a_count_that_disagrees_is_not_believed() {
    for (shown, total, short) in [
        (0, 0, false),
        (0, 10, false),
        (0, 11, true),
        (990, 1_000, false),
        (950, 1_000, false),
        (949, 1_000, true),
    ] {
        assert_eq!(falls_short(shown, total), short, "{shown} of {total}");
    }
    let answers = |total: u64| {
        vec![
            page(&[("a", 1), ("b", 2)], json!({"pages": 2, "total": total})),
            page(&[("c", 3)], json!({"pages": 2, "total": total})),
        ]
    };
    let all = walk(Mode::Sweep, None);
    assert!(go(&PAGES, &all, answers(13)).end.is_ok(), "a few may have gone meanwhile");
    let went = go(&PAGES, &all, answers(14));
    assert_eq!(went.end.unwrap_err().message, "Acme's `visits` counts 14 records and has shown 3");
    // Where a walk stops early on purpose, the count says nothing; nor where its beginning is not known.
    assert!(
        go(
            &PAGES,
            &walk(Mode::Incremental, Some(5)),
            vec![page(&[("b", 2), ("a", 1)], json!({"pages": 2, "total": 14}))]
        )
        .end
        .is_ok()
    );
    let began = Position::of(&json!({"page": 2, "seen": ["a", "b"]}));
    assert!(go_from(began, &PAGES, &all, answers(14)[1..].to_vec()).end.is_ok());
}

#[test]
fn a_last_page_that_repeats_is_no_end() {
    let twice = || {
        let again = page(&[("a", 1), ("b", 2)], json!({"pages": 2, "total": 4}));
        vec![again.clone(), again]
    };
    for (mode, from) in [(Mode::Sweep, None), (Mode::Backfill, None), (Mode::Snapshot, None)] {
        let went = go(&PAGES, &walk(mode, from), twice());
        assert_eq!(went.end.unwrap_err().message, "Acme's `visits` repeats a page", "{mode:?}");
    }
    // The newest come first, and as many as a page holds have changed meanwhile: the rest has moved down by one page.
    assert!(go(&PAGES, &walk(Mode::Incremental, Some(0)), twice()).end.is_ok());
    // As many are gone as a page holds: the page before is read again, and shows what this one did.
    let shorter = page(&[("c", 3), ("d", 4)], json!({"pages": 1, "total": 2}));
    let began = Position::of(&json!({"page": 1, "seen": ["c", "d"], "total": 4}));
    assert!(go_from(began, &PAGES, &walk(Mode::Backfill, None), vec![shorter]).end.is_ok());
}

#[test]
fn a_list_that_moved_by_a_whole_page_repeats_none() {
    let pages = |told: bool| {
        let rest = |page: u64| if told { json!({"pages": 9, "page": page}) } else { json!({"pages": 9}) };
        vec![
            page(&[("a", 900), ("b", 800)], rest(1)),
            page(&[("a", 900), ("b", 800)], rest(2)),
            page(&[("c", 400), ("d", 300)], rest(3)),
        ]
    };
    let changes = walk(Mode::Incremental, Some(500));
    let went = go(&PAGES, &changes, pages(true));
    assert!(went.end.is_ok());
    assert_eq!(went.ids, ["a", "b", "a", "b", "c", "d"]);
    assert_eq!(go(&PAGES, &changes, pages(false)).end.unwrap_err().message, "Acme's `visits` repeats a page");
    // Two are new before the place where a list is read whole.
    let whole = vec![
        page(&[("a", 1), ("b", 2)], json!({"pages": 2, "total": 4})),
        page(&[("a", 1), ("b", 2)], json!({"pages": 3, "total": 6})),
        page(&[("c", 3), ("d", 4)], json!({"pages": 3, "total": 6})),
    ];
    assert!(go(&PAGES, &walk(Mode::Backfill, None), whole).end.is_ok());
}
