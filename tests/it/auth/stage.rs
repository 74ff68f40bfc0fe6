//! One refresh in which the process dies, and what must hold afterwards: for the matrix, and for the torture.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fieldmirror::auth::Auth;
use fieldmirror::auth::between::{Between, Step};
use fieldmirror::auth::refresh::{Refreshed, Why};
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::domain::ids::ConnectionId;
use tokio::sync::Notify;

use super::fake::{Answer, Fake, Rotation};
use super::rig::{Host, Rig};

/// What becomes of the first request to the token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    Arrives,
    /// The provider acts, and its reply breaks off.
    Lost,
    /// The provider does not act, and its reply breaks off.
    Unseen,
}

impl Reply {
    pub const ALL: [Self; 3] = [Self::Arrives, Self::Lost, Self::Unseen];
}

/// A refresh in which the process dies at a step.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    pub step: Step,
    pub rotation: Rotation,
    pub reply: Reply,
}

impl Crash {
    /// Whether the provider still honours a refresh token that outlived the process: then the grant must be kept, and
    /// otherwise nobody can keep it.
    pub fn survives(self) -> bool {
        // The old token is good as well, or the new one is the old one.
        let forgiving = matches!(self.rotation, Rotation::Never | Rotation::Graceful);
        forgiving
            || match (self.step, self.reply) {
                // Acted on, and the reply was on its way or in memory when the process died.
                (_, Reply::Lost) | (Step::Sent, Reply::Arrives) | (Step::Replied, _) => false,
                // Not acted on when the process died, or kept.
                _ => true,
            }
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dies at {:?}, rotation {:?}, reply {:?}", self.step, self.rotation, self.reply)
    }
}

/// A process that ends the first time it comes to that step.
pub fn dies_at(step: Step) -> Between {
    Between::steps(move |_, at| {
        Box::pin(async move {
            if at == step {
                die();
            }
            Duration::ZERO
        })
    })
}

/// The same; at [`Step::Sent`] once the provider has the request, and with its answer held back, so that it does not overtake
/// the death.
pub fn dies_when_seen(fake: &Fake, step: Step) -> Between {
    let (fake, before) = (fake.clone(), fake.count("refresh_token"));
    if step == Step::Sent {
        fake.hold();
    }
    Between::steps(move |_, at| {
        let fake = fake.clone();
        Box::pin(async move {
            if at == step {
                if step == Step::Sent {
                    fake.until_asked("refresh_token", before + 1).await;
                }
                fake.let_go();
                die();
            }
            Duration::ZERO
        })
    })
}

/// Ends the task without a word: a panic would be logged.
fn die() -> ! {
    std::panic::resume_unwind(Box::new("the process died"))
}

/// What a test does at one step.
pub fn at_step<F>(step: Step, deed: impl Fn() -> F + Send + Sync + 'static) -> Between
where
    F: Future<Output = Duration> + Send + 'static,
{
    let deed = Arc::new(deed);
    Between::steps(move |_, at| {
        let deed = Arc::clone(&deed);
        Box::pin(async move { if at == step { deed().await } else { Duration::ZERO } })
    })
}

/// A process that stands still at a step until it is told to go on.
#[derive(Clone, Default)]
pub struct Frozen {
    froze: Arc<Notify>,
    thaws: Arc<Notify>,
}

impl Frozen {
    /// Stands still at `step`, and has lost `lost` afterwards. At [`Step::Sent`] the provider has the request by then, and
    /// its answer waits for the process to go on.
    pub fn at(&self, fake: &Fake, step: Step, (grant_type, lost): (&'static str, Duration)) -> Between {
        let (frozen, fake, before) = (self.clone(), fake.clone(), fake.count(grant_type));
        if step == Step::Sent {
            fake.hold_one();
        }
        at_step(step, move || {
            let (frozen, fake) = (frozen.clone(), fake.clone());
            async move {
                if step == Step::Sent {
                    fake.until_asked(grant_type, before + 1).await;
                }
                frozen.froze.notify_one();
                frozen.thaws.notified().await;
                fake.let_go();
                lost
            }
        })
    }

    pub async fn until_it_stands_still(&self) {
        self.froze.notified().await;
    }

    pub fn go_on(&self) {
        self.thaws.notify_one();
    }
}

/// The daemon is started again: what it does before it works.
pub async fn start_again(rig: &Rig, state: &Path) -> Auth {
    let auth = rig.daemon_at(Host { name: "host", state, between: Between::default() });
    let left = auth.replay().await.expect("the folder and the database go along");
    auth.follow_up(left).await;
    auth
}

/// Nobody waits for real: open refreshes have held for their minute.
pub async fn let_attempts_pass(rig: &Rig) {
    rig.execute("UPDATE fieldmirror.refresh_attempts SET blocked_until = clock_timestamp()").await;
}

/// Lets a process die in a refresh of `id`, starts the daemon again, and looks whether what must hold holds. The error
/// says what does not.
pub async fn crash(rig: &Rig, id: ConnectionId, crash: Crash) -> Result<(), String> {
    rig.fake.forget_answers();
    match crash.reply {
        Reply::Arrives => {}
        Reply::Lost => rig.fake.then([Answer::Lost]),
        Reply::Unseen => rig.fake.then([Answer::Unseen]),
    }
    let before = rig.token(id).await.generation;
    let between = dies_when_seen(&rig.fake, crash.step);
    let dying = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
    let refreshed = dying.refresh(id, Why::Asked).await;
    let died = if crash.step == Step::Using {
        tokio::spawn(async move { dying.access_token(id).await.map(drop) }).await.is_err()
    } else {
        refreshed.is_err()
    };
    let survives = crash.survives();
    let reaches = crash.reply != Reply::Lost || survives;
    if reaches && !died {
        return Err(format!("the process was to die: {refreshed:?}"));
    }
    let_attempts_pass(rig).await;
    let auth = start_again(rig, rig.state.path()).await;
    let refreshed = auth.refresh(id, Why::Asked).await;
    let connection = rig.connection(id).await;
    if !survives {
        let reason = connection.reason.unwrap_or_default();
        let cause = if crash.reply == Reply::Lost && crash.step != Step::Sent {
            "was lost"
        } else {
            "was interrupted"
        };
        let told = connection.state == ConnectionState::NeedsReauth
            && reason.contains("grant is dead")
            && reason.contains(cause);
        return if told { Ok(()) } else { Err(format!("{:?}: {reason}; {refreshed:?}", connection.state)) };
    }
    let again = auth.refresh(id, Why::Asked).await;
    let generation = rig.token(id).await.generation;
    let kept = connection.state == ConnectionState::Connected
        && refreshed == Ok(Refreshed::Renewed)
        && again == Ok(Refreshed::Renewed)
        && generation >= before + 2;
    let open = rig.count("SELECT count(*) AS value FROM fieldmirror.refresh_attempts").await;
    if kept && open == 0 {
        return Ok(());
    }
    Err(format!(
        "lost: {:?} ({:?}), {refreshed:?}, {again:?}, generation {before} to {generation}, {open} open",
        connection.state, connection.reason
    ))
}

/// Takes a connection out of the way of others: deaths that come together are not believed.
pub async fn put_away(rig: &Rig, id: ConnectionId) {
    rig.auth.forget_spills(id).await.expect("files can be removed");
    rig.execute(
        "UPDATE fieldmirror.connections SET state = 'disconnected', grant_id = NULL WHERE state <> 'disconnected'",
    )
    .await;
    rig.execute("DELETE FROM fieldmirror.tokens").await;
    rig.execute("DELETE FROM fieldmirror.refresh_attempts").await;
    rig.execute("DELETE FROM fieldmirror.rate_budget").await;
}
