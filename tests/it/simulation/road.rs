//! The road between the engine and the sandbox: requests are handed over in this process, take a while that is drawn
//! from the seed, and meet what only a road can do to an answer.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use fieldmirror::http::SendError;
use fieldmirror::http::carrier::{Carried, Carrier};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::time::Instant;
use tokio::time::error::Elapsed;
use tower::ServiceExt as _;

use crate::support::pages;

/// As the client's own limit for a whole exchange.
const TOTAL_MAX: Duration = Duration::from_mins(3);
const BODY_MAX: usize = 64 * 1024 * 1024;

/// How likely it is that the records of an answer come in another order, and that one of them comes twice.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mess {
    pub shuffled: f64,
    pub doubled: f64,
}

/// Makes another answer of one.
pub type Forge = Box<dyn Fn(&mut Value) + Send>;

pub struct Road {
    router: Router,
    state: Mutex<State>,
}

struct State {
    seed: u64,
    /// How often each request was made.
    asked: HashMap<u64, u64>,
    mess: Mess,
    /// What is done to every answer.
    forged: Option<Forge>,
    /// The longest that one direction takes.
    slow_ms: u64,
    began: Instant,
    /// What was asked, and what the answer was.
    log: Vec<String>,
}

/// What a journey meets, drawn from the seed and from what is asked for the how many-th time: requests that are under way
/// at once do not change each other's luck.
fn luck(state: &mut State, request: &http::Request<Vec<u8>>) -> StdRng {
    let mut hasher = DefaultHasher::new();
    (request.method().as_str(), request.uri().path_and_query().map(http::uri::PathAndQuery::as_str))
        .hash(&mut hasher);
    // What is asked of a token endpoint holds codes and tokens, which are other ones each time.
    if !request.uri().path().ends_with("/token") {
        request.body().hash(&mut hasher);
    }
    let asked = state.asked.entry(hasher.finish()).or_default();
    *asked += 1;
    (*asked, state.seed).hash(&mut hasher);
    StdRng::seed_from_u64(hasher.finish())
}

impl Road {
    pub fn new(router: Router, seed: u64) -> Arc<Self> {
        let state = State {
            seed,
            asked: HashMap::new(),
            mess: Mess::default(),
            forged: None,
            slow_ms: 60,
            began: Instant::now(),
            log: Vec::new(),
        };
        Arc::new(Self { router, state: Mutex::new(state) })
    }

    pub fn set(&self, mess: Mess, slow_ms: u64) {
        let mut state = self.state.lock().expect("nobody panics with it");
        (state.mess, state.slow_ms) = (mess, slow_ms);
    }

    /// From now on every answer comes as this makes it.
    pub fn forge(&self, forged: Option<Forge>) {
        self.state.lock().expect("nobody panics with it").forged = forged;
    }

    /// From now on another value stands at this JSON pointer, where there is one.
    pub fn put(&self, place: &'static str, value: Value) {
        self.forge(Some(Box::new(move |body| {
            if let Some(there) = body.pointer_mut(place) {
                *there = value.clone();
            }
        })));
    }

    /// All requests in the order of their answers.
    pub fn log(&self) -> Vec<String> {
        self.state.lock().expect("nobody panics with it").log.clone()
    }

    async fn leg(&self, luck: &mut StdRng) {
        let most = self.state.lock().expect("nobody panics with it").slow_ms.max(2);
        tokio::time::sleep(Duration::from_millis(luck.random_range(1..most))).await;
    }

    fn note<T>(&self, asked: &str, answer: &Result<Result<http::Response<T>, SendError>, Elapsed>) {
        let mut state = self.state.lock().expect("nobody panics with it");
        let said = match answer {
            Ok(Ok(answer)) => answer.status().to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        let at = state.began.elapsed().as_millis();
        state.log.push(format!("{at} ms: {asked}: {said}"));
    }

    /// One request into the sandbox, for those who ask it beside the engine.
    pub async fn ask(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, SendError> {
        let (mut parts, body) = request.into_parts();
        let local = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        parts.uri = local.parse().map_err(|_| SendError::transient(false, "no path"))?;
        let request = http::Request::from_parts(parts, Body::from(body));
        let response = self.router.clone().oneshot(request).await.expect("a router answers everything");
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, BODY_MAX).await;
        let bytes =
            bytes.map_err(|error| SendError::transient(true, format!("the answer broke off: {error}")))?;
        Ok(http::Response::from_parts(parts, bytes.to_vec()))
    }

    fn messed(&self, bytes: Vec<u8>, dice: &mut StdRng) -> Vec<u8> {
        let state = self.state.lock().expect("nobody panics with it");
        let State { mess, forged, .. } = &*state;
        let (shuffle, double) = (dice.random_bool(mess.shuffled), dice.random_bool(mess.doubled));
        if !shuffle && !double && forged.is_none() {
            return bytes;
        }
        let Ok(mut body) = serde_json::from_slice::<Value>(&bytes) else { return bytes };
        if let Some(forged) = forged {
            forged(&mut body);
        }
        if let Some(list) = pages::list(&mut body).filter(|list| list.len() > 1) {
            if shuffle {
                list.shuffle(dice);
            }
            if double {
                let at = dice.random_range(0..list.len() - 1);
                let again = list[at].clone();
                list.insert(at, again);
            }
        }
        body.to_string().into_bytes()
    }
}

impl Carrier for Road {
    fn carry(&self, request: http::Request<Vec<u8>>) -> Carried<'_> {
        Box::pin(async move {
            let asked = format!("{} {}", request.method(), request.uri());
            let mut luck = luck(&mut self.state.lock().expect("nobody panics with it"), &request);
            let exchange = async {
                self.leg(&mut luck).await;
                let answer = self.ask(request).await;
                self.leg(&mut luck).await;
                answer
            };
            let answer = tokio::time::timeout(TOTAL_MAX, exchange).await;
            self.note(&asked, &answer);
            let answer = answer.map_err(|_| SendError::transient(true, "no answer in time"))??;
            Ok(answer.map(|bytes| self.messed(bytes, &mut luck)))
        })
    }
}
