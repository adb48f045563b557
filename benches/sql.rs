//! What classifying a text costs: the lexer, the normal form, a hit and a miss.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate::sql::cache::Classifier;
use tidegate::sql::fingerprint;
use tidegate::sql::functions::Rules;
use tidegate::sql::lexer::Lexer;

const TEXTS: [(&str, &str); 4] = [
    (
        "pgbench",
        "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
    ),
    (
        "update",
        "UPDATE pgbench_accounts SET abalance = abalance + -2817 WHERE aid = 12345;",
    ),
    (
        "join",
        "SELECT o.id, o.total, c.name, count(*) OVER (PARTITION BY c.id) AS orders FROM orders o \
         JOIN customers c ON c.id = o.customer_id LEFT JOIN addresses a ON a.customer_id = c.id \
         WHERE o.created_at >= now() - interval '7 days' AND c.country IN ('de', 'fr', 'it') \
         AND lower(c.email) LIKE '%@example.com' ORDER BY o.created_at DESC LIMIT 50 OFFSET 100",
    ),
    ("list", ""),
];

/// A query with a list of a thousand literals.
fn list() -> String {
    let items: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
    format!("SELECT * FROM t WHERE id IN ({})", items.join(", "))
}

fn texts() -> impl Iterator<Item = (&'static str, String)> {
    TEXTS.into_iter().map(|(name, sql)| match name {
        "list" => (name, list()),
        _ => (name, sql.to_owned()),
    })
}

fn lexer(c: &mut Criterion) {
    let mut group = c.benchmark_group("lexer");
    for (name, sql) in texts() {
        group.throughput(Throughput::Bytes(sql.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| Lexer::new(black_box(sql.as_bytes()), true).count());
        });
    }
}

fn normal_form(c: &mut Criterion) {
    let mut group = c.benchmark_group("fingerprint");
    for (name, sql) in texts() {
        group.throughput(Throughput::Bytes(sql.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                fingerprint::with(black_box(sql.as_bytes()), true, |normal| {
                    normal.map(|(text, _)| text.len())
                })
            });
        });
    }
}

fn classify(c: &mut Criterion) {
    let mut hit = c.benchmark_group("classify/hit");
    let cache = Classifier::new(Rules::default(), 1000);
    for (name, sql) in texts() {
        hit.bench_function(name, |b| {
            b.iter(|| cache.classify(black_box(sql.as_bytes()), true));
        });
    }
    hit.finish();

    let mut miss = c.benchmark_group("classify/miss");
    let nothing_kept = Classifier::new(Rules::default(), 0);
    for (name, sql) in texts() {
        miss.bench_function(name, |b| {
            b.iter(|| nothing_kept.classify(black_box(sql.as_bytes()), true));
        });
    }
}

criterion_group!(benches, lexer, normal_form, classify);
criterion_main!(benches);
