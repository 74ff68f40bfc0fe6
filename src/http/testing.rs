//! A server for tests that says exactly what it is told to say, and tells what it heard.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

/// What the server does on a connection after it has read the request.
#[derive(Clone)]
pub(super) enum Says {
    /// These bytes, then it closes.
    Bytes(Vec<u8>),
    /// These bytes, then nothing more for a long time.
    BytesThenSilence(Vec<u8>),
}

pub(super) struct Server {
    pub(super) url: Url,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Every connection gets the same.
    pub(super) async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (says, log) = (says.clone(), Arc::clone(&log));
                tokio::spawn(async move {
                    let request = read_request(&mut stream).await;
                    log.lock().unwrap().push(request);
                    let (Says::Bytes(bytes) | Says::BytesThenSilence(bytes)) = &says;
                    // A client that has heard enough hangs up.
                    let _ = stream.write_all(bytes).await;
                    if matches!(says, Says::BytesThenSilence(_)) {
                        tokio::time::sleep(Duration::from_mins(1)).await;
                    }
                });
            }
        });
        Self { url, heard }
    }

    pub(super) async fn answering(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Self {
        Self::start(Says::Bytes(response(status, headers, body.as_ref()))).await
    }

    /// Every request so far: head and body as they came.
    pub(super) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

/// `headers` are whole lines, each ended with CRLF.
pub(super) fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text.into_owned();
            }
        }
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => bytes.extend_from_slice(&buffer[..count]),
            _ => return String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}
