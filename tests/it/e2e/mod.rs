//! The product from end to end: the sandbox's HubSpot on one side, a mirror in Postgres on the other, and between them
//! the daemon as it is run.

mod housecallpro;
mod jobber;
mod mirror;
mod oncehub;
mod outages;
mod rotation;
mod secrets;
mod service;
mod servicetitan;
mod tokens;
mod trouble;
mod unchanged;
mod verify;
mod why;
