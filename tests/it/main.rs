//! Black-box tests: one binary, one private Postgres server for all of it.

mod support;

mod architecture;
mod auth;
mod cli;
mod db;
mod migrations;
mod private_server;
mod queue;
