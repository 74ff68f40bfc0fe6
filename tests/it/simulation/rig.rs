//! The engine over one connected account: real Postgres, the sandbox at the other end of the road, time of our own.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::TimeDelta;
use diesel::RunQueryDsl as _;
use diesel::connection::SimpleConnection as _;
use fieldmirror::auth::answer::{Answer, BroughtBy};
use fieldmirror::auth::between::Between;
use fieldmirror::auth::spill::Spills;
use fieldmirror::auth::{Auth, Parts};
use fieldmirror::config::{self, Purpose, Settings, Sources};
use fieldmirror::db::connections::{self, ConnectionState, NewConnection, Pending};
use fieldmirror::db::requests::{self, Boxed, NewRequest, RequestKind, RequestOutcome};
use fieldmirror::db::{Db, DbError, PgConnection, streams};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::spec::GrantKind;
use fieldmirror::domain::time::{Clock, until};
use fieldmirror::http::{Client, HttpLimits};
use fieldmirror::jobs;
use fieldmirror::sandbox::{CLIENT_ID, Connect, Sandbox, SandboxOptions};
use fieldmirror::sync::Engine;
use fieldmirror::vault::{HandedOver, ReplyKey, Vault, generate_key};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;
use uuid::Uuid;

use super::clock::VirtualClock;
use super::road::Road;
use crate::support::postgres::TestDb;

/// Nobody listens there, and nobody is asked: the road ends in this process.
const BASE: &str = "http://127.0.0.1:1";
/// One session: what is asked of the database at the same moment is done in the order in which it was asked, each time.
const POOL_SIZE: usize = 1;
/// The longest that nothing is looked at.
const LOOK_EVERY: Duration = Duration::from_mins(1);

pub struct Rig {
    pub engine: Engine,
    pub sandbox: Sandbox,
    pub road: Arc<Road>,
    /// The provider's clock.
    pub clock: Arc<VirtualClock>,
    /// Ours.
    pub ours: Arc<VirtualClock>,
    pub connection: ConnectionId,
    vault: Arc<Vault>,
    provider: &'static str,
}

/// The limit of an address is kept on the database's clock, which knows nothing of time here: its waits would be other ones
/// each time. The simulated day has it.
const NO_ADDRESS_LIMIT: &str = "
    CREATE OR REPLACE FUNCTION public.no_address_limit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        NEW.taken_until := clock_timestamp() - interval '1 hour';
        RETURN NEW;
    END $$;
    CREATE OR REPLACE TRIGGER no_address_limit BEFORE INSERT OR UPDATE ON fieldmirror.rate_budget
        FOR EACH ROW WHEN (NEW.bucket <> 'stopped') EXECUTE FUNCTION public.no_address_limit()";

/// What worlds can share that come one after the other.
pub struct Ground {
    test: TestDb,
    /// Where replies of token endpoints are kept.
    folder: TempDir,
    client: Client,
}

impl Ground {
    pub fn new() -> Self {
        let client = Client::new(&HttpLimits::default()).expect("a client can be built");
        let folder = tempfile::tempdir().expect("a folder can be made");
        Self { test: TestDb::new(), folder, client }
    }

    fn spills(&self) -> Arc<Spills> {
        let spills = Spills::below(self.folder.path());
        spills.prepare().expect("our own folder can be used");
        Arc::new(spills)
    }

    /// A pool for this runtime, over a database in which nothing is connected.
    async fn db(&self) -> Db {
        let db = Db::connect(&self.test.url, POOL_SIZE).expect("the address has the right shape");
        let ended = db.run(|conn| {
            let end = "UPDATE fieldmirror.connections SET state = 'disconnected', account_id = NULL";
            diesel::sql_query(end).execute(conn)?;
            Ok(conn.batch_execute(NO_ADDRESS_LIMIT)?)
        });
        ended.await.expect("the database does it");
        db
    }
}

/// How a world is set up.
pub struct Setup<'a> {
    pub provider: &'static str,
    pub seed: u64,
    pub records: usize,
    /// By how much our clock is ahead of the provider's.
    pub skew: TimeDelta,
    pub search_lag: Duration,
    /// Records on a page of ServiceTitan's feeds.
    pub feed_page: usize,
    pub settings: Vec<(&'a str, String)>,
}

impl Rig {
    pub async fn new(ground: &Ground, setup: Setup<'_>) -> Self {
        let (theirs, ours) = VirtualClock::pair(setup.skew);
        let clock: Arc<dyn Clock> = Arc::<VirtualClock>::clone(&theirs);
        let options = SandboxOptions {
            seed: setup.seed,
            records: setup.records,
            accounts: 1,
            search_lag: setup.search_lag,
            feed_page: setup.feed_page,
            clock,
            ..SandboxOptions::default()
        };
        let sandbox = Sandbox::new(options);
        let road = Road::new(sandbox.router(), setup.seed);
        let settings = Arc::new(settings(&sandbox, &setup.settings));
        let db = ground.db().await;
        let vault = Arc::new(Vault::new(&generate_key(), &[]).expect("a generated key fits"));
        let client = ground.client.clone().carried_by(Arc::<Road>::clone(&road));
        let clock: Arc<dyn Clock> = Arc::<VirtualClock>::clone(&ours);
        let auth = Auth::new(Parts {
            db: db.clone(),
            vault: Arc::clone(&vault),
            http: client.clone(),
            settings: Arc::clone(&settings),
            clock: Arc::clone(&clock),
            daemon: Uuid::new_v4(),
            host: "host".to_owned(),
            tasks: TaskTracker::new(),
            spills: ground.spills(),
            between: Between::default(),
        });
        let engine = Engine { db: db.clone(), auth, client, settings, clock };
        let connects = sandbox.stand_ins().iter().find(|part| part.name() == setup.provider);
        let connects = connects.expect("every provider has a stand-in").connects();
        // Keys where there are some: they need no browser.
        let key = connects.iter().find(|connect| connect.grant != "authorization_code");
        let connect = key.or(connects.first()).expect("a way to connect").clone();
        let connection = ConnectionId(0);
        let mut rig =
            Self { engine, sandbox, road, clock: theirs, ours, connection, vault, provider: setup.provider };
        rig.connect(&connect).await;
        rig
    }

    pub async fn db<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, DbError> + Send + 'static,
    ) -> T {
        self.engine.db.run(work).await.expect("the database does it")
    }

    async fn connect(&mut self, connect: &Connect) {
        let grant = GrantKind::parse(connect.grant).expect("a grant");
        let params: Value = connect.params.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let new = NewConnection {
            name: format!("c-{}", Uuid::now_v7().simple()).parse().expect("a name"),
            provider: self.provider.to_owned(),
            grant,
            params,
        };
        self.connection = match self.db(move |conn| connections::create_pending(conn, &new)).await {
            Pending::Created(connection) => connection.id,
            other => panic!("{other:?}"),
        };
        let secrets: Value = connect.secrets.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let with = HandedOver { connection: self.connection, request: Uuid::now_v7() };
        let sealed = with.seal(&self.vault.public_key(), secrets.to_string().as_bytes());
        let sealed = Some(Boxed { request: with.request, sealed });
        let key = ReplyKey::generate();
        let args = json!({"reply_to": BASE64_STANDARD.encode(key.public())});
        let connection = self.connection;
        let request = NewRequest { connection, kind: RequestKind::Connect, args, sealed };
        let request = self.db(move |conn| requests::create(conn, &request)).await;
        jobs::connect::run(&self.engine.auth, connection).await.expect("the job runs");
        if grant.needs_consent() {
            let row = self.db(move |conn| requests::get(conn, request)).await;
            let sealed = row.reply_sealed.unwrap_or_else(|| panic!("{:?}", row.message));
            let links = serde_json::from_slice(&key.open(&sealed).expect("sealed to us")).expect("JSON");
            self.consent(&links).await;
        }
        let row = self.db(move |conn| connections::get(conn, connection)).await;
        assert_eq!(row.state, ConnectionState::Connected, "{:?}", row.reason);
    }

    /// Agrees on the provider's page, and brings back what it says.
    async fn consent(&self, links: &Value) {
        let mut page = Url::parse(links["authorize_url"].as_str().expect("a link")).expect("a URL");
        page.query_pairs_mut().append_pair("auto", "approve");
        let ask = http::Request::get(page.as_str()).body(Vec::new()).expect("a request");
        let answer = self.road.ask(ask).await.expect("the page answers");
        let back = answer.headers().get("location").expect("it leads back").to_str().expect("plain text");
        let (provider, answer) = Answer::of_url(back).expect("an answer");
        let recognised = self.engine.auth.recognise(&provider, answer, BroughtBy::Admin);
        let recognised = recognised.unwrap_or_else(|refusal| panic!("{refusal:?}"));
        let ending = self.engine.auth.conclude(recognised).await;
        assert!(matches!(ending, fieldmirror::auth::Ending::Connected { .. }), "{}", ending.message());
    }

    /// One turn if one is due, as the scheduler decides it; else waits until then, `patience` at most. Says whether there
    /// was a turn.
    pub async fn next(&self, patience: Duration) -> bool {
        let (now, providers) = (self.engine.clock.now(), vec![self.provider.to_owned()]);
        let rhythm = self.engine.settings.rhythm(&self.engine.settings.providers[self.provider]);
        let rhythms = [(self.provider.to_owned(), rhythm)];
        let (due, next) = self
            .db(move |conn| {
                Ok((streams::due(conn, &rhythms, now)?, streams::next_due(conn, &providers, now)?))
            })
            .await;
        if !due.contains(&self.connection) {
            let wait = next.map_or(LOOK_EVERY, |next| until(next, now)).min(patience).min(LOOK_EVERY);
            tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
            return false;
        }
        let turn = self.engine.turn(self.connection, &CancellationToken::new()).await;
        turn.unwrap_or_else(|failure| panic!("a turn failed: {failure}"));
        // Nor does a client stay stopped for as long as that clock would have it.
        self.db(|conn| Ok(diesel::sql_query("DELETE FROM fieldmirror.rate_budget").execute(conn)?)).await;
        true
    }

    /// `enqueue --resync acme --full`
    /// Whoever asks knows that much may have been deleted meanwhile; that nothing else counts as gone is seen afterwards.
    pub async fn ask_for_everything(&self) -> Uuid {
        let (connection, args) = (self.connection, json!({"full": true, "allow_mass_delete": true}));
        let new = NewRequest { connection, kind: RequestKind::Sync, args, sealed: None };
        self.db(move |conn| requests::create(conn, &new)).await
    }

    pub async fn outcome(&self, request: Uuid) -> Option<(RequestOutcome, Option<String>)> {
        let row = self.db(move |conn| requests::get(conn, request)).await;
        row.outcome.map(|outcome| (outcome, row.message))
    }
}

fn settings(sandbox: &Sandbox, given: &[(&str, String)]) -> Settings {
    let own = [
        ("database.url", "postgres:///unused".to_owned()),
        ("daemon.state_dir", "/nonexistent".to_owned()),
        ("vault.key", generate_key().expose().to_owned()),
        ("callback.public_url", "http://127.0.0.1:1".to_owned()),
    ];
    let own = own.into_iter().chain(given.iter().map(|(key, value)| (*key, value.clone())));
    let own = own.map(|(key, value)| (key.to_owned(), value));
    let stand_ins = sandbox.settings(BASE).into_iter();
    let stand_ins = stand_ins.map(|(provider, key, value)| (format!("providers.{provider}.{key}"), value));
    let variable = |key: String| format!("FIELDMIRROR_{}", key.to_uppercase().replace('.', "__"));
    let environment = stand_ins.chain(own).map(|(key, value)| (variable(key), value.into())).collect();
    let sources = Sources { purpose: Purpose::Daemon, environment, ..Sources::none() };
    let loaded = config::load(&sources);
    let settings = loaded.unwrap_or_else(|problems| panic!("{problems}")).settings;
    assert_eq!(settings.providers["hubspot"].client_id, CLIENT_ID);
    settings
}
