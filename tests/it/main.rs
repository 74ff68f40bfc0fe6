//! Black-box tests: one binary, one private Postgres server for all of it.

mod support;

mod architecture;
mod auth;
mod db;
mod cli;
mod migrations;
mod private_server;
mod queue;
