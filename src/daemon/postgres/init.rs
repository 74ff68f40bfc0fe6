//! Making the data folder.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::account::Account;
use super::find::Installation;
use super::layout::{Layout, NAME};
use super::{Durability, PrivateServerError as Error, sys};

const INITDB_MAX: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_millis(20);
/// How much of initdb's words an error repeats.
const OUTPUT_BYTES_MAX: u64 = 4096;

/// The major version that made the data; `None` when there is none yet.
pub(super) fn data_major(layout: &Layout) -> Option<u32> {
    super::find::major(&fs::read_to_string(layout.data.join("PG_VERSION")).ok()?)
}

/// Makes the data folder: UTF-8, sorted by code point, and open to whoever may enter the socket's folder, who alone is
/// let in by the file system.
pub(super) fn make_data(
    layout: &Layout,
    installed: &Installation,
    account: Option<&Account>,
    durability: Durability,
) -> Result<(), Error> {
    let folder = |path: &Path, source| Error::Folder { path: path.into(), source };
    // Not every system has a locale of that name; `C` sorts alike and knows upper and lower case for ASCII only.
    let mut refusal = String::new();
    for locale in ["C.UTF-8", "C"] {
        if layout.data_unfinished.exists() {
            fs::remove_dir_all(&layout.data_unfinished).map_err(|e| folder(&layout.data_unfinished, e))?;
        }
        Account::folder(account, &layout.data_unfinished)?;
        refusal = match initdb(layout, installed, account, durability, locale)? {
            None => {
                fs::rename(&layout.data_unfinished, &layout.data).map_err(|e| folder(&layout.data, e))?;
                return Ok(());
            }
            Some(output) => output,
        };
        if !refusal.contains("locale") {
            break;
        }
    }
    Err(Error::Initdb { output: refusal })
}

/// `None` when it worked, otherwise what it said.
fn initdb(
    layout: &Layout,
    installed: &Installation,
    account: Option<&Account>,
    durability: Durability,
    locale: &str,
) -> Result<Option<String>, Error> {
    let program = installed.program("initdb");
    let spawn = |source| Error::Spawn { program: program.clone(), source };
    let output = layout.log.join("initdb.log");
    let file = |source| Error::Folder { path: output.clone(), source };
    let log = fs::File::create(&output).map_err(file)?;
    let mut command = Command::new(&program);
    command.arg("-D").arg(&layout.data_unfinished).args(["-U", NAME, "--encoding=UTF8", "--data-checksums"]);
    command.args(["--auth-local=trust", "--auth-host=reject"]).arg(format!("--locale={locale}"));
    if durability == Durability::None {
        command.arg("--no-sync");
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(file)?).stderr(log);
    prepare(&mut command, layout, account);
    let mut child = command.spawn().map_err(spawn)?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(spawn)? {
            return if status.success() { Ok(None) } else { Ok(Some(head(&output))) };
        }
        if started.elapsed() > INITDB_MAX {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(Some(format!("no end after {} s", INITDB_MAX.as_secs())));
        }
        std::thread::sleep(PAUSE);
    }
}

/// What every program of the server is given: its user, an empty environment (ours may hold secrets; `PG…` variables
/// would change what it does), a process group of its own (so that Ctrl-C reaches us first), and our fate.
pub(super) fn prepare(command: &mut Command, layout: &Layout, account: Option<&Account>) {
    command.current_dir(&layout.root).process_group(0);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
    Account::run_as(account, command);
    sys::die_with_this_thread(command);
}

fn head(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let telling: Vec<_> =
        text.lines().filter(|line| line.contains("error") || line.contains("FATAL")).collect();
    if telling.is_empty() { text.trim().to_owned() } else { telling.join("; ") }
}
