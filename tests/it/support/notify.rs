//! The other end of systemd's notify socket.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::app::PATIENCE;

const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long it listens at a time.
const LISTEN: Duration = Duration::from_millis(200);

/// What was heard, one assignment each, and when.
pub struct NotifySocket {
    pub path: PathBuf,
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
    /// When it began to listen each time: whoever hears late has stood still, together with the machine.
    listened: Arc<Mutex<Vec<Instant>>>,
}

impl NotifySocket {
    pub fn bind(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket in the test's folder");
        let heard: Arc<Mutex<Vec<_>>> = Arc::default();
        let listened: Arc<Mutex<Vec<_>>> = Arc::default();
        let (hearing, listening) = (Arc::downgrade(&heard), Arc::clone(&listened));
        socket.set_read_timeout(Some(LISTEN)).unwrap();
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            // Until the test is over.
            while let Some(heard) = hearing.upgrade() {
                listening.lock().unwrap().push(Instant::now());
                let Ok(length) = socket.recv(&mut message) else { continue };
                let text = String::from_utf8_lossy(&message[..length]).into_owned();
                let at = Instant::now();
                heard.lock().unwrap().extend(text.lines().map(|line| (at, line.to_owned())));
            }
        });
        Self { path, heard, listened }
    }

    /// The longest that this end stood still within a span.
    pub fn stood_still(&self, (from, to): (Instant, Instant)) -> Duration {
        let listened = self.listened.lock().unwrap();
        let within = |pair: &&[Instant]| pair[1] >= from && pair[0] <= to;
        let pauses = listened.windows(2).filter(within).map(|pair| pair[1] - pair[0]);
        pauses.max().unwrap_or_default().saturating_sub(LISTEN)
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
