//! Lists whose order does not say which of several records comes first, and puts them in another one for every request.

use std::collections::BTreeSet;

use super::*;

static ALL_TIED: StreamSpec = StreamSpec { created_at: "/at", ..stream(NUMBERED, Changes::None) };
static UNIQUE: StreamSpec = StreamSpec {
    created_at: "/at",
    ..stream(
        NUMBERED,
        Changes::NewestFirst { newest: &[("sort", "-at")], full: &[("sort", "id")], full_is_unique: true },
    )
};

/// A server of rows: id and second.
struct Server {
    rows: Vec<(u64, i64)>,
    newest_first: bool,
    /// Rows that no request shows.
    hidden: BTreeSet<u64>,
    requests: u64,
    /// Rows that are added after the first request, and how often it is made.
    grows: Vec<(u64, i64)>,
    began: u32,
}

fn noise(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for _ in 0..3 {
        x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    x ^ (x >> 29)
}

impl Server {
    fn answer(&mut self, page: usize, size: usize) -> Value {
        self.requests += 1;
        let mut rows = self.rows.clone();
        let sign = if self.newest_first { -1 } else { 1 };
        rows.sort_by_key(|(id, second)| (sign * second, self.hidden.contains(id), noise(*id, self.requests)));
        let shown = rows.iter().skip((page - 1) * size).take(size);
        // In the place of a row that is hidden its neighbour is shown.
        let data: Vec<Value> = shown
            .map(|(id, second)| {
                let id = if self.hidden.contains(id) { id + 1 } else { *id };
                // The same time is written in more than one way.
                let zone = ["Z", "", "+00:00"][usize::try_from(id % 3).unwrap()];
                json!({"id": id, "at": format!("{}{zone}", at(*second).format("%Y-%m-%dT%H:%M:%S"))})
            })
            .collect();
        let pages = rows.len().div_ceil(size);
        self.rows.append(&mut self.grows);
        self.began += u32::from(page == 1);
        json!({"page": page, "pages": pages, "total": rows.len(), "data": data})
    }
}

/// The ids that a walk shows, and why it is a partial one.
fn read(stream: &'static StreamSpec, walk: &Walk, server: &mut Server) -> (BTreeSet<u64>, Option<String>) {
    let params = Params::from([("firm".to_owned(), "f7".to_owned())]);
    let cx = StepContext { params: &params, ..StepContext::bare(stream, walk) };
    let (mut here, mut replies, mut met) = (Position::start(), Vec::new(), BTreeSet::new());
    loop {
        match step(&SPEC, &cx, &here, std::mem::take(&mut replies)).unwrap() {
            Step::Send { requests, at } => {
                let number = |name: &str| {
                    let found = requests[0].query.iter().find(|(known, _)| *known == name);
                    found.and_then(|(_, text)| text.parse::<usize>().ok()).unwrap()
                };
                let body = Body::Json(server.answer(number("page"), number("limit")));
                replies = vec![Reply { status: 200, headers: BTreeMap::new(), body, sent_at: at_now() }];
                here = at;
            }
            Step::Emit { page, at } => {
                met.extend(page.records.iter().map(|record| record.id.parse::<u64>().unwrap()));
                here = serde_json::from_str(&serde_json::to_string(&at).unwrap()).unwrap();
            }
            Step::Done => return (met, None),
            Step::Partial { why } => return (met, Some(why)),
        }
    }
}

/// 250 of 416 rows at one second.
fn server(newest_first: bool) -> Server {
    let second = |id: u64| if (70..320).contains(&id) { 400 } else { 300 + i64::try_from(id).unwrap() };
    let mut rows: Vec<(u64, i64)> = (0..416).map(|id| (id, second(id))).collect();
    rows.iter_mut().filter(|(id, _)| *id < 70).for_each(|(_, second)| *second -= 100);
    Server { rows, newest_first, hidden: BTreeSet::new(), requests: 0, grows: Vec::new(), began: 0 }
}

#[test]
fn every_record_of_a_tie_is_seen_in_whatever_order() {
    for start in 0..3 {
        for mode in [Mode::Backfill, Mode::Sweep] {
            let mut server = Server { requests: start * 1_000, ..server(false) };
            let (met, why) = read(&BORN, &walk(mode, None), &mut server);
            assert_eq!((met.len(), why), (416, None), "{mode:?}");
        }
        let mut server = Server { requests: start * 1_000, ..server(true) };
        let (met, why) = read(&BORN, &walk(Mode::Incremental, Some(390)), &mut server);
        assert_eq!(why, None);
        assert!((70..416).all(|id| met.contains(&id)), "{}", met.len());
    }
    // Where records tell no time all of them tie.
    let mut server = Server { rows: (0..416).map(|id| (id, 1)).collect(), ..server(false) };
    assert_eq!(read(&ALL_TIED, &walk(Mode::Snapshot, None), &mut server).0.len(), 416);
}

#[test]
fn a_tie_that_ends_with_its_page_is_seen_whole() {
    for start in 0..3 {
        let second = |id| if id < 50 { 500 } else { 400 - (id - 50) / 150 * 100 };
        let rows = (0..350).map(|id| (id, second(i64::try_from(id).unwrap()))).collect();
        let mut server = Server { rows, requests: start * 1_000, ..server(true) };
        let (met, why) = read(&BORN, &walk(Mode::Incremental, Some(400)), &mut server);
        assert_eq!(why, None);
        assert!((0..200).all(|id| met.contains(&id)), "{}", met.len());
    }
}

#[test]
fn what_is_new_in_a_tie_counts_once() {
    let grows = (416..666).map(|id| (id, 1_000)).collect();
    let rows = (0..416).map(|id| (id, 1 + i64::try_from(id).unwrap())).collect();
    let mut server = Server { rows, grows, ..server(false) };
    let (met, why) = read(&BORN, &walk(Mode::Backfill, None), &mut server);
    assert_eq!((met.len(), why, server.began), (666, None, 1));
}

#[test]
fn what_does_not_tie_or_stays_in_its_order_is_read_once() {
    let all = walk(Mode::Backfill, None);
    let mut calm =
        Server { rows: (0..416).map(|id| (id, 1 + i64::try_from(id).unwrap())).collect(), ..server(false) };
    assert_eq!(read(&BORN, &all, &mut calm).0.len(), 416);
    assert_eq!(calm.requests, 5);
    // Nothing below the bound is looked at again.
    let mut old = server(true);
    assert_eq!(read(&BORN, &walk(Mode::Incremental, Some(700)), &mut old).1, None);
    assert_eq!(old.requests, 2);
}

#[test]
fn a_record_that_is_never_shown_is_told() {
    let mut server = Server { hidden: BTreeSet::from([100]), ..server(false) };
    let (met, why) = read(&BORN, &walk(Mode::Sweep, None), &mut server);
    assert!(!met.contains(&100));
    let why = why.expect("it is no whole walk");
    assert!(
        why.starts_with("Acme's `visits` shows records of the same time in another order at every look"),
        "{why}"
    );
    assert!(server.requests < 300, "{}", server.requests);
}

#[test]
fn a_few_that_are_counted_and_not_shown_are_told() {
    let short = || {
        vec![
            page(&[("a", 1), ("b", 2)], json!({"pages": 2, "total": 4})),
            page(&[("c", 3)], json!({"pages": 2, "total": 4})),
        ]
    };
    let params = Params::from([("firm".to_owned(), "f7".to_owned())]);
    let walk = walk(Mode::Backfill, None);
    let cx = StepContext { page_size: 2, params: &params, ..StepContext::bare(&BORN, &walk) };
    let mut answers = short().into_iter().cycle();
    let (mut here, mut replies, mut asked) = (Position::start(), Vec::new(), 0);
    let why = loop {
        match step(&SPEC, &cx, &here, std::mem::take(&mut replies)).unwrap() {
            Step::Send { at, .. } => {
                let body = Body::Json(answers.next().unwrap());
                replies = vec![Reply { status: 200, headers: BTreeMap::new(), body, sent_at: at_now() }];
                (here, asked) = (at, asked + 1);
            }
            Step::Emit { at, .. } => here = at,
            Step::Partial { why } => break why,
            Step::Done => panic!("one is missing"),
        }
    };
    assert_eq!((why.as_str(), asked), ("Acme's `visits` counts 4 records and has shown 3", 6));
}

#[test]
fn among_pages_of_another_order_a_walk_begins_anew() {
    let began = Position::of(&json!({"page": 2, "size": 2, "seen": ["a", "b"], "total": 3}));
    let answers = vec![
        page(&[("a", 1), ("b", 1)], json!({"pages": 2, "total": 3})),
        page(&[("c", 1)], json!({"pages": 2, "total": 3})),
    ];
    let went = go_from(began, &UNIQUE, &walk(Mode::Backfill, None), answers);
    assert!(went.end.is_ok());
    assert_eq!(went.ids.join(""), "abc");
}
