//! What docs/OPERATIONS.md promises: its commands and snippets are those of the product, and its backup restores.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use fieldmirror::config::{self, Purpose, Sources};

use crate::readme::blocks;
use crate::support::not_checked;

const OPERATIONS: &str = include_str!("../../docs/OPERATIONS.md");

#[test]
fn settings_load() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("config/production.example.toml")];
    for (number, block) in blocks(OPERATIONS, "toml").into_iter().enumerate() {
        let path = folder.path().join(format!("{number}.toml"));
        std::fs::write(&path, block).unwrap();
        files.push(path);
    }
    assert!(files.len() >= 2);
    for file in files {
        let sources = Sources { files: vec![file.clone()], purpose: Purpose::Command, ..Sources::none() };
        assert!(config::load(&sources).is_ok(), "{}: {:?}", file.display(), config::load(&sources).err());
    }
}

/// Lines of shell that the installation is tested with, that make it known to systemd, that are run against a database, in
/// whose place the tests have their own, and that need a build, root or a running service manager and are run nowhere.
const INSTALLS: [&str; 6] =
    ["install ", "chmod ", "fieldmirror ", "mv ", "(umask 077; fieldmirror ", "(umask 077; echo "];
const ENABLES: [&str; 2] = ["systemd-sysusers", "systemctl enable "];
const ADMINISTERS: [&str; 4] =
    ["sudo -u postgres createuser ", "sudo -u postgres createdb ", "pg_dump ", "pg_restore "];
const PLACES: [&str; 2] = ["DATABASE_URL=", "RESTORED_URL="];
const NOT_RUN: [&str; 8] = [
    "systemd-run ",
    "cargo build ",
    "systemctl daemon-reload",
    "systemctl start ",
    "systemctl status ",
    "systemctl restart ",
    "chown ",
    "alias ",
];

fn begins(line: &str, words: &[&str]) -> bool {
    words.iter().any(|word| line.starts_with(word))
}

fn chapter(name: &str) -> &'static str {
    let found = OPERATIONS.split("\n## ").find(|chapter| chapter.starts_with(name));
    found.unwrap_or_else(|| panic!("no chapter `{name}`"))
}

#[test]
fn every_line_of_shell_is_known() {
    let all = blocks(OPERATIONS, "sh").join("\n");
    let words = [&INSTALLS[..], &ENABLES, &ADMINISTERS, &PLACES, &NOT_RUN].concat();
    let unknown: Vec<&str> = all.lines().filter(|line| !begins(line, &words)).collect();
    assert_eq!(unknown, Vec::<&str>::new(), "run by no test, and not said to be so");
}

/// The lines of the installation, below a root of the test's own.
#[test]
fn the_installation_leaves_what_the_daemon_starts_with() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    // As on a system: its targets are there.
    let folders =
        ["usr/local/bin", "etc/systemd/system", "usr/lib/sysusers.d", "usr/lib/systemd/system", "built"];
    for folder in folders {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    // Small, in place of a program of hundreds of megabytes.
    let built = root.join("built/fieldmirror");
    std::fs::write(&built, format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_fieldmirror")))
        .unwrap();
    let all = [blocks(chapter("Install"), "sh"), blocks(chapter("Credentials"), "sh")].concat().join("\n");
    let lines: Vec<&str> = all.lines().filter(|line| begins(line, &INSTALLS)).collect();
    assert!(lines.len() >= 8, "{lines:?}");
    let installs = lines.join("\n").replace("target/release/fieldmirror", "$ROOT/built/fieldmirror");
    let script = installs.replace(" /usr/", " $ROOT/usr/").replace(" /etc/", " $ROOT/etc/");
    let sh = |script: &str| {
        let ran = std::process::Command::new("sh")
            .args(["-euc", script])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_clear()
            .env("ROOT", root)
            .env("PATH", format!("{}:/usr/bin:/bin", root.join("usr/local/bin").display()))
            .output()
            .unwrap();
        assert!(ran.status.success(), "{script}\n{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    sh(&script);

    for unit in ["fieldmirror.service", "fieldmirror.socket"] {
        assert!(root.join("etc/systemd/system").join(unit).is_file(), "{unit}");
    }
    std::fs::write(root.join("usr/lib/systemd/system/multi-user.target"), "[Unit]\n").unwrap();
    for line in all.lines().filter(|line| begins(line, &ENABLES)) {
        let (program, rest) = line.split_once(' ').unwrap_or((line, ""));
        if std::process::Command::new(program).arg("--version").output().is_err() {
            not_checked(&format!("`{line}`, since that is not installed"));
            continue;
        }
        sh(&format!("{program} --root=$ROOT {rest}"));
        let user = || std::fs::read_to_string(root.join("etc/passwd")).unwrap().starts_with("fieldmirror:");
        let wanted =
            || root.join("etc/systemd/system/multi-user.target.wants/fieldmirror.service").is_symlink();
        assert!(if program == "systemctl" { wanted() } else { user() }, "{line}");
    }
    let etc = root.join("etc/fieldmirror");
    for (secret, mode) in [("database.url", 0o640), ("vault.key", 0o600)] {
        let found = std::fs::metadata(etc.join(secret)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{secret}");
    }
    // As systemd hands them over, by the unit's lines.
    let sources = Sources {
        system_file: Some(etc.join("fieldmirror.toml")),
        credentials: Some(etc.clone()),
        ..Sources::none()
    };
    let settings = config::load(&sources).unwrap_or_else(|problems| panic!("{problems}")).settings;
    assert_eq!(settings.database.url.unwrap().expose(), "postgres:///fieldmirror?host=/run/postgresql");
    assert!(settings.vault.key.is_some());
    let unit = std::fs::read_to_string(root.join("etc/systemd/system/fieldmirror.service")).unwrap();
    for secret in ["database.url", "vault.key"] {
        assert!(unit.contains(&format!("\nLoadCredential={secret}:/etc/fieldmirror/{secret}\n")), "{secret}");
    }
    // The key is changed: the old one still opens what it sealed, by the place where systemd shows it.
    let changing = chapter("Changing the vault key");
    sh(&blocks(changing, "sh").join("\n").replace(" /etc/", " $ROOT/etc/"));
    let [ini] = blocks(changing, "ini").try_into().expect("a line for the unit");
    assert_eq!(ini, "[Service]\nLoadCredential=vault-1.key:/etc/fieldmirror/vault-1.key");
    let [toml] = blocks(changing, "toml").try_into().expect("a setting");
    let shown = etc.display().to_string();
    std::fs::write(root.join("changed.toml"), toml.replace("/run/credentials/fieldmirror.service", &shown))
        .unwrap();
    let changed =
        config::load(&Sources { files: vec![root.join("changed.toml")], ..sources }).unwrap().settings;
    let old = settings.vault.key.expect("the key of before");
    let [previous] = changed.vault.previous_keys.as_slice() else { panic!("not one previous key") };
    assert_eq!(previous.expose(), old.expose());
    assert_ne!(changed.vault.key.unwrap().expose(), old.expose());

    // As admins' commands find it: by the alias, for which no key is needed.
    std::fs::remove_file(etc.join("vault.key")).unwrap();
    let alias = blocks(chapter("Credentials"), "sh").join("\n");
    let alias = alias.lines().find_map(|line| line.strip_prefix("alias fieldmirror='sudo -u fieldmirror "));
    let line = alias.unwrap().trim_end_matches('\'').replace("=/etc/", "=$ROOT/etc/");
    let shown = sh(&format!("env {line} config --json"));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let url = &shown["settings"]["database"]["url"];
    assert!(url["origin"].as_str().is_some_and(|origin| origin.contains("database.url")), "{url}");

    let documentation = unit.lines().find_map(|line| line.strip_prefix("Documentation=")).unwrap();
    for place in documentation.split_whitespace() {
        let file = match place.strip_prefix("man:").and_then(|page| page.strip_suffix("(1)")) {
            Some(page) => root.join(format!("usr/local/share/man/man1/{page}.1")),
            None => root.join(place.strip_prefix("file:///").expect("a page or a file")),
        };
        assert!(file.metadata().is_ok_and(|found| found.len() > 1000), "{place} is not installed");
    }
}

/// An address that nobody listens on: nginx binds what it is asked to try.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// The proxy leads to where the daemon listens, for what browsers ask for; and it would start, where it is installed.
#[test]
fn reverse_proxies() {
    let chapter = chapter("Reverse proxy");
    let [nginx] = blocks(chapter, "nginx").try_into().expect("one for nginx");
    let [caddy] = blocks(chapter, "caddyfile").try_into().expect("one for Caddy");
    for block in [&nginx, &caddy] {
        for part in ["127.0.0.1:8787", "sync.example.com", "connect", "oauth"] {
            assert!(block.contains(part), "`{part}` is not in {block}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let at = folder.display().to_string();
    let tell = |program: &str, arguments: &[&str]| {
        let ran = std::process::Command::new(program).args(arguments).env("HOME", folder).output();
        let Ok(ran) = ran else {
            not_checked(&format!("the lines for {program}, which is not installed"));
            return false;
        };
        assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
        true
    };

    std::fs::write(folder.join("Caddyfile"), caddy).unwrap();
    tell("caddy", &["adapt", "--adapter", "caddyfile", "--config", &format!("{at}/Caddyfile")]);

    let live = "/etc/letsencrypt/live/sync.example.com/";
    let server = nginx
        .replace(live, &format!("{at}/"))
        .replace("listen 443 ssl", &format!("listen {} ssl", free_address()));
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let paths = paths.map(|path| format!("{path}_temp_path {at}/{path};\n")).concat();
    let whole = format!("pid {at}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{paths}{server}\n}}\n");
    std::fs::write(folder.join("nginx.conf"), whole).unwrap();
    let certificate = format!("{at}/fullchain.pem");
    let key = format!("{at}/privkey.pem");
    let made =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=sync.example.com"];
    let made = [&made[..], &["-keyout", &key, "-out", &certificate]].concat();
    if tell("nginx", &["-v"]) && tell("openssl", &made) {
        tell("nginx", &["-t", "-p", &at, "-c", &format!("{at}/nginx.conf")]);
    }
}

/// Where the newest Postgres' programs are, since Debian does not put all of them into the path.
#[cfg(feature = "sandbox")]
fn postgres_bin() -> Option<std::path::PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let bins = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    bins.filter(|bin| bin.join("pg_dump").exists()).max_by_key(|bin| {
        bin.parent().and_then(|folder| folder.file_name()?.to_str()?.parse::<u32>().ok()).unwrap_or(0)
    })
}

/// The daemon's role, which is no superuser, and its database. Both are called `fieldmirror` in the text.
#[cfg(feature = "sandbox")]
const OPERATED: &str = "by_the_book";
#[cfg(feature = "sandbox")]
const RESTORED: &str = "by_the_book_restored";

/// The lines for Postgres' programs that begin so, as they stand in the text. False when the program is not installed.
#[cfg(feature = "sandbox")]
fn administer(words: &str, app_url: &str, restored_url: &str, folder: &Path) -> bool {
    let mut path = std::ffi::OsString::from("/usr/local/bin:/usr/bin:/bin");
    if let Some(bin) = postgres_bin() {
        path.push(":");
        path.push(bin);
    }
    let all = blocks(OPERATIONS, "sh").join("\n");
    let lines: Vec<&str> = all.lines().filter(|line| line.starts_with(words)).collect();
    assert!(!lines.is_empty(), "the text has no `{words}`");
    for line in lines {
        // Who sudo would make us is who the test's server is asked as.
        let line = match line.strip_prefix("sudo -u postgres ") {
            Some(line) => line.replace("fieldmirror", OPERATED),
            None => line.to_owned(),
        };
        let ran = std::process::Command::new("sh")
            .args(["-ec", &line])
            .current_dir(folder)
            .env("PATH", &path)
            .env("PGHOST", socket_folder())
            .env("PGUSER", "fieldmirror")
            .env("DATABASE_URL", app_url)
            .env("RESTORED_URL", restored_url)
            .output()
            .unwrap();
        if ran.status.code() == Some(127) {
            not_checked(&format!("`{line}` and what follows, since that is not installed"));
            return false;
        }
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    true
}

#[cfg(feature = "sandbox")]
fn socket_folder() -> String {
    let url = crate::support::postgres::server().url();
    let (_, parameters) = url.expose().split_once('?').unwrap();
    let host = parameters.split('&').find_map(|pair| pair.strip_prefix("host="));
    host.expect("the server has a socket").replace("%2F", "/")
}

/// Statements of SQL blocks. Every query of the text finds something.
#[cfg(feature = "sandbox")]
async fn run_sql(db: &fieldmirror::db::Db, block: String) {
    use diesel::connection::SimpleConnection as _;
    use fieldmirror::db::rows;

    for statement in block.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        let statement: &'static str = statement.to_owned().leak();
        if statement.starts_with("SELECT") {
            let found = db.run(move |conn| rows::objects(conn, statement)).await.unwrap();
            assert!(!found.is_empty(), "{statement}");
        } else {
            db.run(move |conn| Ok(conn.batch_execute(statement)?)).await.unwrap();
        }
    }
}

#[cfg(feature = "sandbox")]
fn commands(text: &str) -> Vec<String> {
    let lines = blocks(text, "console").join("\n");
    lines.lines().filter_map(|line| line.strip_prefix("$ fieldmirror ")).map(str::to_owned).collect()
}

/// From the first command to the restored backup: what the text says is done, in its order, by the role and with the rights
/// that it says.
#[cfg(feature = "sandbox")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installation_is_run_by_the_book() {
    use diesel::connection::SimpleConnection as _;
    use fieldmirror::db::{Db, admin};

    use crate::analysts::{may_nothing_else, read_all, session, url_as};
    use crate::support::app::{TestApp, small};
    use crate::support::postgres::{server, short_folder};

    let here = short_folder("book");
    if !administer("sudo -u postgres create", "", "", &here) {
        return;
    }
    let (whole, restored) = (server().url_of(OPERATED), server().url_of(RESTORED));
    let (url, restored_url) = (url_as(&whole, OPERATED), url_as(&restored, OPERATED));
    let db = Db::connect(&whole, 2).unwrap();
    let app = TestApp::over(small(60), &[], url.clone(), db.clone(), None).await;
    let mut daemon = app.spawn_daemon("");
    app.wait_until("a daemon serves", "SELECT count(*) = 1 FROM fieldmirror.daemons").await;

    // Who reads is there before the first account is.
    let [make, take_back] = blocks(chapter("Analysts"), "sql").try_into().expect("two blocks of SQL");
    run_sql(&db, make).await;
    let [grant] = commands(chapter("Analysts")).try_into().expect("one command");
    app.run(&grant).await.done();
    for line in commands(OPERATIONS) {
        if line.contains("--connect") || line.contains("--reconnect") {
            app.consent(&line).await;
            app.all_read().await;
        } else {
            app.run(&line).await.done();
        }
    }
    for block in blocks(OPERATIONS, "sql").into_iter().filter(|block| !chapter("Analysts").contains(block)) {
        run_sql(&db, block).await;
    }
    session(&url).batch_execute("CREATE TABLE mirror.of_an_upgrade (id text)").unwrap();
    let mut analyst = session(&url_as(&whole, "analyst"));
    let read = read_all(&mut analyst);
    let rows_of = |name: &str| read.iter().find(|(relation, _)| relation == name).map(|(_, rows)| *rows);
    assert!(rows_of("tickets") > Some(0) && rows_of("hubspot_tickets_c1") > Some(0), "{read:?}");
    assert_eq!(rows_of("of_an_upgrade"), Some(0));
    may_nothing_else(&mut analyst);
    drop(analyst);
    daemon.kill().await.unwrap();

    for program in ["pg_dump ", "pg_restore "] {
        administer(program, url.expose(), restored_url.expose(), &here);
    }
    a_backup_is_good_with_its_key_and_with_no_other(app, &restored_url).await;

    admin::drop_database(&server().url(), RESTORED).unwrap();
    run_sql(&db, take_back).await;
    db.close();
    admin::drop_database(&server().url(), OPERATED).unwrap();
    std::fs::remove_dir_all(&here).unwrap();
}

#[cfg(feature = "sandbox")]
async fn a_backup_is_good_with_its_key_and_with_no_other(
    app: crate::support::app::TestApp,
    url: &fieldmirror::domain::secret::Secret,
) {
    use fieldmirror::db::{Db, rows};
    use fieldmirror::vault::generate_key;

    let rows_before = app.number("SELECT count(*) FROM mirror.hubspot_tickets").await;
    let generation = app.number("SELECT generation FROM fieldmirror.tokens").await;
    let app = app.with("database.url", url.expose());
    let key = app.environment["FIELDMIRROR_VAULT__KEY"].clone();
    let app = app.with("vault.key", generate_key().expose());
    let refused = app.run("run --json").await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stdout.contains("sealed with vault key"), "{refused:?}");

    let app = app.with("vault.key", &key);
    app.sandbox.control().ledger().reset();
    let mut daemon = app.spawn_daemon("");
    app.run("enqueue --refresh acme").await.done();
    app.run("grant-analyst analyst").await.done();
    let db = Db::connect(url, 2).unwrap();
    let look = || {
        db.run(|connection| {
            rows::objects(
                connection,
                "SELECT (SELECT generation FROM fieldmirror.tokens) AS generation,
                (SELECT count(*) FROM mirror.hubspot_tickets) AS tickets",
            )
        })
    };
    let deadline = std::time::Instant::now() + crate::support::app::PATIENCE;
    loop {
        let found = look().await.unwrap().remove(0);
        assert_eq!(found["tickets"], rows_before);
        if found["generation"].as_i64() > Some(generation) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the restored grant is not refreshed: {found}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    daemon.kill().await.unwrap();
    db.close();
}
