//! Grants: how they come about, stay alive and end.
//!
//! [`Auth::access_token`] is what everything above asks for: a token that will still be good when the request arrives,
//! or a typed reason why there is none. The rest of this folder keeps that promise: [`authorize`] and [`exchange`] turn
//! consents into tokens, [`keys`] verifies what needs no consent, [`refresh`] renews, [`doubt`] finds out what a refusal
//! is about, [`spill`] and [`replay`] keep what the database may lose, [`kept`] concludes consents that were interrupted,
//! [`disconnect`] forgets, [`rotation`] changes the vault key.
//!
//! It does not decide when jobs run, and knows no provider: what differs between providers is asked of their
//! descriptions.

pub mod answer;
pub mod authorize;
pub mod between;
mod client;
mod closing;
pub mod disconnect;
pub mod doubt;
mod ending;
pub mod exchange;
mod kept;
pub mod keys;
mod late;
mod patience;
pub mod policy;
pub mod proof;
pub mod refresh;
mod renewal;
pub mod replay;
mod rotation;
mod setback;
pub mod spill;
pub mod ticket;

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, error, warn};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::config::{ProviderSettings, Settings};
use crate::db::connections::{self, Connection, ConnectionState};
use crate::db::tokens::{self, Token};
use crate::db::{Db, DbError, audit};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::domain::secret::Secret;
use crate::domain::spec::{GrantKind, GrantSpec, Placement};
use crate::domain::time::Clock;
use crate::http::Client;
use crate::http::deadline::Deadline;
use crate::providers::{self, Provider};
use crate::vault::{Bound, Vault, VaultError};

pub use ending::{ACCOUNT_TAKEN, Ending};

use between::{Between, Step};
use client::{PERMIT_WAIT_MAX, TokenClient, permit_scope, throttled};
use closing::Closing;
use refresh::{Refreshed, Renewing, Why};
use spill::Spills;

/// The longest that [`Auth::access_token`] waits for a refresh: one exchange of ours, or somebody else's open one.
pub const ACCESS_WAIT_MAX: Duration = Duration::from_secs(65);
/// How often a waiting caller looks whether somebody else's refresh is done.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What this layer works with.
pub struct Parts {
    pub db: Db,
    pub vault: Arc<Vault>,
    pub http: Client,
    pub settings: Arc<Settings>,
    pub clock: Arc<dyn Clock>,
    /// Of this process: what its open refreshes are known by.
    pub daemon: Uuid,
    /// For people: where an open refresh of a dead daemon was.
    pub host: String,
    /// Exchanges run here: nothing but their end stops them, and shutdown waits for it.
    pub tasks: TaskTracker,
    /// Where replies of token endpoints are kept.
    pub spills: Arc<Spills>,
    /// For tests; nothing otherwise.
    pub between: Between,
}

/// The grants of all connections. Clones share everything.
#[derive(Clone)]
pub struct Auth {
    parts: Arc<Parts>,
    closing: Closing,
    renewing: Renewing,
}

impl Deref for Auth {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// What a request to a provider carries.
#[derive(Debug, Clone)]
pub struct Access {
    /// The secrets that it carries, and where.
    pub credentials: Vec<(Placement, Secret)>,
    /// Which token it is: for [`Auth::replace`] and [`Auth::doubt`].
    pub generation: i64,
    grant: Uuid,
    /// `None`: unknown, or it does not expire.
    pub expires_at: Option<DateTime<Utc>>,
    issued_at: DateTime<Utc>,
}

impl Access {
    /// Whether a request may still leave with it: for callers that keep one for a while.
    pub fn is_usable(&self, now: DateTime<Utc>) -> bool {
        policy::is_usable(self.issued_at, self.expires_at, now)
    }
}

/// A connection with its token.
pub(crate) struct Standing {
    pub connection: Connection,
    pub token: Option<Token>,
}

impl Auth {
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), closing: Closing::default(), renewing: Renewing::default() }
    }

    /// The same grants under other settings. Whoever works with these here ends with them.
    pub fn with_settings(&self, settings: Arc<Settings>) -> Self {
        let Parts { db, vault, http, clock, daemon, host, tasks, spills, between, .. } = &*self.parts;
        let parts = Parts {
            db: db.clone(),
            vault: Arc::clone(vault),
            http: http.clone(),
            settings,
            clock: Arc::clone(clock),
            daemon: *daemon,
            host: host.clone(),
            tasks: tasks.clone(),
            spills: Arc::clone(spills),
            between: between.clone(),
        };
        Self { parts: Arc::new(parts), closing: self.closing.clone(), renewing: self.renewing.clone() }
    }

    /// Returns when no exchange is under way any more; after `deadline`, as soon as no reply is in this process alone. A
    /// reply that is kept, and that a database without a word does not take, is the next daemon's to write down. New
    /// exchanges are still let in: jobs are stopped before.
    pub async fn drained(&self, deadline: Deadline) {
        self.tasks.close();
        let given_up = async {
            deadline.passed().await;
            while self.spills.is_any_at_risk() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            biased;
            () = self.tasks.wait() => {}
            () = given_up => {
                warn!("Exchanges of tokens that cannot come to their end are left: what was granted is kept");
            }
        }
    }

    /// Whether an exchange is under way: after the grace of [`Auth::close_within`], one whose tokens are in hand and
    /// nowhere else.
    pub fn is_exchanging(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// A token for requests that leave now. Refreshes where less than `min(30 s, 20 %)` of its life is left, and waits
    /// for that, at most [`ACCESS_WAIT_MAX`], holding no database connection. Keys are returned as they are.
    ///
    /// # Errors
    /// `NeedsReauth`: a person must consent again, or the connection is not connected. `Misconfigured`: our client is
    /// refused. Anything else passes.
    pub async fn access_token(&self, connection: ConnectionId) -> Result<Access, Failure> {
        self.access(connection, None).await
    }

    /// A token other than `refused`, which the provider did not take. A key that is refused is probed: one that works
    /// is returned again, since the refusal was then about the request.
    ///
    /// # Errors
    /// As [`Auth::access_token`].
    pub async fn replace(&self, connection: ConnectionId, refused: &Access) -> Result<Access, Failure> {
        self.access(connection, Some(refused.generation)).await
    }

    async fn access(&self, id: ConnectionId, mut refused: Option<i64>) -> Result<Access, Failure> {
        let deadline = Deadline::after(ACCESS_WAIT_MAX);
        loop {
            let Standing { connection, token } = self.standing(id).await?;
            let token = live(&connection, token)?;
            if self.is_good(&token, refused) {
                self.between.at(id, Step::Using).await;
                let access = self.open_access(&connection, &token).await;
                if let Err(failure) = &access {
                    self.note_unopened(&connection, &token, failure).await?;
                }
                return access;
            }
            // Others that need it see at once that it is due; the exchange itself is excluded against theirs.
            let (generation, now) = (token.generation, self.clock.now());
            self.db(move |conn| tokens::make_due(conn, id, generation, now)).await?;
            let pause = match self.refresh(id, Why::Needed { refused }).await? {
                Refreshed::Renewed => {
                    if is_key(connection.grant) {
                        refused = None;
                    }
                    Duration::ZERO
                }
                Refreshed::Busy { wait } => wait.min(LOOK_EVERY),
                Refreshed::Later { reason, .. } => return Err(reason),
            };
            if deadline.left().is_zero() {
                return Err(Failure::transient(format!(
                    "the token of `{}` is being refreshed elsewhere, and that takes long",
                    connection.name
                )));
            }
            tokio::time::sleep(pause.min(deadline.left())).await;
        }
    }

    /// Puts on record, once, that what is sealed does not open in its row. It is not used; the next refresh that goes
    /// well brings other values.
    async fn note_unopened(
        &self,
        connection: &Connection,
        token: &Token,
        failure: &Failure,
    ) -> Result<(), Failure> {
        if failure.kind != FailureKind::OurBug {
            return Ok(());
        }
        let (id, daemon, grant, generation) = (connection.id, self.daemon, token.grant_id, token.generation);
        let (text, kind) = (failure.message.clone(), failure.kind.label());
        let noted = self.transaction(move |conn| {
            connections::lock(conn, id)?;
            let noted = tokens::unusable(conn, id, (grant, generation), &text, kind)?;
            if noted {
                let entry = audit::Entry {
                    connection: Some(id),
                    event: "open",
                    outcome: "refused",
                    detail: Some(&text),
                    daemon,
                };
                audit::write(conn, &entry)?;
            }
            Ok(noted)
        });
        if noted.await? {
            let name = &connection.name;
            error!(connection.id = id.0, connection.name = name, error = %failure,
                "The token of `{name}` cannot be used: {failure}");
        }
        Ok(())
    }

    fn is_good(&self, token: &Token, refused: Option<i64>) -> bool {
        refused != Some(token.generation)
            && policy::is_usable(token.issued_at, token.expires_at, self.clock.now())
    }

    async fn open_access(&self, connection: &Connection, token: &Token) -> Result<Access, Failure> {
        let spec = grant_spec(connection)?;
        let secrets = match spec.headers {
            [] => BTreeMap::new(),
            _ => self.open_secrets(connection.id).await?,
        };
        let credential = self.open(connection.id, token.grant_id, ACCESS_COLUMN, &token.access_sealed)?;
        Ok(Access {
            credentials: credentials(spec, credential, &secrets)?,
            generation: token.generation,
            grant: token.grant_id,
            expires_at: token.expires_at,
            issued_at: token.issued_at,
        })
    }

    pub(crate) async fn standing(&self, id: ConnectionId) -> Result<Standing, Failure> {
        self.db(move |conn| {
            Ok(Standing { connection: connections::get(conn, id)?, token: tokens::load(conn, id)? })
        })
        .await
    }

    /// [`Db::run`], its error as a failure.
    pub(crate) async fn db<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut crate::db::PgConnection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, Failure> {
        self.db.run(work).await.map_err(|error| Failure::from(&error))
    }

    /// [`Db::transaction`], its error as a failure.
    pub(crate) async fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut crate::db::PgConnection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, Failure> {
        self.db.transaction(work).await.map_err(|error| Failure::from(&error))
    }

    /// Runs `work` in a task that goes on when the caller is gone, and that shutdown waits for.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        match self.tasks.spawn(work.in_current_span()).await {
            Ok(done) => done,
            // A panic's own text may quote anything; its hook has logged where it was.
            Err(_) => Err(Failure::bug("an exchange of tokens broke off")),
        }
    }

    pub(crate) fn seal(
        &self,
        connection: ConnectionId,
        grant: Uuid,
        column: &str,
        plain: &Secret,
    ) -> Vec<u8> {
        self.vault.seal(plain.expose().as_bytes(), &Bound { connection, grant, column })
    }

    pub(crate) fn open(
        &self,
        connection: ConnectionId,
        grant: Uuid,
        column: &str,
        sealed: &[u8],
    ) -> Result<Secret, Failure> {
        let plain = self.vault.open(sealed, &Bound { connection, grant, column }).map_err(unopened)?;
        text(plain)
    }

    /// The settings of a provider that is enabled.
    pub(crate) fn provider(&self, name: &str) -> Result<(&'static dyn Provider, &ProviderSettings), Failure> {
        let provider = providers::provider(name);
        match (provider, self.settings.providers.get(name)) {
            (Some(provider), Some(settings)) if settings.enabled => Ok((provider, settings)),
            _ => Err(Failure::new(
                FailureKind::Misconfigured,
                format!("the provider `{name}` is not enabled: see `providers.{name}.enabled`"),
            )),
        }
    }
}

/// Columns that sealed values are bound to.
pub(crate) const ACCESS_COLUMN: &str = "tokens.access_sealed";
pub(crate) const REFRESH_COLUMN: &str = "tokens.refresh_sealed";
pub(crate) const VERIFIER_COLUMN: &str = "authorization_attempts.verifier_sealed";

/// The column that the secret of that name is bound to.
pub(crate) fn secret_column(name: &str) -> String {
    format!("secrets.sealed/{name}")
}

/// The token of a connection whose grant is in force.
fn live(connection: &Connection, token: Option<Token>) -> Result<Token, Failure> {
    let in_force = matches!(connection.state, ConnectionState::Connected | ConnectionState::NeedsReauth);
    match token {
        Some(token) if in_force => Ok(token),
        _ => Err(Failure::new(
            FailureKind::NeedsReauth,
            format!("connection `{}` has no grant: it is `{}`", connection.name, connection.state.as_str()),
        )),
    }
}

/// Whether the credential is not exchanged for tokens.
pub(crate) fn is_key(grant: GrantKind) -> bool {
    matches!(grant, GrantKind::ApiKey | GrantKind::BearerToken)
}

/// The secrets that a request carries: the credential itself, and what its kind of grant adds.
pub(crate) fn credentials(
    spec: &GrantSpec,
    credential: Secret,
    secrets: &BTreeMap<String, Secret>,
) -> Result<Vec<(Placement, Secret)>, Failure> {
    let mut all = vec![(spec.placement, credential)];
    for (header, name) in spec.headers {
        let secret = secrets.get(*name).cloned().ok_or_else(|| {
            Failure::new(
                FailureKind::Misconfigured,
                format!("the secret `{name}` of the connection is missing"),
            )
        })?;
        all.push((Placement { header, prefix: "" }, secret));
    }
    Ok(all)
}

fn grant_spec(connection: &Connection) -> Result<&'static GrantSpec, Failure> {
    providers::provider(&connection.provider)
        .and_then(|provider| provider.spec().grant(connection.grant))
        .ok_or_else(|| {
            Failure::bug(format!(
                "{} is not known to take the grant `{}`",
                connection.provider,
                connection.grant.as_str()
            ))
        })
}

/// A sealed value that does not open: a key is missing, or the row was tampered with. The text holds no value.
pub(crate) fn unopened(error: VaultError) -> Failure {
    let kind = match error {
        VaultError::UnknownKey { .. } => FailureKind::Misconfigured,
        _ => FailureKind::OurBug,
    };
    Failure::new(kind, error.to_string())
}

pub(crate) fn text(plain: Zeroizing<Vec<u8>>) -> Result<Secret, Failure> {
    std::str::from_utf8(&plain)
        .map(Secret::from)
        .map_err(|_| Failure::bug("a sealed value does not hold text"))
}
