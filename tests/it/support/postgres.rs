//! A database for every test: a copy of a migrated template, on one private server for the whole test process.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, PgConnection};
use fieldmirror::daemon::postgres::{Durability, Options, PrivateServer};
use fieldmirror::db::{Db, admin, migrations};
use fieldmirror::domain::secret::Secret;

const TEMPLATE: &str = "template_migrated";
/// Few: the server takes 60 sessions, and tests run side by side.
const POOL_SIZE: usize = 4;

/// The server of this process. It ends with the process, and its folder is removed then.
pub fn server() -> &'static PrivateServer {
    static SERVER: OnceLock<(PrivateServer, Child)> = OnceLock::new();
    let (server, _cleaner) = SERVER.get_or_init(|| {
        let state_dir = short_folder("shared");
        let cleaner = remove_after_us(&state_dir);
        let server = PrivateServer::start_blocking(options(&state_dir)).expect("a private server starts");
        let template = server.url_of(TEMPLATE);
        admin::create_if_missing(&server.url(), TEMPLATE).expect("a template database is made");
        migrations::run_blocking(&template).expect("migrations apply to the template");
        (server, cleaner)
    });
    server
}

pub fn options(state_dir: &Path) -> Options {
    Options { state_dir: state_dir.into(), pg_bin: None, durability: Durability::None }
}

/// A new folder with a short path, which sockets need, that other users may pass through, which the server needs when
/// the tests run as root.
pub fn short_folder(label: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(format!("/tmp/fieldmirror-test-{}-{number}-{label}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).expect("a folder below /tmp can be made");
    folder
}

/// A shell that waits for our end, however it comes, then for the server's, and then removes the folder: statics are
/// never dropped, and a killed test drops nothing at all. Our end closes the pipe that it reads.
fn remove_after_us(state_dir: &Path) -> Child {
    let script = r#"
        cat
        for _ in $(seq 100); do [ -e "$1/postgres/data/postmaster.pid" ] || break; sleep 0.1; done
        rm -rf "$1""#;
    Command::new("/bin/sh")
        .args(["-c", script, "sh"])
        .arg(state_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("a shell can be started")
}

/// A migrated database of one's own, dropped at the end of the test.
pub struct TestDb {
    name: String,
    pub url: Secret,
    pub db: Db,
}

impl TestDb {
    pub fn new() -> Self {
        let name = fresh_name();
        admin::create_from(&server().url(), &name, TEMPLATE).expect("a database is copied from the template");
        Self::named(name)
    }

    /// Without a schema.
    pub fn empty() -> Self {
        let name = fresh_name();
        admin::create_if_missing(&server().url(), &name).expect("a database is made");
        Self::named(name)
    }

    fn named(name: String) -> Self {
        let url = server().url_of(&name);
        Self::at(name, url)
    }

    /// One on a server that the test looks after itself, migrated by the test.
    pub fn over(url: Secret) -> Self {
        Self::at(fresh_name(), url)
    }

    fn at(name: String, url: Secret) -> Self {
        let db = Db::connect(&url, POOL_SIZE).expect("the server's own address has the right shape");
        Self { name, url, db }
    }
}

impl TestDb {
    /// What takes the database away while it is used.
    pub fn lever(&self) -> Lever {
        Lever { name: self.name.clone() }
    }
}

/// Takes a database away from whoever uses it, and gives it back: to them it looks like a server that went.
#[derive(Clone)]
pub struct Lever {
    name: String,
}

impl Lever {
    pub fn away(&self) {
        Self::tell(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", self.name));
        let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname";
        Self::tell(&format!("{ended} = '{}'", self.name));
    }

    pub fn back(&self) {
        Self::tell(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", self.name));
    }

    fn tell(statement: &str) {
        let mut connection =
            PgConnection::establish(server().url().expose()).expect("the server can be reached");
        connection.batch_execute(statement).expect("the server does it");
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        self.db.close();
        let dropped = admin::drop_database(&server().url(), &self.name);
        if !std::thread::panicking() {
            dropped.expect("the test's database is dropped");
        }
    }
}

fn fresh_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
