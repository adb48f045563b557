//! What a database's own catalog says of the names that texts use.
//!
//! Owns: the question that is asked of the database, what its answer means, and the verdict on a
//! class by it. Never: asks a server, or keeps what is outdated; `cluster::catalog` does.
//!
//! A class says what a text's words prove. The catalog knows the rest, per database: which functions
//! their owners have declared to change nothing, which relations a standby cannot read or are views
//! that call something that writes, and which operators, casts and types call such functions unseen.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::functions::{self, Rules, Safety};
use super::lexer::{Kind, Lexer, clipped};
use super::{Class, Need, Statement, Verb, Why, relations};

/// Rows that an answer may have. A database of more names is not judged by its catalog.
pub const ROWS_MAX: usize = 500_000;

/// What is known of one database at one time.
#[derive(Debug)]
pub struct Catalog {
    /// Unlike that of any other catalog with other contents, of whatever database.
    epoch: u64,
    contents: Contents,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Contents {
    /// By name: in which schemas there are functions of that name, and whether all of a schema's
    /// overloads are safe.
    functions: Names<Vec<(Box<str>, bool)>>,
    /// Relations that are not read on a standby, by name: in which schemas.
    relations: Names<Vec<Box<str>>>,
    /// Unsafe functions that may be written like a column: `a.f` for `f(a)`.
    fields: BTreeSet<Box<str>>,
    /// Types that call an unsafe function wherever they are named, and the relations that have values of these.
    types: BTreeSet<Box<str>>,
    operators: BTreeSet<Box<str>>,
    /// Unsafe functions that are called without a word, and by what.
    everywhere: Vec<(Box<str>, Box<str>)>,
    /// Relations and fields that call functions in whose texts names are looked up only when they run.
    late_relations: Names<Vec<Box<str>>>,
    late_fields: BTreeSet<Box<str>>,
}

type Names<T> = HashMap<Box<str>, T, foldhash::fast::RandomState>;

/// One row of the answer: what kind of fact it is, a schema, a name, and a remark.
pub type Row = [Option<String>; 4];

/// What the catalog makes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It is a read.
    Read,
    /// It calls a function that this database does not have, or not under that name.
    UnknownFunction,
    /// It calls a function that is not declared to change nothing, or that is known to do otherwise.
    UnsafeFunction,
    /// It reads what a standby does not have, or a view that calls an unsafe function.
    UnsafeRelation,
    /// Something in it calls an unsafe function unseen: an operator, a cast, a type, a field.
    HiddenFunction,
}

impl Verdict {
    const ALL: [Verdict; 5] = [
        Verdict::Read,
        Verdict::UnknownFunction,
        Verdict::UnsafeFunction,
        Verdict::UnsafeRelation,
        Verdict::HiddenFunction,
    ];

    pub fn needs(self) -> (Need, Why) {
        match self {
            Verdict::Read => (Need::Read, Why::ProvenRead),
            Verdict::UnknownFunction => (Need::Write, Why::UnknownFunction),
            Verdict::UnsafeFunction => (Need::Write, Why::UnsafeFunction),
            Verdict::UnsafeRelation => (Need::Write, Why::UnsafeRelation),
            Verdict::HiddenFunction => (Need::Write, Why::HiddenFunction),
        }
    }
}

/// Whether the catalog has a say in what a text of this class needs: it is a read as far as its words
/// tell, or would be one if its functions were known.
pub fn has_a_say(need: Need, why: Why, statements: &[Statement]) -> bool {
    let is_query = |s: &Statement| {
        matches!(s.verb, Verb::Plain | Verb::Copy)
            && s.pins.is_empty()
            && !s.sets_config
            && !s.reads_sequence
    };
    match (need, why) {
        (Need::Read, Why::ProvenRead) => true,
        (Need::Write, Why::UnknownFunction) => statements.iter().all(is_query),
        _ => false,
    }
}

/// Verdicts on one class, by the epochs of the catalogs that gave them: a few, as several databases
/// may be asked the same.
#[derive(Debug, Default)]
pub struct Memo([AtomicU64; 4]);

impl Memo {
    #[inline]
    pub fn get(&self, epoch: u64) -> Option<Verdict> {
        let known = self.0[epoch as usize % 4].load(Relaxed);
        match known >> 8 == epoch {
            true => Verdict::ALL.get(known as usize & 0xff).copied(),
            false => None,
        }
    }

    pub fn put(&self, epoch: u64, verdict: Verdict) {
        // One word tells all of it, so no order is needed.
        self.0[epoch as usize % 4].store(epoch << 8 | verdict as u64, Relaxed);
    }
}

/// A copy of a class has verdicts of its own.
impl Clone for Memo {
    fn clone(&self) -> Memo {
        Memo::default()
    }
}

/// Verdicts are no part of what a class is.
impl PartialEq for Memo {
    fn eq(&self, _: &Memo) -> bool {
        true
    }
}

impl Eq for Memo {}

impl Catalog {
    /// From the answer to the [`question`]. The epoch is that of `old` if nothing has changed.
    pub fn read(rows: impl IntoIterator<Item = Row>, old: Option<&Catalog>) -> Catalog {
        let mut contents = Contents::default();
        for row in rows {
            contents.add(row);
        }
        contents.settle();
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let epoch = match old {
            Some(old) if old.contents == contents => old.epoch,
            _ => NEXT.fetch_add(1, Relaxed),
        };
        Catalog { epoch, contents }
    }

    /// Never 0.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many names it knows.
    pub fn len(&self) -> usize {
        let c = &self.contents;
        let functions: usize = c.functions.values().map(Vec::len).sum();
        let relations: usize = c.relations.values().map(Vec::len).sum();
        let late: usize = c.late_relations.values().map(Vec::len).sum();
        let unseen = c.fields.len() + c.types.len() + c.operators.len() + c.everywhere.len();
        functions + relations + unseen + late + c.late_fields.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Unsafe functions that any text may call without a word, and by what: while there is one, no text
    /// is a read.
    pub fn everywhere(&self) -> &[(Box<str>, Box<str>)] {
        &self.contents.everywhere
    }

    /// Whether the database has a function of this name of its own.
    pub fn has_function(&self, name: &str) -> bool {
        self.contents.functions.contains_key(name)
    }

    /// The verdict on `sql`, which is of this class, on which the catalog [has a say](has_a_say).
    pub fn judge(&self, class: &Class, sql: &[u8], rules: &Rules) -> Verdict {
        self.explain(class, sql, rules).0
    }

    /// The verdict, and the name that decided it, if it is not a read.
    pub fn explain(&self, class: &Class, sql: &[u8], rules: &Rules) -> (Verdict, Option<String>) {
        let mut unknown = None;
        for written in &class.functions {
            let (schema, name) = parts(written);
            match self.function(schema.as_deref(), &name, rules) {
                Safety::Safe => {}
                Safety::Unsafe => return (Verdict::UnsafeFunction, Some(written.to_string())),
                Safety::Unknown => unknown = Some(written.to_string()),
            }
        }
        for written in &class.relations {
            let (schema, name) = parts(written);
            if is_among(&self.contents.relations, schema.as_deref(), &name) {
                return (Verdict::UnsafeRelation, Some(written.to_string()));
            }
        }
        if let Some(name) = self.hidden(sql) {
            return (Verdict::HiddenFunction, Some(name));
        }
        match unknown {
            Some(name) => (Verdict::UnknownFunction, Some(name)),
            None => (Verdict::Read, None),
        }
    }

    /// What is known of a function by the name that [a class](Class) gives it, with or without a catalog.
    pub fn describe(catalog: Option<&Catalog>, written: &str, rules: &Rules) -> &'static str {
        let (schema, name) = parts(written);
        let schema = schema.as_deref();
        match rules.ruling(schema, &name) {
            Safety::Safe => return "listed as safe",
            Safety::Unsafe => return "listed as unsafe",
            Safety::Unknown => {}
        }
        let built_in = functions::builtin(schema, &name);
        let found = catalog.map_or(built_in, |known| known.function(schema, &name, rules));
        match (found, built_in) {
            (Safety::Safe, Safety::Safe) => "built in, safe",
            (Safety::Unsafe, Safety::Unsafe) => "built in, unsafe",
            (Safety::Unsafe, Safety::Safe) => "built in, but hidden by an unsafe one",
            (Safety::Safe, _) => "safe",
            (Safety::Unsafe, _) => "unsafe",
            (Safety::Unknown, _) => "unknown",
        }
    }

    fn function(&self, schema: Option<&str>, name: &str, rules: &Rules) -> Safety {
        match rules.ruling(schema, name) {
            Safety::Unknown => {}
            ruling => return ruling,
        }
        let built_in = functions::builtin(schema, name);
        if built_in == Safety::Unsafe {
            return Safety::Unsafe;
        }
        let known = self.contents.functions.get(name);
        let mut found = built_in;
        for (in_schema, safe) in known.into_iter().flatten() {
            // An unqualified name may be that of any schema.
            if schema.is_none_or(|schema| *schema == **in_schema) {
                match safe {
                    true => found = Safety::Safe,
                    false => return Safety::Unsafe,
                }
            }
        }
        found
    }

    /// Whether a read of this class may run the text of a function of the database's own, with or without
    /// a catalog: what a name in that stands for may be a session's own.
    pub fn binds_late(catalog: Option<&Catalog>, class: &Class, sql: &[u8]) -> bool {
        let contents = catalog.map(|catalog| &catalog.contents);
        let is_own = |written: &str| {
            let (schema, name) = parts(written);
            let hides = |known: &Contents| known.functions.contains_key(&*name);
            functions::builtin(schema.as_deref(), &name) != Safety::Safe
                || schema.is_none() && contents.is_some_and(hides)
        };
        let is_late = |written: &str, known: &Contents| {
            let (schema, name) = parts(written);
            is_among(&known.late_relations, schema.as_deref(), &name)
        };
        class.functions.iter().any(|written| is_own(written))
            || contents.is_some_and(|known| {
                let mut relations = class.relations.iter();
                relations.any(|written| is_late(written, known))
                    || has_field(sql, &known.late_fields)
            })
    }

    /// What in `sql` calls an unsafe function without naming it.
    fn hidden(&self, sql: &[u8]) -> Option<String> {
        let Contents {
            fields,
            types,
            operators,
            everywhere,
            ..
        } = &self.contents;
        if let Some((function, by)) = everywhere.first() {
            return Some(format!("{function} ({by})"));
        }
        let mut lexer = Lexer::new(sql, true);
        let mut after_dot = false;
        let mut next = lexer.solid();
        while let Some(token) = next {
            next = lexer.solid();
            let is_called = next.is_some_and(|next| next.kind == Kind::Open);
            let text = token.text(sql);
            if token.kind == Kind::Operator {
                // It may run into a sign, so whatever holds it counts.
                let holds = |operator: &str| memchr::memmem::find(text, operator.as_bytes());
                if let Some(found) = operators.iter().find(|o| holds(o).is_some()) {
                    return Some(format!("operator {found}"));
                }
            } else if let Some(name) = token.name(sql)
                && let Ok(name) = str::from_utf8(clipped(&name))
                && (types.contains(name) || after_dot && !is_called && fields.contains(name))
            {
                return Some(name.to_owned());
            }
            after_dot = token.kind == Kind::Dot;
        }
        None
    }
}

impl Contents {
    fn add(&mut self, row: Row) {
        let [Some(kind), schema, Some(name), remark] = row else {
            return;
        };
        let (schema, name) = (schema.unwrap_or_default().into(), name.into_boxed_str());
        match kind.as_str() {
            "function" => {
                let safe = remark.is_some_and(|remark| remark == "safe");
                self.functions.entry(name).or_default().push((schema, safe));
            }
            "relation" => self.relations.entry(name).or_default().push(schema),
            "field" => drop(self.fields.insert(name)),
            "type" => drop(self.types.insert(name)),
            "operator" => drop(self.operators.insert(name)),
            "late_relation" => self.late_relations.entry(name).or_default().push(schema),
            "late_field" => drop(self.late_fields.insert(name)),
            "everywhere" => {
                let by = remark.unwrap_or_default().into_boxed_str();
                self.everywhere.push((name, by));
            }
            _ => {}
        }
    }

    /// Brings what came in any order into one.
    fn settle(&mut self) {
        self.functions.values_mut().for_each(|list| list.sort());
        let lists = self.relations.values_mut();
        let lists = lists.chain(self.late_relations.values_mut());
        lists.for_each(|list| list.sort());
        self.everywhere.sort();
    }
}

/// Whether `relations` has one that this may name.
fn is_among(relations: &Names<Vec<Box<str>>>, schema: Option<&str>, name: &str) -> bool {
    relations.get(name).is_some_and(|schemas| {
        schema.is_none_or(|schema| schemas.iter().any(|known| **known == *schema))
    })
}

/// Whether one of `fields` is named after a dot.
fn has_field(sql: &[u8], fields: &BTreeSet<Box<str>>) -> bool {
    let mut lexer = Lexer::new(sql, true);
    let mut after_dot = false;
    while let Some(token) = lexer.solid() {
        if after_dot
            && let Some(name) = token.name(sql)
            && str::from_utf8(clipped(&name)).is_ok_and(|name| fields.contains(name))
        {
            return true;
        }
        after_dot = token.kind == Kind::Dot;
    }
    false
}

/// The schema and the name in what [a class](Class) says of a function or a relation, as the server
/// clips them.
fn parts(written: &str) -> (Option<String>, String) {
    let mut parts: Vec<String> = vec![String::new()];
    let mut quoted = false;
    let mut chars = written.chars().peekable();
    while let Some(c) = chars.next() {
        let end = parts.len() - 1;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                parts[end].push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c => parts[end].push(c),
        }
    }
    for part in &mut parts {
        part.truncate(clipped(part.as_bytes()).len());
    }
    let name = parts.pop().unwrap_or_default();
    (parts.pop(), name)
}

/// What to ask a database. `suspects` are functions, by their numbers, that may change the session of
/// whoever calls them, however they are declared; if they are not known, any may but those of
/// extensions.
pub fn question(rules: &Rules, suspects: Option<&[u32]>) -> String {
    let numbers = |oids: &[u32]| {
        let oids: Vec<String> = oids.iter().map(u32::to_string).collect();
        format!("p.oid = ANY ('{{{}}}'::oid[])", oids.join(","))
    };
    const ALL_BUT_EXTENSIONS: &str = "NOT EXISTS (SELECT FROM pg_depend e \
        WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')";
    // What a policy or a view makes of a setting is the same wherever the session's settings are.
    const SETTINGS: [&str; 2] = ["current_setting", "row_security_active"];
    let (known_safe, known_unsafe) = functions::known();
    let known_safe: Vec<&str> = known_safe.chain(SETTINGS).collect();
    let prefixes: Vec<String> = functions::PREFIXES
        .iter()
        .map(|p| format!("^{p}"))
        .collect();
    [
        ("$safe$", listed(&rules.safe)),
        ("$unsafe$", listed(&rules.r#unsafe)),
        ("$prefixes$", literal(&prefixes.join("|"))),
        ("$known_unsafe$", array(known_unsafe)),
        ("$known_safe$", array(&known_safe)),
        (
            "$suspects$",
            suspects.map_or(ALL_BUT_EXTENSIONS.to_owned(), numbers),
        ),
        ("$telling$", literal(TELLING)),
        ("$of_sequences$", literal(OF_SEQUENCES)),
        ("$replicated$", array(&relations::REPLICATED)),
        ("$rows_max$", (ROWS_MAX + 1).to_string()),
    ]
    .into_iter()
    .fold(
        include_str!("catalog/question.sql").to_owned(),
        |text, (name, value)| text.replace(name, &value),
    )
}

/// Words in the body of a function that tell of what is not the same, or not done, on a standby. A
/// body that is SQL or PL/pgSQL is a string to the server: nothing else is known of what it calls.
const TELLING: &str = r"\y(nextval|setval|currval|lastval|pg_notify|pg_(try_)?advisory_\w+|txid_current\w*|pg_current_xact_id\w*|dblink\w*|lo_\w+|pg_stat_\w+|pg_statio_\w+|pg_locks|pg_settings|pg_cursors|pg_prepared_\w+|pg_replication_\w+|pg_\w+_file_\w+|pg_file_settings|pg_shmem_allocations|pg_backend_memory_contexts|pg_sequences|pg_is_in_recovery|pg_current_wal\w*|pg_last_\w+|inet_(client|server)_\w+|pg_export_snapshot|pg_backend_pid|(cursor|database|query|schema|table)_to_xml\w*)\y";

/// The columns of a sequence. Tables may have such as well: they tell only with a sequence's name.
const OF_SEQUENCES: &str = r"\y(last_value(?!\s*\()|log_cnt|is_called)\y";

/// The condition that one of the configuration's patterns names function `p` of schema `n`.
fn listed(patterns: &[String]) -> String {
    let matches =
        |column: &str, pattern: &str| format!("{column} ~ {}", literal(&expression(pattern)));
    let conditions = patterns
        .iter()
        .map(|pattern| match pattern.split_once('.') {
            None => matches("p.proname", pattern),
            Some((schema, name)) => {
                format!(
                    "({} AND {})",
                    matches("n.nspname", schema),
                    matches("p.proname", name)
                )
            }
        });
    std::iter::once("false".to_owned())
        .chain(conditions)
        .collect::<Vec<_>>()
        .join(" OR ")
}

/// A pattern of the configuration as a regular expression.
fn expression(pattern: &str) -> String {
    let mut expression = String::from("^");
    for c in pattern.chars() {
        match c {
            '*' => expression.push_str(".*"),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' => {
                expression.push('\\');
                expression.push(c);
            }
            c => expression.push(c),
        }
    }
    expression.push('$');
    expression
}

/// A string, where `standard_conforming_strings` is on.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn array(names: &[&str]) -> String {
    literal(&format!("{{{}}}", names.join(",")))
}

#[cfg(test)]
mod tests;
