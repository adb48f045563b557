//! The package's examples, for tests that run one: cargo builds them only where it tests all there is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds an example beside what the tests have built already, with these settings of cargo's, and tells where it
/// is.
pub fn build(name: &str, settings: &[String]) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let target = target.parent().expect("a directory within cargo's");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--example", name])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // What `cargo test` says of this package would be news to build scripts that look at it, and
    // what they build be built again each time.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    for setting in settings {
        cargo.args(["--config", setting]);
    }
    let built = cargo.status().expect("cargo runs");
    assert!(built.success(), "example {name} can't be built");
    target.join("debug/examples").join(name)
}
