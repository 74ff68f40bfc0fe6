//! Black-box tests: one binary, one private Postgres server for all of it.

mod support;

mod alerts;
mod analysts;
mod architecture;
mod auth;
mod callback;
mod cli;
mod day;
mod db;
mod doctor;
mod e2e;
mod fixtures;
mod history;
mod hubspot;
mod kills;
mod logging;
mod metrics;
mod migrations;
mod operations;
mod passage;
mod private_server;
mod queue;
mod readme;
mod simulation;
mod streams;
mod units;
mod views;
mod walks;
