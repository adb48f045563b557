//! What finding the frames in a server's answer costs: the one thing done for every message.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate::wire::frame::header;

/// A frame of type `tag` with a body of `len` bytes.
fn frame(tag: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend((len as u32 + 4).to_be_bytes());
    frame.resize(frame.len() + len, 0);
    frame
}

/// An answer of `rows` rows of `len` bytes: RowDescription, DataRow…, CommandComplete,
/// ReadyForQuery.
fn answer(rows: usize, len: usize) -> Vec<u8> {
    let mut answer = frame(b'T', 30);
    for _ in 0..rows {
        answer.extend(frame(b'D', len));
    }
    answer.extend(frame(b'C', 10));
    answer.extend(frame(b'Z', 1));
    answer
}

/// Walks over every frame; how many there are.
fn scan(mut bytes: &[u8]) -> usize {
    let mut frames = 0;
    while let Ok(Some(header)) = header(bytes) {
        bytes = &bytes[header.len..];
        frames += 1;
    }
    frames
}

fn scans(c: &mut Criterion) {
    let mut group = c.benchmark_group("scan");
    for (name, rows, len) in [
        ("one row", 1, 12),
        ("1000 short rows", 1000, 12),
        ("1000 rows of 1 kB", 1000, 1024),
    ] {
        let answer = answer(rows, len);
        assert_eq!(scan(&answer), rows + 3);
        group.throughput(Throughput::Elements(rows as u64 + 3));
        group.bench_function(name, |b| b.iter(|| scan(black_box(&answer))));
    }
}

criterion_group!(benches, scans);
criterion_main!(benches);
