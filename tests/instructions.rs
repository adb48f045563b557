//! What the hot path costs in instructions: a guard against making every query dearer unawares.
//!
//! Instructions, since they are the same on a busy machine. They are those of `benches/hot_path.rs`,
//! counted by valgrind, for two numbers of rounds: the difference is without the start.
//!
//! It is built as the tests are, but for this package, which is optimised. That spares building all
//! dependencies once more, and counts up to a fifth more than `--release` would.

mod support;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// What is counted: the operation, today's number of instructions, and the most there may be. The
/// bound is half as much again, so that a compiler or a dependency may change a little, and that
/// something done once too often for each message is noticed.
///
/// When one is over its bound, find out why: `valgrind --tool=callgrind target/debug/examples/hot_path
/// NAME 10000`, then `callgrind_annotate` on the file that it leaves. If it must be so, say so in the
/// commit that raises the figures here. When one has become much cheaper, lower them.
const OPERATIONS: &[(&str, u64, u64)] = &[
    // One batch, from the client's bytes to the last of its answer; sockets and routing aside.
    ("select", 2_540, 3_810),
    ("select_literal", 2_370, 3_555),
    ("prepared", 3_460, 5_190),
    ("unnamed", 4_150, 6_225),
    ("update", 2_450, 3_675),
    // Three of them: BEGIN, an UPDATE, COMMIT.
    ("transaction", 6_630, 9_945),
    // An answer of 1000 rows.
    ("rows", 20_500, 30_750),
    // The class of a text of 60 bytes and one of 1 kB that the thread remembers, and of one of 60
    // bytes that only the cache knows.
    ("class_short", 570, 855),
    ("class_long", 2_100, 3_150),
    ("class_lexed", 4_650, 6_975),
    // A read's way among three replicas, of a session that has read on one, and on none.
    ("route", 90, 180),
    ("route_choice", 690, 1_035),
];

/// Rounds that are counted.
const ROUNDS: u64 = 1000;
/// Rounds before them: buffers grow, and the text's class is learnt.
const WARM_UP: u64 = 100;

#[test]
fn the_hot_path_stays_within_its_bounds() {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("SKIPPED: the figures are those of x86-64");
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        let in_ci = env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(
            !in_ci,
            "valgrind is missing; scripts/setup --valgrind installs it"
        );
        eprintln!("SKIPPED: there is no valgrind; scripts/setup --valgrind installs it");
        return;
    }
    let program = build();
    let counted: Vec<u64> = thread::scope(|scope| {
        // One thread for each is no more than the machine can bear: they are few and short.
        let count = |name| {
            let program = &program;
            scope.spawn(move || {
                let rounds = |n| instructions(program, name, n);
                (rounds(WARM_UP + ROUNDS) - rounds(WARM_UP)) / ROUNDS
            })
        };
        let threads: Vec<_> = OPERATIONS.iter().map(|(name, ..)| count(*name)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, u64>| thread.join().expect("a count");
        threads.into_iter().map(join).collect()
    });
    let mut over = Vec::new();
    println!(
        "{:<16}{:>10}{:>10}{:>10}",
        "", "counted", "known", "at most"
    );
    for ((name, known, most), counted) in OPERATIONS.iter().zip(counted) {
        println!("{name:<16}{counted:>10}{known:>10}{most:>10}");
        if counted > *most {
            over.push(format!(
                "{name} takes {counted} instructions, at most {most} are allowed"
            ));
        }
    }
    assert!(
        over.is_empty(),
        "{}\nWhat to do is said above the table in tests/instructions.rs",
        over.join("\n")
    );
}

/// Builds the program that is counted, optimised.
fn build() -> PathBuf {
    let settings = [
        "opt-level=3",
        "codegen-units=16",
        "debug-assertions=false",
        "overflow-checks=false",
    ];
    let of_package = settings.map(|setting| format!("profile.dev.package.tidegate.{setting}"));
    support::example::build("hot_path", &of_package)
}

/// How many instructions the program takes for so many rounds of an operation.
fn instructions(program: &Path, name: &str, rounds: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([name, &rounds.to_string()])
        .output()
        .expect("valgrind runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, number) = collected.unwrap_or_else(|| panic!("{name}: no count in {said}"));
    number.trim().parse().expect("a number")
}
