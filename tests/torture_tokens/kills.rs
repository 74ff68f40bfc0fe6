//! A real daemon that is killed with SIGKILL around its refreshes, and started again.
//!
//! When it is killed is drawn from the seed; what it was doing then is the machine's to choose. After each kill whatever it
//! has left on disk and in the database is opened with the vault's key: a grant of which the provider still honours a
//! refresh token that is there has to come back to life.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldmirror::auth::spill::Name;
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::{connections, tokens};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::vault::{Bound, Vault, generate_key};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tokio::process::{Child, Command};
use url::Url;

use crate::auth::fake::{Fake, Rotation};
use crate::support::app::{free_address, get};
use crate::support::postgres::{TestDb, short_folder};
use crate::{Plan, say};

const CONNECTIONS: u64 = 6;
/// Refreshes under way at once, fewer than [`DEATHS_OF_A_CLIENT`].
const WORKERS: usize = 2;
/// So many deaths together are taken for a fault of the client.
const DEATHS_OF_A_CLIENT: usize = 3;
/// How long the provider may still be at what it was asked when the daemon was killed.
const SETTLES_WITHIN: Duration = Duration::from_millis(50);
/// Seconds that a token lives.
const LIFE_S: u32 = 4;
/// How long after a request to the token endpoint the daemon is killed, at most.
const KILL_WITHIN_MS: u64 = 15;
const PATIENCE: Duration = Duration::from_mins(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const SAY_EVERY: u64 = 25;

struct Site {
    rotation: Rotation,
    fake: Fake,
    test: TestDb,
    vault: Arc<Vault>,
    environment: BTreeMap<String, String>,
    folder: PathBuf,
    endpoint: String,
}

/// State, generation and reason of a connection.
type Standing = (ConnectionState, i64, String);

/// What the kills have come to.
#[derive(Default)]
struct Tally {
    kills: u64,
    /// Refresh tokens that were in a spill and not in the database when the daemon was killed.
    only_spilled: u64,
    /// Grants of which nothing was left that the provider would honour.
    dead: u64,
}

pub async fn run(plan: Plan) -> Result<(), String> {
    let began = Instant::now();
    let mut dice = StdRng::seed_from_u64(plan.seed);
    let mut tally = Tally::default();
    // Where tokens are strict, a kill between the provider and the disk ends a grant; both kinds are seen.
    for rotation in [Rotation::Strict, Rotation::Graceful] {
        let site = Site::new(rotation).await;
        let ended = site.torture(&mut dice, plan.kills.div_ceil(2), &mut tally).await;
        ended.map_err(|why| format!("{rotation:?}, kill {}, seed {}: {why}", tally.kills, plan.seed))?;
        let _ = std::fs::remove_dir_all(&site.folder);
    }
    let Tally { kills, only_spilled, dead } = tally;
    say(&format!(
        "{kills} kills in {:.0} s: no grant was lost that the provider would have honoured; {only_spilled} replies were \
         in a spill alone, {dead} died with the process and were said to be dead",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

impl Site {
    async fn new(rotation: Rotation) -> Self {
        let fake = Fake::start().await;
        fake.rotate(rotation);
        fake.be_short_lived(LIFE_S);
        let (test, folder, address) = (TestDb::new(), short_folder("torture"), free_address());
        let endpoint = format!("http://{address}");
        let key = generate_key();
        let vault = Arc::new(Vault::new(&key, &[]).expect("a generated key fits"));
        let at = |path: &str| format!("http://{}{path}", fake.address);
        let settings = [
            ("database.url", test.url.expose().to_owned()),
            ("database.pool_size", "8".to_owned()),
            ("daemon.state_dir", folder.join("state").display().to_string()),
            ("callback.listen", address),
            ("callback.public_url", endpoint.clone()),
            ("metrics.listen", "127.0.0.1:0".to_owned()),
            ("vault.key", key.expose().to_owned()),
            ("daemon.workers", WORKERS.to_string()),
            ("sync.poll_interval", "24h".to_owned()),
            ("providers.hubspot.client_id", "client".to_owned()),
            ("providers.hubspot.client_secret", "SECRET-CLIENT".to_owned()),
            ("providers.hubspot.authorize_url", at("/authorize")),
            ("providers.hubspot.token_url", at("/token")),
            ("providers.hubspot.revoke_url", at("/token/revoke")),
            ("providers.hubspot.api_base", at("")),
        ];
        let variable = |key: &str| format!("FIELDMIRROR_{}", key.to_uppercase().replace('.', "__"));
        let environment = settings.into_iter().map(|(key, value)| (variable(key), value)).collect();
        Self { rotation, fake, test, vault, environment, folder, endpoint }
    }

    fn program(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fieldmirror"));
        command.env_clear().env("HOME", &self.folder).envs(&self.environment);
        command.args(line.split_whitespace()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn start(&self) -> Result<Child, String> {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("daemon.log"));
        let log = log.map_err(|error| error.to_string())?;
        let mut command = self.program("run");
        command.stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|error| error.to_string())?;
        let ready = Url::parse(&format!("{}/healthz", self.endpoint)).expect("a URL");
        let began = Instant::now();
        while get(&ready).await.0 != 200 {
            if began.elapsed() > PATIENCE {
                return Err(format!("the daemon does not start, see `{}`", self.folder.display()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(child)
    }

    /// Asks for a consent and gives it.
    async fn consent(&self, line: &str, account: u64) -> Result<(), String> {
        let began = Instant::now();
        loop {
            self.fake.be_account(account);
            let output = self.program(&format!("{line} --no-wait --json")).output().await;
            let output = output.map_err(|error| error.to_string())?;
            let asked: Option<Value> = String::from_utf8_lossy(&output.stdout)
                .lines()
                .last()
                .and_then(|line| serde_json::from_str(line).ok());
            let url = asked
                .as_ref()
                .and_then(|asked| asked["authorize_url"].as_str())
                .and_then(|url| Url::parse(url).ok());
            if let Some(url) = url {
                let state = url
                    .query_pairs()
                    .find(|(name, _)| name == "state")
                    .expect("it has a state")
                    .1
                    .into_owned();
                let back = Url::parse_with_params(
                    &format!("{}/oauth/callback/hubspot", self.endpoint),
                    [("code", "C"), ("state", &state)],
                );
                let (status, _, page) = get(&back.expect("a URL")).await;
                if status == 200 {
                    return Ok(());
                }
                if began.elapsed() > PATIENCE {
                    return Err(format!("`{line}`: the page says {status}: {page}"));
                }
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("`{line}`: {}", String::from_utf8_lossy(&output.stderr)));
            }
            tokio::time::sleep(LOOK_EVERY * 10).await;
        }
    }

    async fn torture(&self, dice: &mut StdRng, kills: u64, tally: &mut Tally) -> Result<(), String> {
        let mut daemon = self.start().await?;
        for account in 1..=CONNECTIONS {
            self.consent(&format!("enqueue --connect hubspot --name acme-{account}"), account).await?;
        }
        for kill in 1..=kills {
            // Some requests after the start, and a moment after the last of them.
            let more = dice.random_range(1..=3);
            let asked = self.fake.count("refresh_token");
            let waited = Instant::now();
            while self.fake.count("refresh_token") < asked + more {
                if waited.elapsed() > PATIENCE {
                    return Err("nothing is refreshed".to_owned());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(dice.random_range(0..KILL_WITHIN_MS * 1000))).await;
            daemon.kill().await.map_err(|error| error.to_string())?;
            tally.kills += 1;
            tokio::time::sleep(SETTLES_WITHIN).await;
            let expected = self.expectations(tally).await?;
            // Whatever a kill costs, the token before is good until the one after it is used.
            if self.rotation == Rotation::Graceful && expected.values().any(|lives| !lives) {
                return Err(format!("neither of the tokens that are honoured is to be found: {expected:?}"));
            }
            // Nobody waits for real until what was open has run out: attempts, and the leases of jobs.
            self.let_attempts_pass().await;
            let before = self.standings().await?;
            daemon = self.start().await?;
            self.check(&expected, &before).await?;
            for account in expected.iter().filter(|(_, lives)| !**lives).map(|(account, _)| *account) {
                tally.dead += 1;
                self.consent(&format!("enqueue --reconnect acme-{account}"), account).await?;
            }
            if kill.is_multiple_of(SAY_EVERY) {
                say(&format!(
                    "  {} kills, {} only in a spill, {} dead",
                    tally.kills, tally.only_spilled, tally.dead
                ));
            }
        }
        daemon.kill().await.map_err(|error| error.to_string())
    }

    /// For each account whether the provider honours a refresh token that is in the database or on disk.
    async fn expectations(&self, tally: &mut Tally) -> Result<BTreeMap<u64, bool>, String> {
        let mut all = BTreeMap::new();
        for (id, account) in self.connections().await? {
            let honoured: BTreeSet<String> = self.fake.honoured(account).into_iter().collect();
            let in_database = self.in_database(id).await?;
            let spilled = self.spilled(id);
            let finds = |tokens: &[String]| tokens.iter().any(|token| honoured.contains(token));
            tally.only_spilled += u64::from(finds(&spilled) && !finds(&in_database));
            all.insert(account, finds(&spilled) || finds(&in_database));
        }
        Ok(all)
    }

    async fn connections(&self) -> Result<Vec<(ConnectionId, u64)>, String> {
        let found = self.test.db.run(connections::list).await.map_err(|error| error.to_string())?;
        let number = |name: &str| name.strip_prefix("acme-").and_then(|number| number.parse().ok());
        Ok(found
            .iter()
            .filter_map(|connection| Some((connection.id, number(connection.name.as_str())?)))
            .collect())
    }

    async fn in_database(&self, id: ConnectionId) -> Result<Vec<String>, String> {
        let token =
            self.test.db.run(move |conn| tokens::load(conn, id)).await.map_err(|error| error.to_string())?;
        let opened = token.and_then(|token| {
            let bound = Bound { connection: id, grant: token.grant_id, column: "tokens.refresh_sealed" };
            let plain = self.vault.open(&token.refresh_sealed?, &bound).ok()?;
            String::from_utf8(plain.to_vec()).ok()
        });
        Ok(opened.into_iter().collect())
    }

    fn spilled(&self, id: ConnectionId) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.join("state/spills")).into_iter().flatten().flatten();
        files.filter_map(|file| self.open_spill(&file.path(), id)).collect()
    }

    fn open_spill(&self, path: &Path, id: ConnectionId) -> Option<String> {
        // What was written but not named yet counts if it is whole.
        let file = path.file_name()?.to_str()?;
        let unfinished = file.strip_prefix('.').and_then(|file| file.split_once(".spill"));
        let name = unfinished.map_or_else(|| file.to_owned(), |(name, _)| format!("{name}.spill"));
        let name: Name = name.parse().ok()?;
        let bound = Bound { connection: id, grant: name.grant, column: "spill" };
        let plain = self.vault.open(&std::fs::read(path).ok()?, &bound).ok()?;
        let content: Value = serde_json::from_slice(&plain).ok()?;
        Some(content["refresh_token"].as_str()?.to_owned())
    }

    async fn let_attempts_pass(&self) {
        let passed = "UPDATE fieldmirror.refresh_attempts SET blocked_until = clock_timestamp();
            UPDATE fieldmirror.tokens SET refresh_due_at = now();
            DELETE FROM fieldmirror.jobs WHERE kind = 'refresh_token';
            DELETE FROM fieldmirror.rate_budget";
        let done = self.test.db.run(move |conn| {
            diesel::connection::SimpleConnection::batch_execute(conn, passed)?;
            Ok(())
        });
        done.await.expect("the database does it");
    }

    /// Waits until every connection has been refreshed or is dead, as it must be.
    async fn check(
        &self,
        expected: &BTreeMap<u64, bool>,
        before: &BTreeMap<u64, Standing>,
    ) -> Result<(), String> {
        let began = Instant::now();
        // So many at once are taken for a fault of the client: none is said to be dead, and one at a time tries again.
        let taken_for_a_fault = expected.values().filter(|lives| !**lives).count() >= DEATHS_OF_A_CLIENT;
        loop {
            let now = self.standings().await?;
            let wrong: Vec<String> = (expected.iter())
                .filter_map(|(account, lives)| {
                    let ((state, generation, reason), (_, earlier, _)) =
                        (now.get(account)?, before.get(account)?);
                    let is_right = match state {
                        ConnectionState::Connected if *lives => generation > earlier || *earlier == 0,
                        ConnectionState::Connected => taken_for_a_fault && generation == earlier,
                        ConnectionState::NeedsReauth => !*lives && reason.contains("dead"),
                        _ => false,
                    };
                    (!is_right).then(|| format!("acme-{account} ({lives}): {state:?} {generation} {reason}"))
                })
                .collect();
            if wrong.is_empty() {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{}; see `{}`", wrong.join("; "), self.folder.display()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn standings(&self) -> Result<BTreeMap<u64, Standing>, String> {
        let all = self.connections().await?;
        let found = self.test.db.run(move |conn| {
            all.into_iter()
                .map(|(id, account)| {
                    let connection = connections::get(conn, id)?;
                    let generation = tokens::load(conn, id)?.map_or(0, |token| token.generation);
                    Ok((account, (connection.state, generation, connection.reason.unwrap_or_default())))
                })
                .collect()
        });
        found.await.map_err(|error| error.to_string())
    }
}
