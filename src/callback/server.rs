//! The listener: hyper with its limits, which axum's own server does not set.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, warn};

/// How long a client may take to send its request line and headers, also between two requests.
const HEADER_READ_MAX: Duration = Duration::from_secs(10);
/// Bytes of a request line with its headers. Longer ones are answered 431 by hyper.
const HEAD_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// Connections open at once. Further ones wait in the system's own queue.
const CONNECTIONS_MAX: usize = 256;
/// How long one connection lives, whatever happens on it.
const CONNECTION_MAX: Duration = Duration::from_mins(2);
/// After a failed accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves `router` until `stop`; then lets requests under way end.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let (tasks, open) = (TaskTracker::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    loop {
        let permit = tokio::select! {
            permit = Arc::clone(&open).acquire_owned() => permit.expect("the semaphore is never closed"),
            () = stop.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (router, stop) = (router.clone(), stop.clone());
                tasks.spawn(async move {
                    one(stream, router, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!("Could not accept a connection to the callback endpoint: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn one(stream: TcpStream, router: Router, stop: CancellationToken) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_MAX)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(CONNECTION_MAX) => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(CONNECTION_MAX, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        // Browsers close connections as they like, and scanners send anything.
        debug!("A connection to the callback endpoint ended: {error}");
    }
}

async fn answer(router: Router, request: hyper::Request<Incoming>) -> axum::response::Response {
    // Bodies are never read: every route is a GET.
    let request = request.map(|_| Body::empty());
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
