//! A disk that can be filled to the last byte: a small file system in memory, where the machine lets us mount one.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::not_checked;
use super::postgres::short_folder;

const BYTES: u64 = 16 * 1024 * 1024;
const BALLAST: &str = "ballast";

pub struct SmallDisk {
    pub folder: PathBuf,
    /// Unmounts it after us, however our end comes.
    cleaner: Child,
}

impl SmallDisk {
    /// One that belongs to whom `like` belongs to. `None`, which is said, where nothing can be mounted.
    pub fn mount(like: &Path) -> Option<Self> {
        let folder = short_folder("disk");
        let owner = std::fs::metadata(like).expect("somebody owns it");
        let options = format!("size={BYTES},mode=700,uid={},gid={}", owner.uid(), owner.gid());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&folder);
        if !mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
            not_checked("a disk that is really full, since nothing can be mounted here");
            let _ = std::fs::remove_dir(&folder);
            return None;
        }
        let cleaner = Command::new("/bin/sh")
            .args(["-c", r#"cat; umount -l "$1"; rmdir "$1""#, "sh"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell can be started");
        Some(Self { folder, cleaner })
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut ballast = File::create(self.folder.join(BALLAST)).expect("a name takes no room");
        for bytes in [64 * 1024, 512, 1] {
            while ballast.write_all(&vec![0; bytes]).is_ok() {}
        }
        let refused = ballast.write(b"x").expect_err("there is no room");
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.folder.join(BALLAST)).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}
