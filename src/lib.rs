//! Tidegate: a read/write-splitting PostgreSQL proxy whose sessions read their own writes.
//!
//! The modules from the top down: each may use those below it and none above, and a test holds them
//! to that. `ARCHITECTURE.md` is the map.

#![forbid(unsafe_code)]

// What is tried out: a primary and replicas on this machine.
pub mod demo;

// The process: accepting, signals, reload, shutdown.
pub mod listener;

// Metrics and health over HTTP.
pub mod http;

// One client's life: the sockets around a session.
pub mod proxy;

// The threads that serve clients.
pub mod workers;

// The nodes: who is the primary, where everybody stands, their servers.
pub mod cluster;

// Byte streams and buffers.
pub mod net;

// One client's session as a state machine, without sockets or a clock.
pub mod session;

// Logins, on both sides.
pub mod auth;

// What a statement needs.
pub mod sql;

// Messages as bytes.
pub mod wire;

// The configuration.
pub mod config;

// Metrics' names and logs.
pub mod telemetry;
