//! Reads psql's scripts, as far as PostgreSQL's regression suite needs it.

use std::collections::HashMap;

use tidegate::sql::lexer::{Kind, Lexer, statements};

/// What a script says next.
#[derive(Debug)]
pub enum Item {
    Statement(String),
    /// COPY … FROM STDIN, with its lines.
    Copy(String, String),
    /// `\c` with the database and the user, if they are named.
    Connect(Option<String>, Option<String>),
}

/// Splits a script. What depends on an answer (`\gset`, `\if`) is left out: statements with variables
/// that are not known are told as they are.
pub fn read(text: &str, environment: &HashMap<&str, String>) -> Vec<Item> {
    let mut variables: HashMap<String, String> = HashMap::new();
    let mut items = Vec::new();
    let mut buffer = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if buffer.trim().is_empty() && line.trim_start().starts_with('\\') {
            buffer.clear();
            let words = words(line.trim_start(), &variables);
            match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["\\getenv", name, variable] => {
                    let value = environment.get(variable).cloned().unwrap_or_default();
                    variables.insert(name.to_owned(), value);
                }
                ["\\set", name, ref values @ ..] => {
                    variables.insert(name.to_owned(), values.concat());
                }
                ["\\c" | "\\connect", ref arguments @ ..] => {
                    let argument = |n: usize| {
                        let given = arguments.get(n).filter(|a| **a != "-");
                        given.map(|a| (*a).to_owned())
                    };
                    items.push(Item::Connect(argument(0), argument(1)));
                }
                _ => {}
            }
            continue;
        }
        buffer.push_str(&substitute(line, &variables));
        buffer.push('\n');
        for statement in take_whole(&mut buffer) {
            let copies = statement.trim_start().to_ascii_lowercase();
            let from_stdin = copies.starts_with("copy ")
                && copies
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
                    .contains("from stdin");
            if !from_stdin {
                items.push(Item::Statement(statement));
                continue;
            }
            let mut data = String::new();
            for line in lines.by_ref().take_while(|line| *line != "\\.") {
                data.push_str(line);
                data.push('\n');
            }
            items.push(Item::Copy(statement, data));
        }
    }
    items
}

/// Takes what is complete from the start of the buffer.
fn take_whole(buffer: &mut String) -> Vec<String> {
    let sql = buffer.as_bytes();
    let (mut depth, mut end, mut ends) = (0i32, 0, false);
    let mut begins = 0;
    for token in Lexer::new(sql, true) {
        match token.kind {
            Kind::Broken => return Vec::new(),
            Kind::Open => depth += 1,
            Kind::Close => depth -= 1,
            // A body of SQL statements, whose semicolons end nothing.
            Kind::Word if token.is(sql, "atomic") => begins = 1,
            Kind::Word if begins > 0 && token.is(sql, "case") => begins += 1,
            Kind::Word if begins > 0 && token.is(sql, "end") => begins -= 1,
            Kind::Semicolon if depth <= 0 && begins == 0 => {
                (end, ends, depth) = (token.end, true, 0);
            }
            // \gset and the like end a statement too.
            Kind::Other if token.text(sql) == b"\\" => {
                let text = buffer[..token.start].to_owned();
                buffer.clear();
                let is_blank = text.trim().is_empty();
                return if is_blank { Vec::new() } else { vec![text] };
            }
            _ => {}
        }
    }
    if !ends {
        return Vec::new();
    }
    let rest = buffer.split_off(end);
    let whole = std::mem::replace(buffer, rest);
    let ranges: Vec<_> = statements(whole.as_bytes(), true).collect();
    ranges
        .into_iter()
        .map(|range| whole[range].to_owned())
        .collect()
}

/// Puts variables in: `:name`, `:'name'` and `:"name"`.
fn substitute(line: &str, variables: &HashMap<String, String>) -> String {
    let mut line = line.to_owned();
    for (name, value) in variables {
        let literal = format!("'{}'", value.replace('\'', "''"));
        line = line.replace(&format!(":'{name}'"), &literal);
        line = line.replace(&format!(":\"{name}\""), &format!("\"{value}\""));
        if !line.contains(&format!("::{name}")) {
            line = line.replace(&format!(":{name}"), value);
        }
    }
    line
}

/// The words of a command, with quotes taken off and variables put in.
fn words(line: &str, variables: &HashMap<String, String>) -> Vec<String> {
    let mut words: Vec<String> = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("one").push(c),
        }
    }
    let value = |word: String| match word.strip_prefix(':') {
        Some(name) => variables.get(name).cloned().unwrap_or(word),
        None => word,
    };
    words
        .into_iter()
        .filter(|w| !w.is_empty())
        .map(value)
        .collect()
}
