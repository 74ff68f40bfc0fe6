//! Four daemons as processes of their own, with a folder each, on one database, and tokens that live five seconds: no
//! refresh token is used twice, and no request leaves with a token that has run out.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use fieldmirror::sandbox::SandboxOptions;
use tokio::process::{Child, Command};

use crate::support::app::{TestApp, free_address, small};
use crate::{Plan, say};

const DAEMONS: usize = 4;
const LIFE: Duration = Duration::from_secs(5);
const SAY_EVERY: Duration = Duration::from_mins(1);

pub async fn run(plan: Plan) -> Result<(), String> {
    let options = SandboxOptions { access_token_life: LIFE, ..small(100) };
    let app = TestApp::new(options, &[]).await;
    app.faults(&["rotate", "revoke_replayed"]);
    let daemons: Vec<Child> = (0..DAEMONS).map(|number| spawn(&app, number)).collect();
    app.mirrored("acme").await;
    let (began, mut said) = (Instant::now(), Instant::now());
    while began.elapsed() < plan.lasts {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if said.elapsed() > SAY_EVERY {
            said = Instant::now();
            say(&format!(
                "  {:.0} s: {} refreshes",
                began.elapsed().as_secs_f64(),
                app.asked("token_refresh")
            ));
        }
    }
    let alive = app
        .number("SELECT count(*) FROM fieldmirror.daemons WHERE last_seen_at > now() - interval '30 s'")
        .await;
    for mut daemon in daemons {
        daemon.kill().await.map_err(|error| error.to_string())?;
    }
    let counters = app.sandbox.control().counters();
    let issued = counters["refresh_tokens"]["hubspot"].as_array().cloned().unwrap_or_default();
    let sum = |key: &str| issued.iter().filter_map(|token| token[key].as_i64()).sum::<i64>();
    let twice = issued.iter().filter(|token| token["redeemed"].as_i64() > Some(1)).count();
    let polls = app.number("SELECT count(*) FROM mirror.sync_runs WHERE outcome = 'closed'").await;
    let refused = counters["unauthorised"].as_i64().unwrap_or(-1);
    let found = format!(
        "{DAEMONS} daemons ({alive} alive), {:.0} s: {} refreshes, {} replays, {twice} tokens used twice, {polls} walks, {refused} \
         requests with a token that had run out",
        began.elapsed().as_secs_f64(),
        sum("redeemed"),
        sum("replays"),
    );
    let well = sum("replays") == 0 && twice == 0 && refused == 0 && sum("redeemed") > 5;
    if well && usize::try_from(alive) == Ok(DAEMONS) {
        say(&found);
        return Ok(());
    }
    Err(found)
}

fn spawn(app: &TestApp, number: usize) -> Child {
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    let state = app.folder.join(format!("state-{number}")).display().to_string();
    own.insert("FIELDMIRROR_DAEMON__STATE_DIR".to_owned(), state);
    if number > 0 {
        own.insert("FIELDMIRROR_CALLBACK__LISTEN".to_owned(), free_address());
    }
    let mut command: Command = app.program("run");
    command.envs(own).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}
