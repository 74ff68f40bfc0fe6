//! A Postgres server of the tests' own, which ends when the process does.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, PgConnection};
use fieldmirror::domain::secret::Secret;
use tempfile::TempDir;

const START_WAIT: Duration = Duration::from_secs(30);
const UP: [&str; 2] = [
    include_str!("../../migrations/2026-11-21-000001_foundations/up.sql"),
    include_str!("../../migrations/2026-11-21-000002_queue/up.sql"),
];

pub struct Server {
    /// Off for tests, on for benchmarks.
    fsync: bool,
    dir: TempDir,
    bin: PathBuf,
    user: Option<(u32, u32)>,
    child: Option<Child>,
}

/// The server that most tests share.
pub fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| Server::start(false))
}

impl Server {
    pub fn start(fsync: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let user = unprivileged(dir.path());
        if let Some((uid, gid)) = user {
            chown(dir.path(), Some(uid), Some(gid)).expect("handing over the directory");
        }
        let mut server = Self { fsync, dir, bin: bin(), user, child: None };
        let mut initdb = server.command("initdb");
        initdb
            .args(["-A", "trust", "-U", "fieldmirror", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(server.data());
        let output = initdb.output().expect("initdb");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        server.run();
        let mut admin = PgConnection::establish(server.url("postgres").expose()).expect("connecting");
        admin.batch_execute("CREATE DATABASE fresh").expect("creating the template");
        let mut fresh = PgConnection::establish(server.url("fresh").expose()).expect("connecting");
        fresh.batch_execute("CREATE SCHEMA fieldmirror").expect("creating the schema");
        for sql in UP {
            fresh.batch_execute(sql).expect("migrating");
        }
        server
    }

    /// A migrated database of its own.
    pub fn database(&self) -> Secret {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut admin = PgConnection::establish(self.url("postgres").expose()).expect("connecting");
        admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE fresh")).expect("creating a database");
        self.url(&name)
    }

    /// Starts the server. A shell stands in between, which stops it when our end of the pipe closes: so no server is left
    /// behind, however this process ends.
    pub fn run(&mut self) {
        let script =
            r#"postgres="$1"; shift; "$postgres" "$@" & trap '' INT; cat >/dev/null; kill -INT $!; wait"#;
        let mut command = self.command("/bin/sh");
        command.args(["-c", script, "sh"]).arg(self.bin.join("postgres")).arg("-D").arg(self.data());
        command.arg("-k").arg(self.dir.path()).args(["-h", "", "-c", "max_connections=300"]);
        command.args(["-c", if self.fsync { "fsync=on" } else { "fsync=off" }]);
        let log = fs::File::create(self.dir.path().join("log")).expect("a log file");
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("a log file")).stderr(log);
        self.child = Some(command.spawn().expect("starting postgres"));
        let deadline = Instant::now() + START_WAIT;
        while PgConnection::establish(self.url("postgres").expose()).is_err() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "postgres did not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A fast shutdown: sessions are cut off, nothing is lost.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            child.wait().expect("waiting for postgres");
        }
    }

    fn url(&self, database: &str) -> Secret {
        Secret::new(format!("postgresql:///{database}?host={}&user=fieldmirror", self.dir.path().display()))
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command.current_dir(self.dir.path()).process_group(0);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Postgres refuses to run as root: then it runs as `postgres` or `nobody`. None when we are not root.
fn unprivileged(ours: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    if fs::metadata(ours).expect("our directory").uid() != 0 {
        return None;
    }
    fs::set_permissions(ours, fs::Permissions::from_mode(0o700)).expect("permissions");
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let entry = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2);
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    Some(entry("postgres").or_else(|| entry("nobody")).expect("an unprivileged user"))
}

/// Where the server's programs are: Debian keeps them out of PATH.
fn bin() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
    found.sort();
    found.pop().unwrap_or_else(|| {
        let output = Command::new("sh")
            .args(["-c", "dirname $(command -v initdb)"])
            .output()
            .expect("looking for initdb");
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    })
}
