//! The private server: lives, comes back, and ends, however it is treated.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diesel::RunQueryDsl;
use diesel::sql_types::{Integer, Text};
use fieldmirror::daemon::postgres::{
    Health, PrivateServer, PrivateServerError as Error, psql_line, socket_url,
};
use fieldmirror::db::{Db, DbError, admin, rows};

use crate::support::postgres::{options, short_folder};

const PATIENCE: Duration = Duration::from_mins(3);
const PAUSE: Duration = Duration::from_millis(50);

/// A folder that goes with the test.
struct StateDir(PathBuf);

impl StateDir {
    fn new(label: &str) -> Self {
        Self(short_folder(label))
    }

    fn start(&self) -> Result<PrivateServer, Error> {
        PrivateServer::start_blocking(options(&self.0))
    }

    /// The processes that work in the data folder.
    fn processes(&self) -> Vec<i32> {
        let data = self.0.join("postgres/data");
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data))
            .collect()
    }

    /// `None` while none has said so.
    fn postmaster(&self) -> Option<i32> {
        let pid = std::fs::read_to_string(self.0.join("postgres/data/postmaster.pid")).ok()?;
        pid.lines().next()?.parse().ok()
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(PAUSE);
    }
}

fn kill(signal: &str, pid: i32) {
    let status = Command::new("kill").arg(signal).arg(pid.to_string()).status().unwrap();
    assert!(status.success(), "kill {signal} {pid}");
}

async fn count(db: &Db) -> Result<i32, DbError> {
    let query = "SELECT count(*)::int4 AS value FROM public.kept";
    db.run(move |connection| rows::value::<Integer, i32, _>(connection, diesel::sql_query(query))).await
}

async fn execute(db: &Db, statement: &'static str) {
    db.run(move |connection| Ok(diesel::sql_query(statement).execute(connection)?)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_recovers_stops_and_serves_again() {
    let state = StateDir::new("life");
    let server = state.start().unwrap();
    assert_eq!(server.health(), Health::Serving);
    assert_eq!(server.url(), socket_url(&state.0), "commands look where the daemon serves");
    assert!(psql_line(&state.0).starts_with(&format!("psql -h {}/postgres/run ", state.0.display())));
    let db = Db::connect(&server.url(), 2).unwrap();
    execute(&db, "CREATE TABLE public.kept AS SELECT 1 AS one").await;

    let killed = state.postmaster().unwrap();
    kill("-KILL", killed);
    eventually("a new postmaster serves", || {
        server.health() == Health::Serving
            && state.postmaster().is_some_and(|pid| pid != killed && state.processes().contains(&pid))
    });
    assert_eq!(count(&db).await.unwrap(), 1, "the pool finds the new server by itself");

    server.stop().await;
    assert_eq!(state.processes(), Vec::<i32>::new());
    assert_eq!(count(&db).await.unwrap_err().kind(), fieldmirror::domain::failure::FailureKind::Transient);

    let again = state.start().unwrap();
    assert_eq!(count(&db).await.unwrap(), 1, "the data is still there");
    again.stop().await;
}

#[tokio::test]
async fn is_unprivileged_utf8_and_without_tcp() {
    let state = StateDir::new("shape");
    let server = state.start().unwrap();
    let db = Db::connect(&server.url(), 1).unwrap();
    let query = "SELECT concat_ws(' ', current_setting('listen_addresses'), current_setting('server_encoding'), \
                 current_setting('search_path'), current_database(), current_user) AS value";
    let answer =
        db.run(move |connection| rows::value::<Text, String, _>(connection, diesel::sql_query(query))).await;
    assert_eq!(answer.unwrap(), " UTF8 fieldmirror fieldmirror fieldmirror");

    let pid = state.postmaster().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    assert!(uids.split_whitespace().all(|uid| uid != "0"), "{uids}");
    for folder in ["data", "run", "log"] {
        let mode = std::fs::metadata(state.0.join("postgres").join(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{folder}");
    }
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("CARGO"), "our environment reached the server");
    server.stop().await;
}

#[test]
fn a_second_daemon_on_the_same_folder_is_refused() {
    let state = StateDir::new("twice");
    let server = state.start().unwrap();
    let refusal = state.start().unwrap_err();
    assert!(matches!(&refusal, Error::Locked { holder, .. } if *holder == std::process::id().to_string()));
    admin::ping(&server.url()).expect("the first goes on");
    server.stop_blocking();
    state.start().expect("the lock is gone with its holder").stop_blocking();
}

#[test]
fn a_pid_file_whose_number_now_belongs_to_another_process_is_no_obstacle() {
    let state = StateDir::new("stale");
    state.start().unwrap().stop_blocking();
    // As after a power cut: the file is there, and its number is that of a living process.
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let content = format!("{}\n{}/postgres/data\n1\n5432\n", bystander.id(), state.0.display());
    std::fs::write(state.0.join("postgres/data/postmaster.pid"), content).unwrap();
    let server = state.start();
    let untouched = bystander.try_wait().unwrap().is_none();
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    server.unwrap().stop_blocking();
    assert!(untouched, "the bystander was hit");
}

#[test]
fn a_server_that_somebody_left_running_is_replaced() {
    let state = StateDir::new("orphan");
    let server = state.start().unwrap();
    let program = std::fs::read_link(format!("/proc/{}/exe", state.postmaster().unwrap())).unwrap();
    server.stop_blocking();
    let mut orphan = bare_server(&program, &state.0);
    eventually("the orphan runs", || {
        std::fs::read_to_string(state.0.join("postgres/data/postmaster.pid"))
            .is_ok_and(|text| text.contains("ready"))
    });
    let left = state.postmaster().unwrap();
    let server = state.start().unwrap();
    assert_ne!(state.postmaster(), Some(left));
    orphan.wait().unwrap();
    server.stop_blocking();
}

/// A server on our data that we do not supervise, as the data's owner.
fn bare_server(program: &Path, state_dir: &Path) -> Child {
    let data = state_dir.join("postgres/data");
    let owner = std::fs::metadata(&data).unwrap();
    let mut command = Command::new(program);
    command.arg("-D").arg(&data).arg("-k").arg(state_dir.join("postgres/run"));
    command.args(["-c", "listen_addresses="]).current_dir("/");
    if we_are_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn we_are_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Set for the process that plays the daemon: its state directory.
const ROLE: &str = "FIELDMIRROR_TEST_PLAY_DAEMON";

#[test]
#[expect(clippy::disallowed_methods, reason = "how this test tells its second process what to play")]
fn ends_with_its_daemon_however_that_ends() {
    if let Some(state_dir) = std::env::var_os(ROLE) {
        let _server = PrivateServer::start_blocking(options(Path::new(&state_dir))).unwrap();
        std::thread::sleep(PATIENCE * 2);
        return;
    }
    let state = StateDir::new("parent");
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "private_server::ends_with_its_daemon_however_that_ends"])
        .env(ROLE, &state.0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the daemon's server serves", || admin::ping(&socket_url(&state.0)).is_ok());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    eventually("the server is gone", || state.processes().is_empty());
    // The next daemon finds everything in order.
    state.start().unwrap().stop_blocking();
}

#[test]
fn a_folder_that_the_server_may_not_enter_is_named() {
    if !we_are_root() {
        // Only root runs the server as somebody else; everybody else may enter what is theirs.
        return;
    }
    let state = StateDir::new("closed");
    std::fs::set_permissions(&state.0, std::fs::Permissions::from_mode(0o700)).unwrap();
    let inner = state.0.join("state");
    let refusal = PrivateServer::start_blocking(options(&inner)).unwrap_err();
    assert!(matches!(&refusal, Error::Unreachable { path, .. } if *path == state.0), "{refusal}");
}
