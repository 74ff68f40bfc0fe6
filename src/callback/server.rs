//! The listener: hyper with its limits, which axum's own server does not set.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::connections::{Connections, Standing};
use crate::domain::failure::chain;

/// How long a client may take to send its request line and headers, also between two requests.
const HEADER_READ_MAX: Duration = Duration::from_secs(10);
/// Bytes of a request line with its headers. Longer ones are answered 431 by hyper.
const HEAD_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// How long one connection lives, whatever happens on it.
const CONNECTION_MAX: Duration = Duration::from_mins(2);
/// How long a request under way may take when the daemon stops. What it began goes on without its page.
const FINISH_MAX: Duration = Duration::from_secs(20);
/// The same for a connection on which nothing is being worked on.
const IDLE_FINISH_MAX: Duration = Duration::from_secs(1);
/// After a failed accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves `router` until `stop`; then lets requests under way end.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let address = listener.local_addr().ok();
    let (tasks, connections) = (TaskTracker::new(), Connections::default());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                // Without a place it is closed.
                let Some(place) = connections.enter() else { continue };
                let (router, stop) = (router.clone(), stop.clone());
                tasks.spawn(async move {
                    one(stream, router, stop, Arc::clone(&place.standing)).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(endpoint.address = ?address, error = chain(&error), "Could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn one(stream: TcpStream, router: Router, stop: CancellationToken, standing: Arc<Standing>) {
    let seen = Arc::clone(&standing);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (router, seen) = (router.clone(), Arc::clone(&seen));
        async move {
            seen.is_worked_on.store(true, Ordering::Relaxed);
            let response = answer(router, request).await;
            seen.is_worked_on.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
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
        () = standing.shed.cancelled() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let is_worked_on = standing.is_worked_on.load(Ordering::Relaxed);
            let finish_max = if is_worked_on { FINISH_MAX } else { IDLE_FINISH_MAX };
            tokio::time::timeout(finish_max, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        // Browsers close connections as they like, and scanners send anything.
        debug!(error = chain(&error), "A connection to one of our endpoints ended");
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
