//! The providers on loopback: honest, seeded, cheap stand-ins for `fieldmirror sandbox`, `fieldmirror demo` and the
//! tests. One listener serves all of them, each under its own prefix; nothing is kept when the process ends.
//!
//! A provider's *part* is a folder or file that holds its world and builds two routers ([`Part`]): its API, and its
//! share of the control endpoint. It is handed [`Shared`] (clock, faults, counters) and may use the
//! authorization server of [`oauth`], the rate limits of [`limits`] and the invented town of [`world`].
//!
//! # Addresses
//! `GET /` tells them all, with the client ids and the accounts. For HubSpot:
//! `api_base = http://HOST/hubspot`, `authorize_url = …/hubspot/oauth/authorize`,
//! `token_url = …/hubspot/oauth/2026-03/token`. A program consents with one GET of the authorize URL plus
//! `&auto=approve` (or `deny`) and, where there is a choice, `&account=HUBID`.
//!
//! # Control
//! JSON over HTTP, for tests and for the curious; [`Sandbox`] gives the same in process.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /control/counters` | answers by provider, purpose and status (0: cut off); `unauthorised` and `throttled`: how many 401 and 429; `refresh_tokens`: how often each was redeemed, and replayed after its death |
//! | `POST /control/counters/reset` | forgets the answers counted so far |
//! | `GET /control/faults` | the faults in force, and all there are |
//! | `PUT /control/faults` `{"faults": ["http_502=0.05"]}` | puts these in force in place of the others; grammar in [`faults`] |
//! | `GET /control/hubspot/accounts` | the accounts, how many tickets they have, their private app tokens |
//! | `POST /control/hubspot/accounts/HUBID` | one [`hubspot::Change`], for example `{"do": "archive", "id": 9001}`; answers `{"ids": […], "count": n}` |
//! | `GET /control/hubspot/accounts/HUBID/truth` | every ticket there is or was, as JSON lines |
//! | `POST /control/hubspot/accounts/HUBID/revoke` | uninstalls: grants and all their tokens die |
//! | `POST /control/hubspot/expire-tokens` | every access token expires now |
//! | the same below `/control/jobber` | as for HubSpot, with [`jobber::Change`]: `{"do": "complete", "id": "…"}` |
//! | the same below `/control/housecallpro` | with [`housecallpro::Change`], for example `{"do": "cancel", "id": "job_…", "by": "user"}` |
//! | `…/control/servicetitan/…` | the same for its tenants, with [`servicetitan::Change`]; there is no `revoke`: `{"do": "disable"}` |
//!
//! The control endpoint has no lock on it. The sandbox is for loopback.

pub mod faults;
pub mod housecallpro;
pub mod hubspot;
pub mod jobber;
pub mod ledger;
pub mod limits;
pub mod oauth;
pub mod oncehub;
pub mod servicetitan;
pub mod shared;
pub mod world;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::domain::time::{Clock, SystemClock};
use faults::{Fault, FaultName};
use housecallpro::Housecallpro;
use hubspot::Hubspot;
use jobber::Jobber;
use oauth::App;
use oncehub::OnceHub;
use servicetitan::ServiceTitan;
use shared::Shared;

/// The app that is registered when no other is named.
pub const CLIENT_ID: &str = "sandbox-client";
/// Its secret, which is none.
pub const CLIENT_SECRET: &str = "sandbox-secret";
/// How long answers under way may take after the end was asked for.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// How the sandbox is set up. The first five are the flags of `fieldmirror sandbox`.
#[derive(Clone)]
pub struct SandboxOptions {
    /// The same seed and number of records give the same worlds.
    pub seed: u64,
    /// Records in the first account of each provider.
    pub records: usize,
    pub faults: Vec<Fault>,
    /// Accounts per provider, at least one.
    pub accounts: usize,
    /// How long HubSpot's access tokens live.
    pub access_token_life: Duration,
    /// How late search sees changes. HubSpot's own takes "a few moments".
    pub search_lag: Duration,
    /// Whether rate limits are enforced.
    pub throttled: bool,
    pub hubspot_limits: HubspotLimits,
    /// Associations of one record before they are paged.
    pub links_page: usize,
    /// Rows in a page of ServiceTitan's feeds. The vendor publishes no figure.
    pub feed_page: usize,
    /// The apps that are registered at every provider.
    pub apps: Vec<App>,
    pub clock: Arc<dyn Clock>,
}

/// How many requests HubSpot's windows hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubspotLimits {
    /// Per app and account in ten seconds, search not counted.
    pub ten_secondly: usize,
    /// Searches per account in a second.
    pub searches_secondly: usize,
    /// Token requests per app in ten seconds. HubSpot says that there is a limit, not which.
    pub token_ten_secondly: usize,
}

impl Default for HubspotLimits {
    fn default() -> Self {
        Self { ten_secondly: 110, searches_secondly: 5, token_ten_secondly: 200 }
    }
}

impl Default for SandboxOptions {
    fn default() -> Self {
        let app = App {
            client_id: CLIENT_ID.into(),
            client_secret: CLIENT_SECRET.into(),
            redirect_uris: Vec::new(),
        };
        Self {
            seed: 1,
            records: 1_000,
            faults: Vec::new(),
            accounts: 2,
            access_token_life: Duration::from_mins(30),
            search_lag: Duration::ZERO,
            throttled: true,
            hubspot_limits: HubspotLimits::default(),
            links_page: 500,
            feed_page: servicetitan::FEED_PAGE,
            apps: vec![app],
            clock: Arc::new(SystemClock),
        }
    }
}

/// What a provider's stand-in serves: its API under `/{name}`, its share of the control endpoint under
/// `/control/{name}`.
pub struct Part {
    pub api: Router,
    pub control: Router,
}

/// A provider on loopback.
pub trait StandIn: Send + Sync {
    /// The provider's word in the settings.
    fn name(&self) -> &'static str;

    /// The product's own spelling.
    fn title(&self) -> &'static str;

    fn part(self: Arc<Self>) -> Part;

    /// Settings of the provider's section that lead here: keys and what stands behind `http://HOST/{name}`.
    fn addresses(&self) -> &'static [(&'static str, &'static str)];

    /// Further settings of the provider's section that suit a stand-in.
    fn settings(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// How its first account is connected, one entry for each kind of grant, the usual one first.
    fn connects(&self) -> Vec<Connect>;

    /// The ids of its accounts, and where they are controlled.
    fn accounts(&self) -> Value;

    /// How often each refresh token was redeemed.
    fn redemptions(&self) -> Value;
}

/// What `fieldmirror enqueue --connect` is given for an account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connect {
    pub grant: &'static str,
    pub params: Vec<(&'static str, String)>,
    pub secrets: Vec<(&'static str, String)>,
}

/// The sandbox's state: what is behind the listener, for tests to look into and to change.
#[derive(Clone)]
pub struct Sandbox {
    shared: Arc<Shared>,
    hubspot: Arc<Hubspot>,
    jobber: Arc<Jobber>,
    oncehub: Arc<OnceHub>,
    housecallpro: Arc<Housecallpro>,
    servicetitan: Arc<ServiceTitan>,
    /// All of them.
    stand_ins: Vec<Arc<dyn StandIn>>,
}

impl Sandbox {
    /// Makes the worlds. Takes a second or two and 270 MB per 100,000 records, in a release build.
    pub fn new(options: SandboxOptions) -> Self {
        let shared = Shared::new(options);
        let hubspot = Hubspot::new(&shared);
        let jobber = Jobber::new(&shared);
        let oncehub = OnceHub::new(&shared);
        let housecallpro = Housecallpro::new(&shared);
        let servicetitan = ServiceTitan::new(&shared);
        let stand_ins: Vec<Arc<dyn StandIn>> = vec![
            hubspot.clone(),
            jobber.clone(),
            oncehub.clone(),
            housecallpro.clone(),
            servicetitan.clone(),
        ];
        Self { shared, hubspot, jobber, oncehub, housecallpro, servicetitan, stand_ins }
    }

    pub fn oncehub(&self) -> &Arc<OnceHub> {
        &self.oncehub
    }

    pub fn stand_ins(&self) -> &[Arc<dyn StandIn>] {
        &self.stand_ins
    }

    /// The settings that lead to the stand-ins of a sandbox at `base`: provider, key, value.
    pub fn settings(&self, base: &str) -> Vec<(&'static str, &'static str, String)> {
        let of = |stand_in: &Arc<dyn StandIn>| {
            let name = stand_in.name();
            let client = [("client_id", CLIENT_ID.to_owned()), ("client_secret", CLIENT_SECRET.to_owned())];
            let addresses =
                stand_in.addresses().iter().map(move |(key, path)| (*key, format!("{base}/{name}{path}")));
            let further = stand_in.settings().iter().map(|(key, value)| (*key, (*value).to_owned()));
            client.into_iter().chain(addresses).chain(further).map(move |(key, value)| (name, key, value))
        };
        self.stand_ins.iter().flat_map(of).collect()
    }

    pub fn hubspot(&self) -> &Arc<Hubspot> {
        &self.hubspot
    }

    pub fn jobber(&self) -> &Arc<Jobber> {
        &self.jobber
    }

    pub fn housecallpro(&self) -> &Arc<Housecallpro> {
        &self.housecallpro
    }

    pub fn servicetitan(&self) -> &Arc<ServiceTitan> {
        &self.servicetitan
    }

    /// Answers counted so far.
    pub fn ledger(&self) -> &ledger::Ledger {
        &self.shared.ledger
    }

    /// The faults in force, with what is left of those that are counted.
    pub fn faults(&self) -> Vec<Fault> {
        self.shared.faults.list()
    }

    /// Puts these faults in force in place of those there were.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        self.shared.faults.set(faults);
    }

    /// Answers that `hang` holds back come now.
    pub fn release(&self) {
        self.shared.faults.release();
    }

    /// What `GET /control/counters` answers.
    pub fn counters(&self) -> Value {
        let redeemed = |of: &Arc<dyn StandIn>| (of.name().to_owned(), of.redemptions());
        let refresh_tokens: Value = self.stand_ins.iter().map(redeemed).collect();
        let ledger = &self.shared.ledger;
        json!({
            "answers": ledger.to_json(), "unauthorised": ledger.of_status(401), "throttled": ledger.of_status(429),
            "refresh_tokens": refresh_tokens,
        })
    }

    /// Everything that the listener serves.
    pub fn router(&self) -> Router {
        let control = Router::new()
            .route("/", get(index))
            .route("/control/counters", get(counters))
            .route("/control/counters/reset", post(reset_counters))
            .route("/control/faults", get(list_faults).put(put_faults))
            .with_state(self.clone());
        self.stand_ins.iter().fold(control, |router, stand_in| {
            let (name, part) = (stand_in.name(), Arc::clone(stand_in).part());
            router.nest(&format!("/{name}"), part.api).nest(&format!("/control/{name}"), part.control)
        })
    }

    /// Serves until `shutdown`, then gives the answers under way a moment.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let stop = CancellationToken::new();
        // Small answers must not wait for an acknowledgement of earlier ones.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(error = %error, "Nagle's algorithm stays on for a connection of the sandbox");
            }
        });
        let server =
            axum::serve(listener, self.router()).with_graceful_shutdown(stop.clone().cancelled_owned());
        let mut server = std::pin::pin!(server.into_future());
        tokio::select! {
            ended = &mut server => return ended,
            () = shutdown => stop.cancel(),
        }
        tokio::time::timeout(SHUTDOWN_GRACE, server).await.unwrap_or(Ok(()))
    }

    /// Serves in a task of its own on a free loopback port until the answer is dropped.
    pub async fn start(self) -> io::Result<Running> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let (sandbox, stopped) = (self.clone(), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = sandbox.serve(listener, stopped.cancelled_owned()).await {
                tracing::error!(error = %error, "The sandbox stopped serving");
            }
        });
        Ok(Running { sandbox: self, address, stop })
    }
}

/// Makes the worlds, serves them until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    options: SandboxOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let sandbox = tokio::task::spawn_blocking(|| Sandbox::new(options)).await.map_err(io::Error::other)?;
    sandbox.serve(listener, shutdown).await
}

/// A sandbox that serves in the background; dropping it ends that.
pub struct Running {
    sandbox: Sandbox,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Running {
    /// For example `http://127.0.0.1:40123`, without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The state behind the listener.
    pub fn control(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn index(State(sandbox): State<Sandbox>) -> Response {
    let apps: Vec<&str> = sandbox.shared.options.apps.iter().map(|app| app.client_id.as_str()).collect();
    let told = |of: &Arc<dyn StandIn>| {
        let name = of.name();
        let mut told = json!({"accounts": of.accounts(), "control": format!("/control/{name}/accounts")});
        for (key, path) in of.addresses() {
            told[key] = format!("/{name}{path}").into();
        }
        (name.to_owned(), told)
    };
    let providers: Value = sandbox.stand_ins.iter().map(told).collect();
    let control = ["/control/counters", "/control/faults"];
    shared::json(200, &json!({"client_ids": apps, "providers": providers, "control": control}))
}

async fn counters(State(sandbox): State<Sandbox>) -> Response {
    shared::json(200, &sandbox.counters())
}

async fn reset_counters(State(sandbox): State<Sandbox>) -> Response {
    sandbox.shared.ledger.reset();
    shared::json(200, &json!({}))
}

async fn list_faults(State(sandbox): State<Sandbox>) -> Response {
    let faults: Vec<String> = sandbox.shared.faults.list().iter().map(ToString::to_string).collect();
    let known: Value = FaultName::all().map(|(name, does)| json!({"name": name, "does": does})).collect();
    shared::json(200, &json!({"faults": faults, "known": known}))
}

/// The body of `PUT /control/faults`.
#[derive(Deserialize)]
struct FaultsBody {
    faults: Vec<String>,
}

async fn put_faults(State(sandbox): State<Sandbox>, body: Bytes) -> Response {
    let asked: Result<FaultsBody, _> = serde_json::from_slice(&body);
    let faults = asked.map_err(|error| error.to_string()).and_then(|body| {
        let parsed = body.faults.iter().map(|text| text.parse::<Fault>());
        parsed.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
    });
    match faults {
        Ok(faults) => {
            sandbox.set_faults(faults);
            list_faults(State(sandbox)).await
        }
        Err(message) => shared::json(400, &json!({"error": message})),
    }
}
