//! Whose account a fresh credential belongs to: asked of the provider, which also proves that it works.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tracing::debug;

use super::Auth;
use crate::config::ProviderSettings;
use crate::db::connections::Connection;
use crate::db::rate_budget;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::secret::Secret;
use crate::domain::spec::{GrantKind, Placement, Scope};
use crate::domain::step::{Reply, Request, Verdict};
use crate::domain::time::{Clock, delta};
use crate::http::deadline::Deadline;
use crate::http::oauth::{self, Granted};
use crate::http::pace::Pacer;
use crate::http::{redact, retry};
use crate::providers::{Account, AccountContext, Clues, Provider};

use super::TokenClient;

/// A fresh credential, and the secrets that were handed over with it.
pub(super) struct Credential<'a> {
    pub token: &'a Secret,
    pub secrets: &'a BTreeMap<String, Secret>,
}

/// The account that a credential opens.
pub(super) struct Shown {
    pub account: Account,
    /// What finding that out took of the account's limits.
    pub pacing: Value,
}

/// What providers are told of an account.
pub(super) fn account_context<'a>(
    settings: &'a ProviderSettings,
    connection: &'a Connection,
    now: DateTime<Utc>,
) -> AccountContext<'a> {
    AccountContext {
        grant: connection.grant,
        api_version: &settings.api_version,
        params: &connection.params,
        options: &settings.extra,
        known: connection.account_id.as_deref(),
        now,
    }
}

/// Lets questions to an account's API leave as its limits allow, and hears of the answers.
pub trait Turnstile: Sync {
    /// Waits until `request` may leave.
    fn pass<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<(), Failure>>;
    /// What came back for it.
    fn answered(&self, request: &Request, reply: &Reply);
    /// What came back says that it was one too many for `bucket`, and how long to wait, where it says that. Returns how
    /// long that is at least.
    fn refused(&self, bucket: &'static str, wait: Option<Duration>) -> Duration;
}

/// The limits that questions keep outside of turns.
pub(super) struct Unused<'a> {
    pacer: Mutex<Pacer>,
    clock: &'a dyn Clock,
}

impl Unused<'_> {
    fn lock(&self) -> MutexGuard<'_, Pacer> {
        self.pacer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of them.
    fn pacing(&self) -> Value {
        self.lock().to_saved(self.clock.now())
    }
}

impl Turnstile for Unused<'_> {
    fn pass<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            loop {
                let taken = self.lock().take(self.clock.now(), request.buckets, request.points);
                match taken {
                    Ok(()) => return Ok(()),
                    Err(wait) => tokio::time::sleep(wait).await,
                }
            }
        })
    }

    fn answered(&self, _: &Request, _: &Reply) {}

    fn refused(&self, _: &'static str, wait: Option<Duration>) -> Duration {
        wait.unwrap_or_default().max(UNTOLD_PAUSE)
    }
}

/// How often one question is asked.
const TRIES: u32 = 3;
/// The longest pause between two tries: a person is waiting.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// After a refusal that names none.
const UNTOLD_PAUSE: Duration = Duration::from_secs(1);
/// How long introspection may take: a label is no more worth.
const LABEL_MAX: Duration = Duration::from_secs(20);
/// How long one question may take: ServiceTitan thinks for up to 100 s, Housecall Pro's pages take seconds.
const QUESTION_MAX: Duration = Duration::from_secs(110);
/// How long it may take in all to find out whose account it is: two such questions, within what a job may take.
const PROOF_MAX: Duration = Duration::from_secs(210);
/// Answers that this is found out by.
const ANSWERS_MAX: usize = 40;

impl Auth {
    /// The account that `credential` opens. `granted` is what the token endpoint said; `None` for keys.
    ///
    /// # Errors
    /// `NeedsReauth` when the provider does not take the credential.
    pub(super) async fn prove(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        connection: &Connection,
        credential: &Credential<'_>,
        granted: Option<&Granted>,
    ) -> Result<Shown, Failure> {
        self.answered(self.prove_anyhow(provider, settings, connection, credential, granted)).await?
    }

    /// As [`Auth::prove`], and the daemon's end is not in the way: what was granted is in this process alone.
    pub(super) async fn prove_anyhow(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        connection: &Connection,
        credential: &Credential<'_>,
        granted: Option<&Granted>,
    ) -> Result<Shown, Failure> {
        let unused = self.unused(provider, settings);
        let gate = &unused;
        let asked = Box::pin(self.ask_whose(provider, settings, connection, credential, granted, gate));
        Ok(Shown { account: in_time(provider, asked).await?, pacing: unused.pacing() })
    }

    /// As [`Auth::prove`], within the limits that `gate` keeps.
    pub(super) async fn prove_within(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        connection: &Connection,
        credential: &Credential<'_>,
        gate: &dyn Turnstile,
    ) -> Result<Account, Failure> {
        let asked = Box::pin(self.ask_whose(provider, settings, connection, credential, None, gate));
        self.answered(in_time(provider, asked)).await?
    }

    /// Whose account it is, and whether a turn is asking for it meanwhile, is not known yet: questions keep to the share of
    /// its limits that turns leave.
    pub(super) fn unused(&self, provider: &dyn Provider, settings: &ProviderSettings) -> Unused<'_> {
        let of_turns = 1.0 - self.settings.sync.quota_reserve;
        let pacer = Pacer::of_account(&provider.buckets(&settings.extra), of_turns);
        Unused { pacer: Mutex::new(pacer), clock: self.clock.as_ref() }
    }

    async fn ask_whose(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        connection: &Connection,
        credential: &Credential<'_>,
        granted: Option<&Granted>,
        gate: &dyn Turnstile,
    ) -> Result<Account, Failure> {
        let grant = connection.grant;
        let introspected = match granted {
            Some(_) if grant == GrantKind::AuthorizationCode => {
                self.introspect(provider, settings, credential.token).await
            }
            _ => None,
        };
        let spec = provider.spec().grant(grant).ok_or_else(|| {
            Failure::bug(format!("{} does not know this kind of grant", provider.spec().name))
        })?;
        let credentials = super::credentials(spec, credential.token.clone(), credential.secrets)?;
        let of = account_context(settings, connection, self.clock.now());
        let mut replies = Vec::new();
        for request in provider.identity_requests(&of) {
            replies.push(self.question(provider, settings, &credentials, &request, gate).await?);
        }
        while replies.len() < ANSWERS_MAX
            && let Some(request) = provider.identity_next(&of, &replies)
        {
            replies.push(self.question(provider, settings, &credentials, &request, gate).await?);
        }
        provider.identity(&Clues {
            grant,
            granted: granted.map_or(&Value::Null, |granted| &granted.extra),
            introspected: introspected.as_ref(),
            claims: granted.and_then(|granted| granted.claims.as_ref()),
            params: of.params,
            options: of.options,
            known: of.known,
            replies: &replies,
        })
    }

    /// Introspection gives a better label for the account where it exists; its failure is no harm.
    async fn introspect(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        token: &Secret,
    ) -> Option<Value> {
        let path = provider.spec().introspect_path;
        if path.is_empty() {
            return None;
        }
        let mut url = settings.token_url.clone();
        url.set_path(&format!("{}{path}", url.path().trim_end_matches('/')));
        let client = TokenClient::ours(provider, settings).ok()?;
        let deadline = Deadline::after(LABEL_MAX);
        let asked =
            oauth::introspect(&self.http, &client.endpoint(&url), token, deadline, self.clock.as_ref()).await;
        asked
            .inspect_err(|failure| debug!(provider = provider.spec().name, error = %failure, "Introspection at {} failed: {failure}", provider.spec().title))
            .ok()
    }

    pub(super) async fn question(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        credentials: &[(Placement, Secret)],
        request: &Request,
        gate: &dyn Turnstile,
    ) -> Result<Reply, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            self.take_egress_permits(provider, settings, request).await?;
            // Last: it counts when it leaves.
            gate.pass(request).await?;
            let sent = tokio::time::timeout(
                QUESTION_MAX,
                self.http.send(&settings.api_base, request, credentials, self.clock.as_ref()),
            );
            let (failure, wait) = match sent.await {
                Ok(Ok(reply)) => {
                    gate.answered(request, &reply);
                    let asked = retry::retry_after(&reply, self.clock.now());
                    let asked = asked.map(|asked| asked.min(provider.wait_max(&reply)));
                    match verdict_of(provider, request, &reply, credentials) {
                        Verdict::Accept => return Ok(reply),
                        Verdict::Throttled { bucket, wait_ms } => {
                            let asked = asked.or(wait_ms.map(Duration::from_millis));
                            let wait =
                                self.hears_no(provider, settings, (bucket, asked), tries, gate).await?;
                            (self.in_haste(provider, wait), wait)
                        }
                        verdict => {
                            let (failure, wait) = judged(provider, verdict)?;
                            (failure, asked.or(wait))
                        }
                    }
                }
                Ok(Err(error)) => (Failure::new(error.kind, in_words(provider, &error.message)), None),
                Err(_) => (Failure::transient(in_words(provider, "no answer in time")), None),
            };
            let passes = matches!(failure.kind, FailureKind::Transient | FailureKind::Throttled { .. });
            if tries >= TRIES || !passes || wait.is_some_and(|wait| wait > PAUSE_MAX) {
                return Err(failure);
            }
            let pause = wait.unwrap_or_else(|| retry::pause(tries, PAUSE_FIRST, PAUSE_MAX));
            tokio::time::sleep(pause).await;
        }
    }

    /// Notes a refusal where all look that count together, as those do who send for a walk: what is refused again after a
    /// short pause has hit the limit of the address. Returns how long to wait, where that is told.
    async fn hears_no(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        (bucket, asked): (&'static str, Option<Duration>),
        tries: u32,
        gate: &dyn Turnstile,
    ) -> Result<Option<Duration>, Failure> {
        let shared = provider.buckets(&settings.extra).into_iter().find(|of| of.name == bucket);
        let Some(shared) = shared.filter(|of| of.scope == Scope::Egress) else {
            gate.refused(bucket, asked);
            return Ok(asked);
        };
        let wait = gate.refused(bucket, asked.or((tries > 1).then_some(shared.per)));
        let scope = rate_budget::egress_scope(provider.spec().name, &self.settings.daemon.egress_group);
        self.db(move |conn| rate_budget::refused(conn, &scope, &shared, wait)).await?;
        Ok(Some(wait))
    }

    fn in_haste(&self, provider: &'static dyn Provider, wait: Option<Duration>) -> Failure {
        let until = wait.map(|wait| self.clock.now() + delta(wait));
        Failure::new(FailureKind::Throttled { until }, in_words(provider, "too many requests for now"))
    }
}

/// What a verdict means here that is neither an answer nor a limit: a failure that may pass and the pause asked for, or one
/// that does not pass.
fn judged(provider: &'static dyn Provider, verdict: Verdict) -> Result<(Failure, Option<Duration>), Failure> {
    match verdict {
        Verdict::Retry { wait_ms, why } => Ok((Failure::transient(why), wait_ms.map(Duration::from_millis))),
        Verdict::RefreshToken => {
            Err(Failure::new(FailureKind::NeedsReauth, in_words(provider, "the credential is not accepted")))
        }
        Verdict::Fail(failure) => Err(failure),
        Verdict::Accept | Verdict::Throttled { .. } | Verdict::RestartPaging { .. } => {
            Err(Failure::changed(in_words(provider, "an answer about the account that makes no sense")))
        }
    }
}

/// Who the account is, unless finding out takes too long.
async fn in_time(
    provider: &'static dyn Provider,
    asked: impl Future<Output = Result<Account, Failure>>,
) -> Result<Account, Failure> {
    let late = || Failure::transient(in_words(provider, "it takes too long to find out whose account it is"));
    tokio::time::timeout(PROOF_MAX, asked).await.unwrap_or_else(|_| Err(late()))
}

/// What a provider's answer means, in words that do not quote the credentials which the request carried: providers do.
pub fn verdict_of(
    provider: &dyn Provider,
    request: &Request,
    reply: &Reply,
    credentials: &[(Placement, Secret)],
) -> Verdict {
    let masked = |said: String| redact::values(said, credentials.iter().map(|(_, secret)| secret));
    match provider.judge(request, reply) {
        Verdict::Retry { wait_ms, why } => Verdict::Retry { wait_ms, why: masked(why) },
        Verdict::RestartPaging { why } => Verdict::RestartPaging { why: masked(why) },
        Verdict::Fail(Failure { kind, message }) => Verdict::Fail(Failure { kind, message: masked(message) }),
        verdict @ (Verdict::Accept | Verdict::Throttled { .. } | Verdict::RefreshToken) => verdict,
    }
}

fn in_words(provider: &'static dyn Provider, what: &str) -> String {
    format!("{}: {what}", provider.spec().title)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::step::Body;
    use chrono::DateTime;

    #[test]
    fn an_answer_that_quotes_the_credential_is_masked() {
        let provider = crate::providers::provider("oncehub").expect("it is known");
        let request = Request::get("/v2/bookings".to_owned(), "bookings", &[]);
        let credentials = [(Placement { header: "API-Key", prefix: "" }, Secret::from("abc123"))];
        for status in [400, 403] {
            // The second time it is cut short.
            let said = format!("key abc123 may not do this{}abc123", " ".repeat(169));
            let body = Body::Json(serde_json::json!({ "message": said }));
            let sent_at = DateTime::UNIX_EPOCH;
            let reply = Reply { status, headers: BTreeMap::new(), body, sent_at };
            let verdict = verdict_of(provider, &request, &reply, &credentials);
            let Verdict::Fail(failure) = verdict else { panic!("{status}: {verdict:?}") };
            assert!(failure.message.contains("key [secret] may not"), "{status}: {failure}");
            assert!(failure.message.contains("[secret]…") && !failure.message.contains("abc"), "{failure}");
        }
    }
}
