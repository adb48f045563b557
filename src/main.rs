//! The command line: pure wiring, and what a failure is to the shell.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate::cluster::catalog::ask::ask_once;
use tidegate::config::{Config, LogFormat};
use tidegate::demo::walk;
use tidegate::net::tls::Material;
use tidegate::sql::catalog::Catalog;
use tidegate::sql::explain;
use tidegate::sql::functions::Rules;
use tidegate::telemetry::Logs;
use tidegate::{listener, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The proxy ran and failed, or could not start.
const EXIT_FAILED: u8 = 1;
/// The configuration is bad, as the command line is: nothing was started.
const EXIT_CONFIG: u8 = 2;

/// A read/write-splitting PostgreSQL proxy whose sessions read their own writes.
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
    /// Say where a statement goes, and what decides that.
    Explain {
        /// The statement, or several.
        sql: String,
        /// The database that it is for: its catalog is asked, as the role that probes the nodes.
        #[arg(long, value_name = "NAME")]
        database: Option<String>,
    },
    /// Start a primary, standbys and the proxy on this machine, and walk through what it does.
    ///
    /// Needs PostgreSQL's server programs and no configuration. Everything is stopped and removed
    /// on Ctrl-C.
    Demo {
        /// Exit after the walk; with status 0 only if all of it has happened.
        #[arg(long)]
        once: bool,
        /// Standbys beside the primary.
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
        replicas: u8,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Demo { once, replicas }) = arguments.command {
        return demo(once, replicas.into());
    }
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_CONFIG, &error),
    };
    match arguments.command {
        Some(Command::Check) => check(&config),
        Some(Command::Explain { sql, database }) => say_why(&config, &sql, database.as_deref()),
        _ => run(config, &arguments.config),
    }
}

fn run(config: Config, path: &std::path::Path) -> ExitCode {
    let json = config.log.format == LogFormat::Json;
    let logs = match Logs::install(json, &config.log.level) {
        Ok(logs) => logs,
        Err(error) => return fail(EXIT_FAILED, &error),
    };
    if let Err(error) = telemetry::install_recorder() {
        return fail(EXIT_FAILED, &error);
    }
    let ran = listener::run(config, path);
    // What has been logged comes before what has ended it.
    drop(logs);
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ listener::RunError::Tls(_)) => fail(EXIT_CONFIG, &error),
        Err(error) => fail(EXIT_FAILED, &error),
    }
}

fn check(config: &Config) -> ExitCode {
    let tls = match Material::load(config) {
        Ok(tls) => tls,
        Err(error) => return fail(EXIT_CONFIG, &error),
    };
    for warning in config.warnings().iter().chain(&tls.warnings) {
        eprintln!("warning: {warning}");
    }
    println!("configuration is valid");
    ExitCode::SUCCESS
}

fn say_why(config: &Config, sql: &str, database: Option<&str>) -> ExitCode {
    let tls = match Material::load(config) {
        Ok(tls) => tls,
        Err(error) => return fail(EXIT_CONFIG, &error),
    };
    let asked = database.map(|database| ask(config, &tls, database));
    let catalog = match asked.transpose() {
        Ok(catalog) => catalog,
        Err(error) => return fail(EXIT_FAILED, &*error),
    };
    let rules = Rules::of(&config.routing);
    print!("{}", explain::explain(sql, rules, catalog.as_ref()));
    ExitCode::SUCCESS
}

fn ask(
    config: &Config,
    tls: &Material,
    database: &str,
) -> Result<Catalog, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked = runtime.block_on(ask_once(config, tls, database));
    Ok(asked?)
}

fn demo(once: bool, replicas: usize) -> ExitCode {
    match walk::run(walk::Options { replicas, once }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_FAILED, &error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("tidegate: {error}");
    ExitCode::from(code)
}
