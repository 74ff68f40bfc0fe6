//! Under which user the server runs, and whether that user can get at its data. Postgres refuses to run as root.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::find::Installation;
use super::layout::Layout;
use super::{PrivateServerError as Error, sys};

/// The other user that the server runs as when we are root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// `None`: the server runs as we do. As root, data that is there keeps its owner; otherwise `postgres`, or else `nobody`.
pub(super) fn choose(layout: &Layout) -> Result<Option<Account>, Error> {
    let owner = fs::metadata(&layout.data).ok().map(|data| Account { uid: data.uid(), gid: data.gid() });
    let ours = sys::effective_uid();
    match owner {
        Some(owner) if ours != 0 && owner.uid != ours => {
            Err(Error::DataOwner { data: layout.data.clone(), owner: owner.uid, ours })
        }
        _ if ours != 0 => Ok(None),
        Some(owner) if owner.uid != 0 => Ok(Some(owner)),
        _ => {
            let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
            let account = ["postgres", "nobody"].into_iter().find_map(|name| entry(&passwd, name));
            account.map(Some).ok_or(Error::NoAccount)
        }
    }
}

fn entry(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let [entry, _, uid, gid, ..] = fields[..] else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        (entry == name && uid != 0).then_some(Account { uid, gid })
    })
}

impl Account {
    pub(super) fn run_as(account: Option<&Self>, command: &mut Command) {
        if let Some(account) = account {
            // Together with the uid, the standard library drops supplementary groups.
            command.uid(account.uid).gid(account.gid);
        }
    }

    /// Makes a folder that only the server's user may enter.
    pub(super) fn folder(account: Option<&Self>, path: &Path) -> Result<(), Error> {
        make_folder(path, 0o700)?;
        match account {
            Some(account) => std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid))
                .map_err(|source| Error::Folder { path: path.into(), source }),
            None => Ok(()),
        }
    }
}

/// The state directory is ours alone; folders above it that have to be made are like everybody's.
pub(super) fn make_state_dir(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|source| Error::Folder { path: parent.into(), source })?;
    }
    make_folder(path, 0o700)
}

pub(super) fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    let folder = |source| Error::Folder { path: path.into(), source };
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(folder(error)),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(folder)
}

/// Proves that the server's user can reach its folder and run its program, by doing both.
///
/// The state directory itself is ours: others get the right to pass through it (not to list it) where the server needs
/// that. Rights of folders above are somebody else's decision, and only named.
pub(super) fn prove(
    account: Option<&Account>,
    layout: &Layout,
    installed: &Installation,
) -> Result<(), Error> {
    let Some(account) = account else { return Ok(()) };
    open_state_dir(account, &layout.state_dir)?;
    let mut command = Command::new(installed.program("postgres"));
    command.arg("--version").current_dir(&layout.root).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Account::run_as(Some(account), &mut command);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Error::Unreachable {
            path: obstacle(account, &layout.root, &installed.bin),
            uid: account.uid,
        }),
    }
}

fn open_state_dir(account: &Account, state_dir: &Path) -> Result<(), Error> {
    let folder = |source| Error::Folder { path: state_dir.into(), source };
    let metadata = fs::metadata(state_dir).map_err(folder)?;
    if may_enter(account, &metadata) {
        return Ok(());
    }
    let mode = metadata.mode() & 0o7777 | 0o001;
    fs::set_permissions(state_dir, fs::Permissions::from_mode(mode)).map_err(folder)
}

/// The outermost folder that stops the account; the program's own folder when it is none above the data.
fn obstacle(account: &Account, root: &Path, bin: &Path) -> std::path::PathBuf {
    let mut above: Vec<_> = root.ancestors().collect();
    above.reverse();
    let closed = |path: &&&Path| fs::metadata(path).is_ok_and(|metadata| !may_enter(account, &metadata));
    above.iter().find(closed).map_or(bin, |path| *path).into()
}

fn may_enter(account: &Account, folder: &Metadata) -> bool {
    let bit = if folder.uid() == account.uid {
        0o100
    } else if folder.gid() == account.gid {
        0o010
    } else {
        0o001
    };
    folder.mode() & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\n# a remark\npostgres:x:101:104:,,,:/var:/bin/sh\nbad:x:y:1\n";
        assert_eq!(entry(passwd, "postgres"), Some(Account { uid: 101, gid: 104 }));
        for none in ["root", "nobody", "bad", ""] {
            assert_eq!(entry(passwd, none), None, "{none}");
        }
    }
}
