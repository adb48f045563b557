//! Texts made to break the parser.
//!
//! Owns: the proof that no text overflows a worker's stack. Never: waits for a parse that takes
//! exponential time; such a text would show as a hanging test.

use super::super::super::cache::Classifier;
use super::super::super::functions::Rules;
use super::{Need, Why};

/// Runs on a stack of this size; a worker thread has 2 MiB.
fn on_stack<R: Send + 'static>(kib: usize, run: impl FnOnce() -> R + Send + 'static) -> R {
    std::thread::Builder::new()
        .stack_size(kib * 1024)
        .spawn(run)
        .expect("a thread")
        .join()
        .expect("no panic")
}

/// A text that repeats `open` and `close` around `inner`.
fn nest(head: &str, open: &str, inner: &str, close: &str, count: usize) -> String {
    format!("{head}{}{inner}{}", open.repeat(count), close.repeat(count))
}

/// The kinds of chain and of nesting, each with `count` links.
fn hostile(count: usize) -> Vec<String> {
    let n = |head, open, inner, close| nest(head, open, inner, close, count);
    vec![
        n("select ", "1+", "1", ""),
        n("select ", "1, 2 + ", "1", ""),
        n("select ", "(1), (2) + ", "1", ""),
        n("select ", "a and ", "true", ""),
        n("select ", "end + ", "1", ""),
        n("select ", "a or b = 1 and ", "true", ""),
        n("select ", "", "a", "::int"),
        n("select ", "", "a", "[1]"),
        n("select ", "", "a", "[1:2]"),
        n("select ", "", "a", ".b"),
        n("select ", "", "a", " is null"),
        n("select ", "", "a", " isnull"),
        n("select ", "", "a", " !"),
        n("select ", "", "a", " collate \"C\""),
        n("select ", "", "a", " at time zone b"),
        n("select ", "", "a", " in (b, c)"),
        n("select ", "", "a", " like b"),
        n("select ", "", "a", " between b and c"),
        n("", "select 1 union all ", "select 1", ""),
        n("", "select 1, 2 except ", "select 1", ""),
        n("select * from t", " join u on true", "", ""),
        n("select * from t", ", u", "", ""),
        n("select ", "(", "1", ")"),
        n("select ", "(", "", ""),
        n("", "(", "select 1", ")"),
        n("select * from ", "(", "t", ")"),
        n("select * from ", "(", "t", " join u on true)"),
        n("", "select * from (", "select 1", ") x"),
        n("", "select (", "1", ")"),
        n("", "select 1 where exists (", "select 1", ")"),
        n("", "with a as (", "select 1", ") select 1"),
        n("select ", "case when a then ", "1", " end"),
        n("select ", "case when a then ", "1", ""),
        n("select ", "lower(", "a", ")"),
        n("select ", "lower(a => ", "a", ")"),
        n("select ", "cast(", "a", " as int)"),
        n("select ", "array[", "a", "]"),
        n("select ", "position(", "a", ")"),
        n("select ", "position(", "a", " in b)"),
        n("select ", "lower(position(", "a", "))"),
        n("select ", "row(", "a", ")"),
        n("select ", "- ", "1", ""),
        n("select ", "not ", "true", ""),
        n("select ", "interval ", "'1'", ""),
        n("", "explain ", "select 1", ""),
        n("", "explain (analyze) ", "select 1", ""),
        n("copy ", "(", "select 1", ") to stdout"),
        n("", "select 1;", "", ""),
        n("", ";", "", ""),
        n("select ", "/* ", "", "*/"),
        n("select ", "'a'\n", "", ""),
        n("select 'a", "''", "", "'"),
        n("select ", "\"", "", ""),
        n("select ", "$$", "", ""),
        n("select ", "$a$ $b$ ", "", ""),
        n("select ", "+", "1", ""),
        n("select ", "<=+-", "1", ""),
    ]
}

#[test]
fn a_hundred_thousand_links_are_no_read_and_no_crash() {
    for sql in hostile(100_000) {
        let start = sql[..sql.len().min(40)].to_owned();
        let class = on_stack(512, move || {
            Classifier::new(Rules::default(), 10).classify(sql.as_bytes(), true)
        });
        let flat = class.why == Why::ProvenRead || class.why == Why::Empty;
        assert!(
            class.need == Need::Write || flat && start.contains([';', '\'', '$', '/']),
            "{:?} {:?}: {start}",
            class.need,
            class.why
        );
    }
}

#[test]
fn what_may_reach_the_parser_fits_the_stack() {
    for count in [8, 12, 16, 23, 24, 40, 400, 800, 1300, 1900] {
        for sql in hostile(count) {
            on_stack(1536, move || {
                Classifier::new(Rules::default(), 10).classify(sql.as_bytes(), true)
            });
        }
    }
}

/// What may not reach the parser is proven by its words.
#[test]
fn calls_of_position_are_reads_however_many() {
    for count in [1, 4, 5, 100] {
        let calls = vec!["position('a' in b), Position (a)"; count].join(", ");
        let sql = format!("select {calls} from t");
        let class = Classifier::new(Rules::default(), 10).classify(sql.as_bytes(), true);
        assert_eq!(class.why, Why::ProvenRead, "{count}");
    }
}

/// A comma that is folded away joins what it divided.
#[test]
fn a_chain_that_folding_makes_counts() {
    for link in ["1, 2 + ", "1, null, 2 + ", "(1), (2) + "] {
        let sql = nest("select ", link, "1", "", 2500);
        let class = Classifier::new(Rules::default(), 10).classify(sql.as_bytes(), true);
        assert_eq!(class.why, Why::TooComplex, "{link}");
    }
}

#[test]
fn long_flat_texts_are_reads() {
    let flat = |head: &str, item: &str, tail: &str| {
        let items = vec![item; 10_000].join(", ");
        format!("{head}{items}{tail}")
    };
    for sql in [
        flat("select * from t where a in (", "1", ")"),
        flat("select * from t where a in (", "$3", ")"),
        flat("select * from t where a not in (", "'x'", ") and b"),
        flat("select * from (values ", "(1, 'a', null)", ") v"),
        flat("select array[", "-1.5", "]"),
    ] {
        let class = Classifier::new(Rules::default(), 10).classify(sql.as_bytes(), true);
        assert_eq!(class.why, Why::ProvenRead, "{}", &sql[..40]);
    }
    let ors = vec!["a = 1"; 500].join(" or ");
    let class = Classifier::new(Rules::default(), 10)
        .classify(format!("select 1 from t where {ors}").as_bytes(), true);
    assert_eq!(class.why, Why::ProvenRead);
}
