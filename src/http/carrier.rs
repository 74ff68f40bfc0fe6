//! What brings requests to where they are answered, when that is not the network: a seam as the clock is one. A
//! simulation puts itself here, so that an exchange takes as long as it says and not as long as sockets take.

use std::future::Future;
use std::pin::Pin;

use super::SendError;

/// Brings one request and comes back with the whole answer, or with why there is none. Time-outs are its own.
pub trait Carrier: Send + Sync {
    fn carry(&self, request: http::Request<Vec<u8>>) -> Carried<'_>;
}

/// The answer to come.
pub type Carried<'a> = Pin<Box<dyn Future<Output = Result<http::Response<Vec<u8>>, SendError>> + Send + 'a>>;
