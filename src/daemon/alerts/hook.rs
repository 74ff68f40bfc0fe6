//! Running the alert program: fixed arguments, an environment without secrets, one object on its standard input, a limit
//! of time that holds for all that it started.

use std::io;
use std::process::{ExitStatus, Stdio};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::config::AlertSettings;

/// Why the program did not take a message. Holds nothing of what it printed: that is its own affair.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("`{program}` could not be started")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` ended with {status}")]
    Refused { program: String, status: ExitStatus },
    #[error("`{program}` did not end within {} (`alerts.timeout`) and was killed", humantime::format_duration(*.limit))]
    TimedOut { program: String, limit: std::time::Duration },
    #[error("`{program}` could not be waited for")]
    Wait {
        program: String,
        #[source]
        source: io::Error,
    },
    /// The daemon stops. Says nothing about the program.
    #[error("the daemon stops")]
    Stopped,
}

/// Runs the program once. It has taken the message when this is `Ok`.
pub async fn run(
    settings: &AlertSettings,
    message: &Value,
    stop: &CancellationToken,
) -> Result<(), HookError> {
    let Some((program, arguments)) = settings.exec.split_first() else { return Ok(()) };
    let name = || program.clone();
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&settings.environment).current_dir("/");
    // Its complaints go where ours go, unread.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|source| HookError::Start { program: name(), source })?;
    let ended = tokio::select! {
        ended = tokio::time::timeout(settings.timeout, tell(&mut child, message)) => ended,
        () = stop.cancelled() => {
            kill_group(&mut child).await;
            return Err(HookError::Stopped);
        }
    };
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(HookError::Refused { program: name(), status }),
        Ok(Err(source)) => Err(HookError::Wait { program: name(), source }),
        Err(_) => {
            kill_group(&mut child).await;
            Err(HookError::TimedOut { program: name(), limit: settings.timeout })
        }
    }
}

async fn tell(child: &mut Child, message: &Value) -> io::Result<ExitStatus> {
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not care to read is judged by how it ends.
        let _ = stdin.write_all(format!("{message}\n").as_bytes()).await;
    }
    child.wait().await
}

/// Ends the program and all that it started.
async fn kill_group(child: &mut Child) {
    // The id is `None` once the process has been waited for: another process may have it by then.
    if let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()) {
        kill(group);
    }
    let _ = child.wait().await;
}

#[expect(unsafe_code, reason = "the standard library kills single processes only")]
fn kill(group: i32) {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    unsafe {
        libc::kill(-group, libc::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;
    use crate::config::Settings;

    fn hook(script: &str, timeout: Duration) -> AlertSettings {
        let exec = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        AlertSettings { exec, timeout, ..Settings::example().alerts }
    }

    async fn check(script: &str, timeout: Duration) -> Result<(), HookError> {
        run(&hook(script, timeout), &json!({ "kind": "test" }), &CancellationToken::new()).await
    }

    /// Shorter than what is left behind would last, and longer than anything takes on a slow machine.
    const PATIENCE: Duration = Duration::from_mins(2);

    #[tokio::test]
    async fn it_gets_one_object_and_no_secrets() {
        check(r#"read line; test "$line" = '{"kind":"test"}' && ! read more"#, PATIENCE).await.unwrap();
        check(r#"test -z "$(env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= -e ^OLDPWD=)""#, PATIENCE)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn only_exit_0_is_told() {
        check("exit 0", PATIENCE).await.expect("it need not read");
        let refused = check("exit 3", PATIENCE).await.unwrap_err();
        assert_eq!(refused.to_string(), "`/bin/sh` ended with exit status: 3");
        let mut missing = hook("", PATIENCE);
        missing.exec = vec!["/nonexistent/hook".to_owned()];
        let missing = run(&missing, &json!({}), &CancellationToken::new()).await.unwrap_err();
        assert!(matches!(missing, HookError::Start { .. }), "{missing}");
    }

    #[tokio::test]
    async fn time_is_limited_for_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 300 & echo $! > {}; wait", file.display());
        // A slow machine may not have begun anything in a second.
        let child = async |limit: Duration| {
            let began = Instant::now();
            let over = check(&script, limit).await.unwrap_err();
            assert!(matches!(over, HookError::TimedOut { .. }) && began.elapsed() < PATIENCE, "{over}");
            std::fs::read_to_string(&file).ok().filter(|child| child.ends_with('\n'))
        };
        let mut left = None;
        for limit in [1, 10, 60].map(Duration::from_secs) {
            if left.is_none() {
                left = child(limit).await;
            }
        }
        assert!(!lives(left.expect("it was started").trim()), "its child was left behind");
    }

    #[tokio::test]
    async fn the_daemons_stop_ends_it() {
        let stop = CancellationToken::new();
        stop.cancel();
        let ended = run(&hook("sleep 300", PATIENCE), &json!({}), &stop).await.unwrap_err();
        assert!(matches!(ended, HookError::Stopped));
    }

    /// A process that has ended but was not waited for by its new parent is no process any more.
    fn lives(id: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) {
            if stat.contains(") Z ") {
                return false;
            }
            if Instant::now() > deadline {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}
