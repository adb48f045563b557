//! What the fuzz targets check, one function per target: bytes in, a panic if something that must
//! hold does not.
//!
//! Never: depends on a fuzzer, on a clock or on chance, so that a case found once fails the same way
//! under `cargo test`.

pub mod classify;
pub mod command;
pub mod config;
pub mod lexer;
pub mod message;
pub mod postgres;
pub mod scram;
pub mod session;
pub mod startup;
pub mod text;
