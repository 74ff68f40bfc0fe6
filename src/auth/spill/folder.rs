//! The folder of spills: files and their names. What is in them, and what it is good for, is not known here.
//!
//! Daemons may share a folder. A file appears whole and on disk or not at all, and never takes the place of another. What
//! others write is seen when the folder is looked at anew ([`Spills::look`]); what this process writes is known at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::name::Name;
use crate::domain::ids::ConnectionId;

/// Below the state directory.
const FOLDER: &str = "spills";
/// The file that tells this folder from others.
const ID: &str = "id";
const ID_BYTES_MAX: u64 = 64;
/// A sealed reply of a token endpoint, which is at most 256 KiB before it is sealed.
const SPILL_BYTES_MAX: u64 = 1024 * 1024;
/// Replies to the same refresh: more than there are daemons that could have asked for one.
const COPIES_MAX: u8 = 16;
/// Generations after a known one among which [`Spills::has_unseen`] looks: older files are removed as newer ones come.
const UNSEEN_MAX: i64 = 4;
/// Files that are being written begin with a dot and end so.
const UNFINISHED: &str = ".new";
/// An unfinished file of that age was left by a process that died.
const UNFINISHED_AGE_MIN: Duration = Duration::from_mins(10);
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The spills of a state directory.
pub struct Spills {
    folder: PathBuf,
    known: Mutex<Known>,
    /// Replies that are in this process alone.
    at_risk: AtomicUsize,
}

/// A reply that is in this process alone, as long as this lives.
pub(super) struct AtRisk(Arc<Spills>);

impl AtRisk {
    pub fn of(spills: &Arc<Spills>) -> Self {
        spills.at_risk.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(spills))
    }
}

impl Drop for AtRisk {
    fn drop(&mut self) {
        self.0.at_risk.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Known {
    id: Option<Uuid>,
    names: BTreeMap<ConnectionId, BTreeSet<Name>>,
    /// Those whose replies this process is about to write to the database.
    in_hand: BTreeSet<Name>,
    /// Unfinished files that this process is at.
    writing: BTreeSet<PathBuf>,
    /// Why the last one could not be written.
    unwritable: Option<String>,
    /// Why the folder could not be looked at the last time.
    unseen: Option<String>,
    /// The vault keys that have sealed them, as of the last look; `None` before it.
    keys: Option<BTreeSet<String>>,
    /// Files that are no use, as of the last look.
    unreadable: BTreeMap<String, String>,
    /// Those whose tokens this process has offered to the provider when the database knew older ones only.
    offered: BTreeSet<Name>,
    /// Those that the provider's API has told this process to be of another account.
    foreign: BTreeSet<Name>,
    /// Grants that are in no row, and that this process has tried in vain.
    put_off: BTreeMap<Uuid, PutOff>,
}

/// A grant that is in no row, and was tried in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOff {
    pub connection: ConnectionId,
    pub provider: String,
    /// When the provider first called it dead, by the database's clock.
    pub died_at: Option<DateTime<Utc>>,
    /// It is not tried before.
    pub until: DateTime<Utc>,
    pub why: String,
}

/// An unfinished file that this process is at: nobody here takes it for one that was left.
struct Writing<'a> {
    spills: &'a Spills,
    path: PathBuf,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.spills.known().writing.remove(&self.path);
    }
}

/// What a look at the folder found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub spills: BTreeSet<Name>,
    /// Files that another process was writing: their own names, and those that they were to get.
    pub unfinished: Vec<(PathBuf, Name)>,
    /// Names that we never gave.
    pub strange: Vec<String>,
}

impl Spills {
    /// Those below `state_dir`. Touches nothing yet.
    pub fn below(state_dir: &Path) -> Self {
        Self { folder: state_dir.join(FOLDER), known: Mutex::default(), at_risk: AtomicUsize::new(0) }
    }

    /// Whether a reply is in this process alone: neither kept here nor written to the database.
    pub fn is_any_at_risk(&self) -> bool {
        self.at_risk.load(Ordering::SeqCst) > 0
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tells this folder from others, wherever it is mounted; `None` when it cannot be used.
    pub fn id(&self) -> Option<Uuid> {
        self.known().id
    }

    /// What is wrong, for people; `None` when nothing is.
    pub fn fault(&self) -> Option<String> {
        let known = self.known();
        let shown = self.folder.display();
        if let Some(why) = &known.unwritable {
            return Some(format!("replies of token endpoints cannot be kept in `{shown}`: {why}"));
        }
        if let Some(why) = &known.unseen {
            return Some(format!("replies that are kept in `{shown}` cannot be looked at: {why}"));
        }
        let (name, why) = known.unreadable.first_key_value()?;
        let more = match known.unreadable.len() {
            1 => String::new(),
            count => format!(", and {} others", count - 1),
        };
        Some(format!("`{shown}/{name}` is of no use: {why}{more}"))
    }

    /// Files that cannot be used, with the reasons, in the place of what was said before. Returns those that are new.
    pub fn set_unreadable(&self, files: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut known = self.known();
        let before = std::mem::replace(&mut known.unreadable, files.clone());
        files.into_iter().filter(|(name, _)| !before.contains_key(name)).collect()
    }

    /// The ids of the vault keys that spills are sealed with, as of the last look; `None` before it.
    pub fn keys(&self) -> Option<BTreeSet<String>> {
        self.known().keys.clone()
    }

    pub fn set_keys(&self, keys: BTreeSet<String>) {
        self.known().keys = Some(keys);
    }

    /// Makes the folder ready, tries whether it can be written to, and looks at what is there.
    pub fn prepare(&self) -> io::Result<Uuid> {
        let prepared = self.make_folder().and_then(|()| self.make_id()).and_then(|id| {
            self.look()?;
            Ok(id)
        });
        let mut known = self.known();
        known.id = prepared.as_ref().ok().copied();
        known.unwritable = prepared.as_ref().err().map(ToString::to_string);
        prepared
    }

    fn make_folder(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.folder)?;
        fs::set_permissions(&self.folder, Permissions::from_mode(FOLDER_MODE))
    }

    fn make_id(&self) -> io::Result<Uuid> {
        // Written even where there is one: that shows whether there is room.
        let unfinished = self.write_unfinished(ID, Uuid::new_v4().to_string().as_bytes())?;
        let path = self.folder.join(ID);
        let linked = fs::hard_link(&unfinished.path, &path);
        fs::remove_file(&unfinished.path)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => self.sync_folder()?,
        }
        let text = String::from_utf8_lossy(&read_at_most(&path, ID_BYTES_MAX)?).trim().to_owned();
        text.parse().map_err(|_| {
            io::Error::other(format!(
                "`{}` does not hold a UUID; remove it, and another is made",
                path.display()
            ))
        })
    }

    fn write_unfinished(&self, name: &str, bytes: &[u8]) -> io::Result<Writing<'_>> {
        let path = self.folder.join(format!(".{name}.{}{UNFINISHED}", Uuid::new_v4()));
        self.known().writing.insert(path.clone());
        let unfinished = Writing { spills: self, path };
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&unfinished.path)?;
            file.write_all(bytes)?;
            file.sync_all()
        })();
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished.path);
            return Err(error);
        }
        Ok(unfinished)
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Writes a spill; it and its name are on disk when this returns. Returns the name that it got: where there is one of
    /// the same name, another's reply, both are kept.
    pub fn write(&self, name: Name, sealed: &[u8]) -> io::Result<Name> {
        let written = self.make_folder().and_then(|()| {
            let unfinished = self.write_unfinished(&name.to_string(), sealed)?;
            self.named(&unfinished, name, sealed)
        });
        let mut known = self.known();
        known.unwritable = written.as_ref().err().map(ToString::to_string);
        let name = written?;
        known.names.entry(name.connection).or_default().insert(name);
        Ok(name)
    }

    /// [`Spills::write`], and holds it until [`Spills::let_go`]: it is nobody else's to write to the database.
    pub fn write_held(&self, name: Name, sealed: &[u8]) -> io::Result<Name> {
        let name = self.write(name, sealed)?;
        self.known().in_hand.insert(name);
        Ok(name)
    }

    pub fn let_go(&self, name: Name) {
        self.known().in_hand.remove(&name);
    }

    /// Whether this process has its reply in hand.
    pub fn is_in_hand(&self, name: Name) -> bool {
        self.known().in_hand.contains(&name)
    }

    fn give_name(&self, unfinished: &Path, name: Name) -> io::Result<Name> {
        for copy in 0..COPIES_MAX {
            let name = Name { copy, ..name };
            match fs::hard_link(unfinished, self.path(name)) {
                Ok(()) => {
                    self.sync_folder()?;
                    return Ok(name);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!("there are {COPIES_MAX} spills named as `{name}` already")))
    }

    fn named(&self, unfinished: &Writing<'_>, name: Name, sealed: &[u8]) -> io::Result<Name> {
        let named = self.give_name(&unfinished.path, name);
        // On failure as well: half a spill is none.
        match fs::remove_file(&unfinished.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                named.or_else(|error| self.finished_by_another(name, sealed).ok_or(error))
            }
            removed => removed.and(named),
        }
    }

    /// The name that another process with the same folder gave to what this one was about to name: it took it for a file
    /// that was left.
    fn finished_by_another(&self, name: Name, sealed: &[u8]) -> Option<Name> {
        let names = (0..COPIES_MAX).map(|copy| Name { copy, ..name });
        names.into_iter().find(|name| self.read(*name).is_ok_and(|bytes| bytes == sealed))
    }

    /// Gives a file that was left unfinished, but is whole, the name that it was to get.
    pub fn finish(&self, unfinished: &Path, name: Name) -> io::Result<Name> {
        let named = self.give_name(unfinished, name);
        fs::remove_file(unfinished)?;
        let name = named?;
        self.known().names.entry(name.connection).or_default().insert(name);
        Ok(name)
    }

    /// Whether this process has offered its tokens to the provider already.
    pub fn was_offered(&self, name: Name) -> bool {
        self.known().offered.contains(&name)
    }

    pub fn set_offered(&self, name: Name) {
        self.known().offered.insert(name);
    }

    /// Whether its tokens are another account's, as the API has told this process.
    pub fn is_foreign(&self, name: Name) -> bool {
        self.known().foreign.contains(&name)
    }

    /// It is not offered any more but when all else is dead.
    pub fn set_foreign(&self, name: Name) {
        let mut known = self.known();
        known.foreign.insert(name);
        known.offered.insert(name);
    }

    /// Says that a grant that is in no row was tried in vain. When it died first, is kept.
    pub fn put_off(&self, grant: Uuid, put_off: PutOff) {
        let mut known = self.known();
        let first = known.put_off.get(&grant).and_then(|before| before.died_at);
        let died_at = first.filter(|_| put_off.died_at.is_some()).or(put_off.died_at);
        known.put_off.insert(grant, PutOff { died_at, ..put_off });
    }

    /// Moves the time when what is put off is tried again.
    pub fn try_again(&self, grant: Uuid, until: DateTime<Utc>) {
        if let Some(put_off) = self.known().put_off.get_mut(&grant) {
            put_off.until = until;
        }
    }

    /// What is put off, by grant.
    pub fn all_put_off(&self) -> BTreeMap<Uuid, PutOff> {
        self.known().put_off.clone()
    }

    /// The grant has come to an end, good or bad.
    pub fn forget_put_off(&self, grant: Uuid) {
        self.known().put_off.remove(&grant);
    }

    /// The sealed bytes.
    pub fn read(&self, name: Name) -> io::Result<Vec<u8>> {
        read_at_most(&self.path(name), SPILL_BYTES_MAX)
    }

    /// Puts the same reply, sealed anew, in the place of a spill. Whoever reads meanwhile gets one or the other.
    pub fn replace(&self, name: Name, sealed: &[u8]) -> io::Result<()> {
        let unfinished = self.write_unfinished(&name.to_string(), sealed)?;
        fs::rename(&unfinished.path, self.path(name))?;
        self.sync_folder()
    }

    /// The bytes of an unfinished file, and whether nobody can be writing it any more.
    pub fn read_unfinished(path: &Path) -> io::Result<(Vec<u8>, bool)> {
        let age = fs::metadata(path)?.modified()?.elapsed().unwrap_or_default();
        Ok((read_at_most(path, SPILL_BYTES_MAX)?, age > UNFINISHED_AGE_MIN))
    }

    /// Removes a spill. One that is gone already does no harm.
    pub fn remove(&self, name: Name) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut known = self.known();
        known.offered.remove(&name);
        known.foreign.remove(&name);
        if let Some(names) = known.names.get_mut(&name.connection) {
            names.remove(&name);
            if names.iter().all(|other| other.grant != name.grant) {
                known.put_off.remove(&name.grant);
            }
        }
        Ok(())
    }

    /// The spills of one connection that are known of without looking.
    pub fn of(&self, connection: ConnectionId) -> Vec<Name> {
        self.known().names.get(&connection).into_iter().flatten().copied().collect()
    }

    /// Whether another process has written a reply of that generation, or soon after, since the last look.
    pub fn has_unseen(&self, connection: ConnectionId, grant: Uuid, from: i64) -> bool {
        let seen = self.of(connection);
        (from..from.saturating_add(UNSEEN_MAX))
            .map(|generation| Name { connection, grant, generation, copy: 0 })
            .any(|name| !seen.contains(&name) && self.path(name).exists())
    }

    /// Looks at the folder anew.
    pub fn look(&self) -> io::Result<Found> {
        let found = self.list();
        let mut known = self.known();
        known.unseen = found.as_ref().err().map(ToString::to_string);
        let mut found = found?;
        found.unfinished.retain(|(path, _)| !known.writing.contains(path));
        known.names.clear();
        // What this process wrote while the folder was listed is there as well.
        for name in found.spills.iter().copied().chain(known.in_hand.clone()) {
            known.names.entry(name.connection).or_default().insert(name);
        }
        Ok(found)
    }

    fn list(&self) -> io::Result<Found> {
        let mut found = Found::default();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries?),
        };
        for entry in entries.into_iter().flatten() {
            let file = entry?.file_name();
            let Some(text) = file.to_str() else {
                found.strange.push(file.to_string_lossy().into_owned());
                continue;
            };
            match (text.parse(), unfinished_name(text)) {
                (Ok(name), _) => _ = found.spills.insert(name),
                (_, Some(own)) => {
                    // That of the folder's id is made anew at the next start.
                    found.unfinished.extend(own.parse().ok().map(|name| (self.folder.join(text), name)));
                }
                _ if text == ID => {}
                _ => found.strange.push(text.to_owned()),
            }
        }
        Ok(found)
    }

    fn path(&self, name: Name) -> PathBuf {
        self.folder.join(name.to_string())
    }
}

/// What a file is to be called that is being written.
fn unfinished_name(file: &str) -> Option<&str> {
    let (name, writer) = file.strip_prefix('.')?.strip_suffix(UNFINISHED)?.rsplit_once('.')?;
    let _: Uuid = writer.parse().ok()?;
    Some(name)
}

fn read_at_most(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(generation: i64) -> Name {
        Name { connection: ConnectionId(7), grant: Uuid::from_u128(9), generation, copy: 0 }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_written_is_found_by_others_and_only_its_owner_may_read_it() {
        let state = tempfile::tempdir().expect("a folder");
        let (ours, theirs) = (Spills::below(state.path()), Spills::below(state.path()));
        let id = ours.prepare().expect("it can be written to");
        assert_eq!((ours.id(), theirs.prepare().ok()), (Some(id), Some(id)), "one folder, one id");
        let written = ours.write(name(3), b"sealed").expect("there is room");
        assert_eq!(written, name(3));
        assert_eq!(ours.of(ConnectionId(7)), [name(3)]);
        assert_eq!(mode(&state.path().join("spills")), 0o700);
        assert_eq!(mode(&state.path().join("spills").join(written.to_string())), 0o600);
        assert_eq!(theirs.of(ConnectionId(7)), [], "not looked at since");
        let found = theirs.look().expect("it can be read");
        assert_eq!(found, Found { spills: [name(3)].into(), ..Found::default() });
        assert_eq!(theirs.read(name(3)).expect("it is there"), b"sealed");
        theirs.remove(name(3)).expect("it can be removed");
        ours.remove(name(3)).expect("twice does no harm");
        assert_eq!(theirs.look().expect("it can be read"), Found::default());
    }

    #[test]
    fn what_is_sealed_anew_takes_its_own_place() {
        let state = tempfile::tempdir().expect("a folder");
        let spills = Spills::below(state.path());
        let name = spills.write(name(3), b"old").expect("there is room");
        spills.replace(name, b"new").expect("there is room");
        assert_eq!(spills.read(name).expect("it is there"), b"new");
        assert_eq!(
            spills.look().expect("it can be read"),
            Found { spills: [name].into(), ..Found::default() }
        );
        assert_eq!(mode(&state.path().join("spills").join(name.to_string())), 0o600);
        assert_eq!(spills.keys(), None, "nobody has looked at what is in it");
    }

    #[test]
    fn no_reply_takes_the_place_of_another() {
        let state = tempfile::tempdir().expect("a folder");
        let (ours, theirs) = (Spills::below(state.path()), Spills::below(state.path()));
        let first = ours.write(name(3), b"one").expect("there is room");
        let second = theirs.write(name(3), b"other").expect("there is room");
        assert_ne!(first, second);
        assert_eq!(ours.look().expect("it can be read").spills, [first, second].into());
        assert_eq!(ours.read(first).expect("there"), b"one");
        assert_eq!(ours.read(second).expect("there"), b"other");
    }

    #[test]
    fn what_a_dead_process_left_is_told_from_what_is_strange() {
        let state = tempfile::tempdir().expect("a folder");
        let spills = Spills::below(state.path());
        spills.prepare().expect("it can be written to");
        let writing = spills.write_unfinished(&name(4).to_string(), b"sealed").expect("there is room");
        assert_eq!(spills.look().expect("it can be read"), Found::default(), "it is at work on it");
        let whole = writing.path.clone();
        drop(writing);
        fs::write(spills.folder().join("notes.txt"), "hello").expect("there is room");
        let found = spills.look().expect("it can be read");
        assert_eq!(found.unfinished, [(whole.clone(), name(4))]);
        assert_eq!(found.strange, ["notes.txt"]);
        assert_eq!(Spills::read_unfinished(&whole).expect("there"), (b"sealed".to_vec(), false));
        assert_eq!(spills.finish(&whole, name(4)).expect("there is room"), name(4));
        assert_eq!(spills.look().expect("it can be read").spills, [name(4)].into());
    }

    #[test]
    fn what_another_process_has_finished_is_written() {
        let state = tempfile::tempdir().expect("a folder");
        let (ours, theirs) = (Spills::below(state.path()), Spills::below(state.path()));
        ours.write(name(3), b"one").expect("there is room");
        let writing = ours.write_unfinished(&name(3).to_string(), b"other").expect("there is room");
        let left = theirs.look().expect("it can be read").unfinished;
        assert_eq!(left, [(writing.path.clone(), name(3))], "to them it looks as if it had been left");
        let finished = theirs.finish(&writing.path, name(3)).expect("there is room");
        assert_eq!(ours.named(&writing, name(3), b"other").expect("it is there"), finished);
        assert_eq!(theirs.of(ConnectionId(7)).len(), 2, "{:?}", theirs.of(ConnectionId(7)));
        ours.named(&writing, name(3), b"a third").expect_err("nobody has written that");
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_says_so_until_it_can() {
        let state = tempfile::tempdir().expect("a folder");
        let spills = Spills::below(state.path());
        fs::write(spills.folder(), "in the way").expect("there is room");
        spills.prepare().expect_err("no folder");
        assert_eq!(spills.id(), None);
        spills.write(name(1), b"sealed").expect_err("no folder");
        assert!(spills.fault().is_some_and(|fault| fault.contains("spills")), "{:?}", spills.fault());
        fs::remove_file(spills.folder()).expect("it is there");
        spills.write(name(1), b"sealed").expect("there is room");
        assert_eq!(spills.fault(), None);
        let unreadable = BTreeMap::from([("x".to_owned(), "cut off".to_owned())]);
        assert_eq!(spills.set_unreadable(unreadable.clone()), unreadable);
        assert_eq!(spills.set_unreadable(unreadable), BTreeMap::new(), "said once");
        assert!(spills.fault().is_some_and(|fault| fault.contains("cut off")), "{:?}", spills.fault());
    }

    #[test]
    fn an_overlong_file_is_not_read() {
        let state = tempfile::tempdir().expect("a folder");
        let path = state.path().join("long");
        fs::write(&path, vec![0; 65]).expect("there is room");
        read_at_most(&path, 64).expect_err("too long");
        assert_eq!(read_at_most(&path, 65).expect("short enough").len(), 65);
    }
}
