//! A real browser, headless: Chromium behind chromedriver, spoken to over WebDriver's HTTP.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::not_checked;

/// The longest that one command may take. Starting the browser takes the most.
const COMMAND_MAX: Duration = Duration::from_mins(3);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long ending the browser may take.
const END_MAX: Duration = Duration::from_secs(10);
/// Under which an element is given.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

const FLAGS: [&str; 12] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    // No name leads anywhere: what is not on loopback is not reached.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
];

/// What is needed of the machine.
pub struct Installed {
    browser: PathBuf,
    driver: PathBuf,
}

impl Installed {
    /// Both of the two; else says that the test is skipped.
    pub fn or_skip(test: &str) -> Option<Self> {
        let browser = ["chromium", "chromium-browser", "google-chrome"].iter().find_map(|name| found(name));
        let (driver, missing) = (found("chromedriver"), browser.is_none());
        if let (Some(browser), Some(driver)) = (browser, driver) {
            return Some(Self { browser, driver });
        }
        let what = if missing { "Chromium" } else { "chromedriver" };
        not_checked(&format!("{test}, since there is no {what} (Debian: chromium, chromium-driver)"));
        None
    }
}

#[expect(clippy::disallowed_methods, reason = "PATH belongs to the system; it is no setting of ours")]
fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A browser with one window. Ends when dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Browser {
    /// With nothing of an earlier one: its profile is a new folder in `folder`.
    pub async fn start(installed: &Installed, folder: &Path) -> Self {
        let mut driver = Command::new(&installed.driver)
            .arg("--port=0")
            .env("HOME", folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts");
        let said = driver.stdout.take().expect("its output is piped");
        let port = tokio::time::timeout(COMMAND_MAX, port_told(said)).await.expect("chromedriver listens");
        let mut flags = FLAGS.map(str::to_owned).to_vec();
        flags.push(format!("--user-data-dir={}", folder.join("profile").display()));
        let wanted = json!({
            "browserName": "chrome",
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
            "goog:chromeOptions": {"binary": installed.browser, "args": flags},
        });
        let mut browser = Self { driver, port, session: String::new() };
        let asked = json!({"capabilities": {"alwaysMatch": wanted}});
        let made = browser.send("POST", "/session", Some(&asked)).await;
        made["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        // Its own first page asks for what it pleases.
        browser.open("about:blank").await;
        browser.requested().await;
        browser
    }

    /// What a person with such a screen and such a taste sees from now on.
    pub async fn look(&self, width: u32, height: u32, scheme: &str) {
        let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", &screen).await;
        let taste = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &taste).await;
    }

    pub async fn open(&self, url: &str) {
        self.post("/url", json!({"url": url})).await;
    }

    /// Presses the first element that the selector finds.
    pub async fn press(&self, selector: &str) {
        let found = self.post("/element", json!({"using": "css selector", "value": selector})).await;
        let id = found[ELEMENT].as_str().unwrap_or_else(|| panic!("no `{selector}`: {found}"));
        self.post(&format!("/element/{id}/click"), json!({})).await;
    }

    /// Waits until the shown page's address begins so. Says what it is.
    pub async fn arrive(&self, at: &str) -> String {
        let began = Instant::now();
        loop {
            let url = self.url().await;
            if url.starts_with(at) {
                return url;
            }
            assert!(began.elapsed() < COMMAND_MAX, "it stays at {url}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub async fn url(&self) -> String {
        self.get("/url").await.as_str().expect("text").to_owned()
    }

    /// What the body of a function returns, run in the page.
    pub async fn ask(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({"script": script, "args": []})).await
    }

    /// Cookies that the page's address gets, those that scripts do not see included.
    pub async fn cookies(&self) -> Vec<Value> {
        self.get("/cookie").await.as_array().expect("a list").clone()
    }

    /// Every address that was asked for since the last call.
    pub async fn requested(&self) -> Vec<String> {
        let entries = self.log("performance").await;
        let events = entries.iter().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
        let sent = events.filter(|event| event["message"]["method"] == "Network.requestWillBeSent");
        sent.map(|event| event["message"]["params"]["request"]["url"].as_str().expect("a URL").to_owned())
            .collect()
    }

    /// What the console shows since the last call.
    pub async fn console(&self) -> Vec<String> {
        self.log("browser").await
    }

    pub async fn picture(&self, file: &Path) {
        let picture = self.get("/screenshot").await;
        let bytes = BASE64_STANDARD.decode(picture.as_str().expect("text")).expect("base64");
        std::fs::write(file, bytes).expect("the folder is there");
    }

    async fn log(&self, kind: &str) -> Vec<String> {
        let entries = self.post("/se/log", json!({"type": kind})).await;
        let entries = entries.as_array().expect("a list").iter();
        entries.map(|entry| entry["message"].as_str().expect("text").to_owned()).collect()
    }

    async fn devtools(&self, command: &str, params: &Value) {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": params})).await;
    }

    async fn get(&self, path: &str) -> Value {
        self.send("GET", &format!("/session/{}{path}", self.session), None).await
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.send("POST", &format!("/session/{}{path}", self.session), Some(&body)).await
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let text = request(method, path, self.port, &body);
        let asked = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(text.as_bytes()).await?;
            answered(BufReader::new(stream)).await
        };
        let answer = tokio::time::timeout(COMMAND_MAX, asked).await.expect("chromedriver answers in time");
        let mut answer: Value = serde_json::from_slice(&answer.expect("it answers")).expect("JSON");
        let value = answer["value"].take();
        assert!(value.get("error").is_none(), "{method} {path}: {value}");
        value
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser when it is asked to, and leaves it behind when it is killed.
        let path = format!("/session/{}", self.session);
        let text = request("DELETE", &path, self.port, "");
        if let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", self.port)) {
            let _ = stream.set_read_timeout(Some(END_MAX));
            let _ = stream.write_all(text.as_bytes());
            let _ = stream.read(&mut [0; 64]);
        }
        let _ = self.driver.start_kill();
    }
}

fn request(method: &str, path: &str, port: u16, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// The body of an answer, by the length that its head tells.
async fn answered(mut reader: BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok(body)
}

/// The port at the end of the line in which chromedriver says that it has started.
async fn port_told(said: tokio::process::ChildStdout) -> u16 {
    let mut lines = BufReader::new(said).lines();
    while let Some(line) = lines.next_line().await.expect("its output can be read") {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            // Whatever else it says must not fill the pipe.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return port.trim_end_matches('.').parse().expect("a port");
        }
    }
    panic!("chromedriver ended")
}
