use super::super::classify::{Reading, classify};
use super::super::fingerprint;
use super::*;

fn row(kind: &str, schema: &str, name: &str, remark: &str) -> Row {
    [kind, schema, name, remark].map(|text| Some(text.to_owned()).filter(|t| !t.is_empty()))
}

fn catalog() -> Catalog {
    let rows = [
        row("function", "public", "report", "safe"),
        row("function", "public", "total", "safe"),
        row("function", "other", "total", "unsafe"),
        row("function", "public", "touch", "unsafe"),
        row("function", "public", "lower", "unsafe"),
        row("function", "public", "json_scalar", "unsafe"),
        row("function", "public", "Odd.name", "safe"),
        row("function", "pg_catalog", "json_populate_record", "unsafe"),
        row("relation", "public", "scratch", ""),
        row("relation", "public", "Odd.view", ""),
        row("field", "", "full_name", ""),
        row("field", "", "nextval", ""),
        row("type", "", "email", ""),
        row("type", "", "people", ""),
        row("operator", "", "<%>", ""),
    ];
    Catalog::read(rows, None)
}

fn class(sql: &str, rules: &Rules) -> Class {
    let mut text = Vec::new();
    let shape = fingerprint::normalise(sql.as_bytes(), true, &mut text).expect("short");
    classify(&text, Reading::Normal(shape), rules)
}

fn judged(sql: &str, rules: &Rules) -> Verdict {
    let class = class(sql, rules);
    assert!(
        class.asks_catalog,
        "{sql}: {:?} {:?}",
        class.need, class.why
    );
    catalog().judge(&class, sql.as_bytes(), rules)
}

#[test]
fn what_is_called_read_and_meant_decides() {
    use Verdict::*;
    for (sql, expected) in [
        ("select report(1)", Read),
        ("select public.report(a) from t", Read),
        ("select other.report(1)", UnknownFunction),
        ("select missing(1)", UnknownFunction),
        // By whatever schema comes first.
        ("select total(1)", UnsafeFunction),
        ("select public.total(1)", Read),
        ("select missing(1), touch(1)", UnsafeFunction),
        ("select report(touch(1))", UnsafeFunction),
        // It may hide the built-in one.
        ("select lower(a) from t", UnsafeFunction),
        ("select pg_catalog.lower(a), upper(b) from t", Read),
        // A version that has no such word may have such a function.
        ("select json_scalar(a) from t", UnsafeFunction),
        (
            "select json_populate_record(null::t, a) from t",
            UnsafeFunction,
        ),
        (
            "select pg_catalog.json_populate_record(null::t, a) from t",
            UnsafeFunction,
        ),
        ("select \"Odd.name\"(1)", Read),
        ("select public.\"Odd.name\"(1)", Read),
        ("select a from t", Read),
        ("select a from scratch", UnsafeRelation),
        ("select a from public.scratch", UnsafeRelation),
        ("select a from app.public.scratch", UnsafeRelation),
        ("select a from other.scratch", Read),
        (
            "select a from t where exists (select from scratch)",
            UnsafeRelation,
        ),
        ("with scratch as (select 1) select * from scratch", Read),
        ("select * from \"Odd.view\"", UnsafeRelation),
        ("table scratch", UnsafeRelation),
        ("copy scratch to stdout", UnsafeRelation),
        ("select c.full_name from customers c", HiddenFunction),
        ("select (c).\"full_name\" from customers c", HiddenFunction),
        ("select 'full_name' from customers", Read),
        ("select full_name from customers", Read),
        ("select ('s'::regclass).nextval", HiddenFunction),
        (
            "select g.nextval from generate_series(1, 2) as g",
            HiddenFunction,
        ),
        ("select a::email from t", HiddenFunction),
        ("select email 'a@b' from t", HiddenFunction),
        (
            "select * from json_to_record(a) as r (b email)",
            HiddenFunction,
        ),
        ("select a from public.people", HiddenFunction),
        ("select a <%> b from t", HiddenFunction),
        ("select a operator(public.<%>) b from t", HiddenFunction),
        ("select a <%>-1 from t", HiddenFunction),
        ("select a < b from t", Read),
        ("explain select report(1)", Read),
        ("select report(1); select a from t", Read),
        ("select report(1); select touch(1)", UnsafeFunction),
    ] {
        assert_eq!(judged(sql, &Rules::default()), expected, "{sql}");
    }
}

#[test]
fn names_are_compared_as_the_server_clips_them() {
    let long = "é".repeat(31);
    let rows = [
        row("function", &long, &long, "unsafe"),
        row("relation", &long, &long, ""),
        row("field", "", &long, ""),
        row("type", "", &long, ""),
    ];
    let catalog = Catalog::read(rows, None);
    let rules = Rules::default();
    // Half of its last letter would be more than there is room for.
    for more in ["", "é", "éé and more"] {
        let name = format!("\"{long}{more}\"");
        for (sql, expected) in [
            (format!("select {name}(1)"), Verdict::UnsafeFunction),
            (format!("select {name}.{name}(1)"), Verdict::UnsafeFunction),
            (format!("table {name}"), Verdict::UnsafeRelation),
            (format!("table {name}.{name}"), Verdict::UnsafeRelation),
            (format!("select t.{name} from t"), Verdict::HiddenFunction),
            (format!("select a::{name} from t"), Verdict::HiddenFunction),
        ] {
            let verdict = catalog.judge(&class(&sql, &rules), sql.as_bytes(), &rules);
            assert_eq!(verdict, expected, "{sql}");
        }
    }
}

#[test]
fn the_configuration_wins() {
    let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let rules = Rules {
        safe: own(&["touch", "public.lower"]),
        r#unsafe: own(&["report"]),
    };
    assert_eq!(judged("select touch(1)", &rules), Verdict::Read);
    assert_eq!(judged("select public.lower(a)", &rules), Verdict::Read);
    assert_eq!(judged("select lower(a)", &rules), Verdict::UnsafeFunction);
    let class = class("select report(1)", &rules);
    assert_eq!(
        (class.asks_catalog, class.why),
        (false, Why::UnsafeFunction)
    );
}

#[test]
fn a_text_that_is_read_when_it_runs_is_known_by_what_runs_it() {
    let rows = [
        row("function", "public", "report", "safe"),
        row("function", "public", "lower", "safe"),
        row("late_relation", "public", "of_report", ""),
        row("late_field", "", "full_name", ""),
    ];
    let catalog = Catalog::read(rows, None);
    assert_eq!(catalog.len(), 4);
    let rules = Rules {
        safe: vec!["report".to_owned()],
        r#unsafe: Vec::new(),
    };
    // With the catalog, and without one.
    for (sql, with, without) in [
        ("select a, upper(b) from t", false, false),
        ("select pg_catalog.lower(a) from t", false, false),
        ("select lower(a) from t", true, false),
        ("select public.lower(a) from t", true, true),
        ("select report(1)", true, true),
        ("select * from of_report", true, false),
        ("table public.of_report", true, false),
        ("select * from other.of_report", false, false),
        ("select c.full_name from customers c", true, false),
        ("select full_name from customers", false, false),
    ] {
        let class = class(sql, &rules);
        let binds = |catalog| Catalog::binds_late(catalog, &class, sql.as_bytes());
        assert_eq!(binds(Some(&catalog)), with, "{sql}");
        assert_eq!(binds(None), without, "{sql}");
    }
}

#[test]
fn the_catalog_has_a_say_only_where_it_may_settle_it() {
    for (sql, expected) in [
        ("select 1", true),
        ("select missing()", true),
        ("select missing(), nextval('s')", false),
        ("begin; select missing()", false),
        ("select missing() for update", false),
        ("insert into t select missing()", false),
        ("call missing()", false),
        ("show work_mem", false),
        ("", false),
    ] {
        let class = class(sql, &Rules::default());
        assert_eq!(class.asks_catalog, expected, "{sql}");
    }
}

#[test]
fn while_something_is_called_unseen_nothing_is_a_read() {
    let rows = [row("everywhere", "", "compare", "operator =")];
    let catalog = Catalog::read(rows, None);
    let class = class("select 1", &Rules::default());
    let (verdict, what) = catalog.explain(&class, b"select 1", &Rules::default());
    assert_eq!(verdict, Verdict::HiddenFunction);
    assert_eq!(what.as_deref(), Some("compare (operator =)"));
}

#[test]
fn an_epoch_is_that_of_the_contents() {
    let rows = || {
        [
            row("function", "a", "f", "safe"),
            row("function", "b", "f", "safe"),
        ]
    };
    let one = Catalog::read(rows(), None);
    let [first, second] = rows();
    let same = Catalog::read([second, first], Some(&one));
    assert_eq!(same.epoch(), one.epoch());
    let other = Catalog::read([row("function", "a", "f", "unsafe")], Some(&one));
    assert_ne!(other.epoch(), one.epoch());
    assert_ne!(Catalog::read(rows(), None).epoch(), one.epoch());
    assert_eq!(one.len(), 2);
}

#[test]
fn a_memo_knows_whose_verdict_it_is() {
    let memo = Memo::default();
    assert_eq!(memo.get(5), None);
    for verdict in Verdict::ALL {
        memo.put(5, verdict);
        assert_eq!(memo.get(5), Some(verdict));
    }
    assert_eq!((memo.get(9), memo.get(1), memo.get(6)), (None, None, None));
    memo.put(6, Verdict::Read);
    memo.put(9, Verdict::Read);
    assert_eq!((memo.get(5), memo.get(6)), (None, Some(Verdict::Read)));
}

#[test]
fn names_are_read_as_they_were_written() {
    let some = |schema: &str, name: &str| (Some(schema.to_owned()), name.to_owned());
    assert_eq!(parts("f"), (None, "f".to_owned()));
    assert_eq!(parts("a.f"), some("a", "f"));
    assert_eq!(parts("db.a.f"), some("a", "f"));
    assert_eq!(parts("\"a.b\".\"c\"\"d\""), some("a.b", "c\"d"));
}

#[test]
fn the_question_holds_what_is_filled_in() {
    let rules = Rules {
        safe: vec!["my_*".to_owned(), "app.re'port".to_owned()],
        r#unsafe: Vec::new(),
    };
    let asked = question(&rules, Some(&[5, 7]));
    let names = [
        "$safe$",
        "$unsafe$",
        "$suspects$",
        "$known_safe$",
        "$rows_max$",
        "$telling$",
    ];
    assert!(names.iter().all(|name| !asked.contains(name)));
    assert!(asked.contains("p.proname ~ '^my_.*$'"));
    assert!(asked.contains("n.nspname ~ '^app$' AND p.proname ~ '^re\\''port$'"));
    assert!(asked.contains("'{5,7}'::oid[]"));
    assert!(question(&rules, None).contains("deptype = 'e'"));
}
