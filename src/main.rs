//! The command line: pure wiring, and what a failure is to the shell.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate::auth::Users;
use tidegate::config::{Config, LogFormat};
use tidegate::{listener, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The proxy ran and failed, or could not start.
const EXIT_FAILED: u8 = 1;
/// The configuration is bad, as the command line is: nothing was started.
const EXIT_CONFIG: u8 = 2;

/// A read/write-splitting PostgreSQL proxy whose sessions always read their own writes.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The configuration file.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "config.toml"
    )]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy (the default).
    Run,
    /// Check the configuration and say what is wrong with it.
    Check,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_CONFIG, &error),
    };
    match arguments.command {
        Some(Command::Check) => check(&config),
        Some(Command::Run) | None => run(config, &arguments.config),
    }
}

fn run(config: Config, path: &std::path::Path) -> ExitCode {
    telemetry::install_logs(config.log.format == LogFormat::Json, &config.log.level);
    if let Err(error) = telemetry::install_recorder() {
        return fail(EXIT_FAILED, &error);
    }
    match listener::run(config, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ listener::RunError::Users(_)) => fail(EXIT_CONFIG, &error),
        Err(error) => fail(EXIT_FAILED, &error),
    }
}

fn check(config: &Config) -> ExitCode {
    if let Err(error) = Users::new(&config.auth) {
        return fail(EXIT_CONFIG, &error);
    }
    for warning in config.warnings() {
        eprintln!("warning: {warning}");
    }
    println!("configuration is valid");
    ExitCode::SUCCESS
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("tidegate: {error}");
    ExitCode::from(code)
}
