//! Tidegate: a read/write-splitting PostgreSQL proxy whose sessions always read their own writes.
//!
//! The modules, from the top down; each may use those below it, and a test holds them to that.

#![forbid(unsafe_code)]

pub mod auth;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod http;
pub mod listener;
pub mod net;
pub mod proxy;
pub mod session;
pub mod sql;
pub mod telemetry;
pub mod wire;
