//! The other end of systemd's notify socket.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::app::PATIENCE;

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What was heard, one assignment each, and when.
pub struct NotifySocket {
    pub path: PathBuf,
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl NotifySocket {
    pub fn bind(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket in the test's folder");
        let heard: Arc<Mutex<Vec<_>>> = Arc::default();
        let hearing = Arc::downgrade(&heard);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            // Until the test is over.
            while let Some(heard) = hearing.upgrade() {
                let Ok(length) = socket.recv(&mut message) else { continue };
                let text = String::from_utf8_lossy(&message[..length]).into_owned();
                let at = Instant::now();
                heard.lock().unwrap().extend(text.lines().map(|line| (at, line.to_owned())));
            }
        });
        Self { path, heard }
    }

    pub fn heard(&self) -> Vec<(Instant, String)> {
        self.heard.lock().unwrap().clone()
    }

    pub fn count(&self, text: &str) -> usize {
        self.heard().iter().filter(|(_, line)| line == text).count()
    }

    /// Waits until a line that fits has been heard, after the first `skip` lines.
    pub async fn wait_for(&self, what: &str, skip: usize, fits: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let heard = self.heard();
            if let Some((_, line)) = heard.iter().skip(skip).find(|(_, line)| fits(line)) {
                return line.clone();
            }
            assert!(Instant::now() < deadline, "systemd did not hear {what}: {heard:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
