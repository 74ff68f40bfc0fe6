//! What docs/OPERATIONS.md promises: its commands and snippets are those of the product, and its backup restores.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use fieldmirror::config::{self, Purpose, Sources};

use crate::readme::blocks;

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

/// The lines of the installation, below a root of the test's own. What needs a build, a service manager or a database
/// server is left out.
#[test]
fn the_installation_leaves_what_the_daemon_starts_with() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    for folder in ["usr/local/bin", "etc/systemd/system", "usr/lib/sysusers.d", "built"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    // Small, in place of a program of hundreds of megabytes.
    let built = root.join("built/fieldmirror");
    std::fs::write(&built, format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_fieldmirror")))
        .unwrap();
    let chapter = |name: &str| {
        let found = OPERATIONS.split("\n## ").find(|chapter| chapter.starts_with(name));
        blocks(found.unwrap_or_else(|| panic!("no chapter `{name}`")), "sh")
    };
    let done_here = |line: &&str| {
        ["install ", "umask ", "echo ", "fieldmirror "].iter().any(|word| line.starts_with(word))
    };
    let all = [chapter("Install"), chapter("Credentials")].concat().join("\n");
    let lines: Vec<&str> = all.lines().filter(done_here).collect();
    assert!(lines.len() >= 8, "{lines:?}");
    let all = lines.join("\n").replace("target/release/fieldmirror", "$ROOT/built/fieldmirror");
    let script = all.replace(" /usr/", " $ROOT/usr/").replace(" /etc/", " $ROOT/etc/");
    let ran = std::process::Command::new("sh")
        .args(["-euc", &script])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_clear()
        .env("ROOT", root)
        .env("PATH", format!("{}:/usr/bin:/bin", root.join("usr/local/bin").display()))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{script}\n{}", String::from_utf8_lossy(&ran.stderr));

    for unit in ["fieldmirror.service", "fieldmirror.socket"] {
        assert!(root.join("etc/systemd/system").join(unit).is_file(), "{unit}");
    }
    let etc = root.join("etc/fieldmirror");
    for secret in ["database.url", "vault.key"] {
        let mode = std::fs::metadata(etc.join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{secret} is root's alone");
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
    let documentation = unit.lines().find_map(|line| line.strip_prefix("Documentation=")).unwrap();
    for place in documentation.split_whitespace() {
        let file = match place.strip_prefix("man:").and_then(|page| page.strip_suffix("(1)")) {
            Some(page) => root.join(format!("usr/local/share/man/man1/{page}.1")),
            None => root.join(place.strip_prefix("file:///").expect("a page or a file")),
        };
        assert!(file.metadata().is_ok_and(|found| found.len() > 1000), "{place} is not installed");
    }
}

/// The command of that program, as it stands in the text.
#[cfg(feature = "sandbox")]
fn command_of(program: &str) -> String {
    let found = blocks(OPERATIONS, "sh").into_iter().find_map(|block| {
        block.lines().find(|line| line.starts_with(&format!("{program} "))).map(str::to_owned)
    });
    found.unwrap_or_else(|| panic!("the text has no `{program}`"))
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

#[cfg(feature = "sandbox")]
const RESTORED: &str = "restored_by_operations";

#[cfg(feature = "sandbox")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_restored_with_its_key_and_with_no_other() {
    use fieldmirror::db::{Db, admin, rows};
    use fieldmirror::vault::generate_key;

    use crate::support::app::{TestApp, small};
    use crate::support::postgres::server;

    let mut path = std::ffi::OsString::from("/usr/local/bin:/usr/bin:/bin");
    if let Some(bin) = postgres_bin() {
        path.push(":");
        path.push(bin);
    }
    let app = TestApp::new(small(60), &[]).await;
    let mut daemon = app.spawn_daemon("");
    app.mirrored("acme").await;
    daemon.kill().await.unwrap();

    let url = server().url_of(RESTORED);
    admin::drop_database(&server().url(), RESTORED).unwrap();
    admin::create_if_missing(&server().url(), RESTORED).unwrap();
    for program in ["pg_dump", "pg_restore"] {
        let line = command_of(program);
        let ran = tokio::process::Command::new("sh")
            .args(["-ec", &line])
            .current_dir(&app.folder)
            .env("PATH", &path)
            .env("DATABASE_URL", &app.environment["FIELDMIRROR_DATABASE__URL"])
            .env("RESTORED_URL", url.expose())
            .output()
            .await
            .unwrap();
        if ran.status.code() == Some(127) {
            eprintln!("not checked: backup and restore, since there is no `{program}`");
            return;
        }
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    let rows_before = app.number("SELECT count(*) FROM mirror.hubspot_tickets").await;
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
    let db = Db::connect(&url, 2).unwrap();
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
        if found["generation"] == 2 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the restored grant is not refreshed: {found}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    daemon.kill().await.unwrap();
    db.close();
    admin::drop_database(&server().url(), RESTORED).unwrap();
}
