//! Reads scripts. Their form is described in `README.md` beside them.

use std::fs;
use std::path::Path;

/// What a client says, and what it waits for.
#[derive(Clone, Debug)]
pub struct Script {
    pub name: String,
    /// File and line.
    pub place: String,
    /// Run in the database once, before any script.
    pub setup: Vec<String>,
    pub login: Login,
    pub on_replicas: OnReplicas,
    /// Errors are compared by severity and code alone.
    pub errors_by_code: bool,
    pub steps: Vec<Step>,
}

/// What of a script must be served by replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReplicas {
    Any,
    AtLeast(u32),
    None,
}

/// How a connection is made.
#[derive(Clone, Debug)]
pub struct Login {
    pub password: Option<String>,
    /// In the order in which they are sent.
    pub parameters: Vec<(String, String)>,
}

impl Login {
    /// The same user and database, and nothing else.
    pub fn plain(&self) -> Login {
        let mut login = self.clone();
        let essential = |name: &str| matches!(name, "user" | "database");
        login.parameters.retain(|(name, _)| essential(name));
        login
    }
}

#[derive(Clone, Debug)]
pub struct Step {
    /// As it is written.
    pub text: String,
    pub action: Action,
}

#[derive(Clone, Debug)]
pub enum Action {
    /// Lines up bytes to be sent.
    Say {
        bytes: Vec<u8>,
        /// How many ReadyForQuery they bring.
        owes: usize,
    },
    /// Sends bytes and reads up to ReadyForQuery.
    Ask {
        bytes: Vec<u8>,
        /// Again and again until a replica has served it.
        until_replica: bool,
    },
    /// Sends what is lined up and a Sync, and reads all ReadyForQuery that they bring.
    Go,
    /// Sends what is lined up.
    Send,
    /// Sends what is lined up, and reads up to a message of each of these types in turn.
    Read(Vec<u8>),
    /// Sends what is lined up, and reads to the end of the stream.
    ReadEnd,
    /// Sends what is lined up, and reads one byte that is no message.
    ReadByte,
    /// Goes on as the client of this name, which logs in now if it is new.
    As { name: String, login: Login },
    /// Goes on as a new client that has connected and said nothing.
    Open { name: String },
    /// Sends what is lined up, and answers what it is asked until it is logged in.
    LogIn { password: String },
    /// Cancels what the client of this name is doing.
    Cancel { name: String },
    /// Closes the connection without a word.
    Leave,
    /// Sends what is lined up, and then only listens.
    Shut,
    /// Waits until replicas serve this client's reads again, or it is plain that none will.
    Settle,
    /// Waits until the superuser is answered `t` by the primary, or by any node.
    Await { sql: String, anywhere: bool },
}

/// All scripts of a directory, in the order of the files' names.
pub fn read_all(directory: &Path) -> Vec<Script> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .expect("the scripts' directory")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "script"))
        .collect();
    files.sort();
    let mut scripts = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("a script");
        let file = path.file_name().expect("name").to_string_lossy();
        read(&text, &file, &mut scripts);
    }
    let mut names: Vec<_> = scripts.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None, "two scripts have one name");
    scripts
}

fn read(text: &str, file: &str, scripts: &mut Vec<Script>) {
    let mut repeated: Option<(u32, Vec<String>)> = None;
    for (number, line) in whole_lines(text) {
        let place = format!("{file}:{number}");
        let fail = |what: &str| -> ! { panic!("{place}: {what}: {line}") };
        if let Some(name) = line.strip_prefix("== ") {
            scripts.push(Script {
                name: name.to_owned(),
                place,
                setup: Vec::new(),
                login: login(""),
                on_replicas: OnReplicas::Any,
                errors_by_code: false,
                steps: Vec::new(),
            });
            continue;
        }
        let Some(script) = scripts.last_mut() else {
            fail("before the first script")
        };
        let (verb, rest) = split(&line);
        match (verb, &mut repeated) {
            ("repeat", None) => {
                let times = rest.parse().unwrap_or_else(|_| fail("no number"));
                repeated = Some((times, Vec::new()));
            }
            ("end", Some((times, lines))) => {
                for i in 1..=*times {
                    for line in &*lines {
                        let line = line.replace("@{i}", &i.to_string());
                        let step = step(&line).unwrap_or_else(|what| fail(&what));
                        script.steps.push(step);
                    }
                }
                repeated = None;
            }
            (_, Some((_, lines))) => lines.push(line),
            (verb, None) if verb.starts_with('@') => {
                if let Err(what) = directive(verb, rest, script) {
                    fail(&what);
                }
            }
            _ => script
                .steps
                .push(step(&line).unwrap_or_else(|what| fail(&what))),
        }
    }
    assert!(repeated.is_none(), "{file}: repeat without end");
}

/// Lines with their numbers; a line that is indented goes on the one before. No comments.
fn whole_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let (Some(more), Some((_, last))) = (line.strip_prefix("  "), lines.last_mut()) {
            last.push('\n');
            last.push_str(more);
        } else if !line.trim().is_empty() && !line.starts_with('#') {
            lines.push((index + 1, line.to_owned()));
        }
    }
    lines
}

fn split(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

fn directive(verb: &str, rest: &str, script: &mut Script) -> Result<(), String> {
    match verb {
        "@replicas" => {
            script.on_replicas = match rest {
                "none" => OnReplicas::None,
                n => OnReplicas::AtLeast(n.parse().map_err(|_| "no number")?),
            }
        }
        "@setup" => script.setup.push(rest.to_owned()),
        "@items" => script.setup.push(format!(
            "CREATE TABLE {rest} (id int PRIMARY KEY, v text);
             INSERT INTO {rest} VALUES (1, 'one'), (2, 'two'), (3, 'three')"
        )),
        "@login" => script.login = login(rest),
        "@errors" if rest == "by code" => script.errors_by_code = true,
        _ => return Err("unknown directive".to_owned()),
    }
    Ok(())
}

fn step(line: &str) -> Result<Step, String> {
    let (verb, rest) = split(line);
    let say = |bytes| Action::Say { bytes, owes: 0 };
    let say_and_ready = |bytes| Action::Say { bytes, owes: 1 };
    let ask = |bytes, until_replica| Action::Ask {
        bytes,
        until_replica,
    };
    let action = match verb {
        "q" => ask(query(rest)?, false),
        "r" => ask(query(rest)?, true),
        "x" => ask(extended(rest)?, false),
        "rx" => ask(extended(rest)?, true),
        "query" => say_and_ready(query(rest)?),
        "parse" => say(parse(rest)?),
        "bind" => say(bind(rest)?),
        "describe" => say(named(b'D', rest)?),
        "close" => say(named(b'C', rest)?),
        "execute" => say(execute(rest)?),
        "sync" => say_and_ready(frame(b'S', b"")),
        "flush" => say(frame(b'H', b"")),
        "terminate" => say(frame(b'X', b"")),
        "data" => say(frame(b'd', &bytes(rest)?)),
        "done" => say(frame(b'c', b"")),
        "fail" => say(frame(b'f', &terminated(bytes(rest)?))),
        "call" => say_and_ready(call(rest)?),
        "message" => {
            let (tag, body) = split(rest);
            say(frame(single(tag)?, &bytes(body)?))
        }
        "bytes" => say(bytes(rest)?),
        "startup" => say(startup(rest)?),
        "go" => Action::Go,
        "send" => Action::Send,
        "read" if rest == "end" => Action::ReadEnd,
        "read" if rest == "byte" => Action::ReadByte,
        "read" if !rest.is_empty() => Action::Read(rest.bytes().collect()),
        "as" => {
            let (name, rest) = split(rest);
            let (name, login) = (name.to_owned(), login(rest));
            Action::As { name, login }
        }
        "open" => Action::Open {
            name: rest.to_owned(),
        },
        "login" => Action::LogIn {
            password: rest.to_owned(),
        },
        "cancel" => Action::Cancel {
            name: rest.to_owned(),
        },
        "settle" => Action::Settle,
        "leave" => Action::Leave,
        "shut" => Action::Shut,
        "await" => {
            let anywhere = rest.strip_prefix("anywhere ");
            let sql = anywhere.unwrap_or(rest).to_owned();
            let anywhere = anywhere.is_some();
            Action::Await { sql, anywhere }
        }
        _ => return Err("unknown step".to_owned()),
    };
    Ok(Step {
        text: line.to_owned(),
        action,
    })
}

/// `key=value` in quotes where there are spaces. Unless told otherwise: user and database `app`, and
/// the user's name for a password.
fn login(text: &str) -> Login {
    let mut login = Login {
        password: None,
        parameters: Vec::new(),
    };
    for word in words(text).expect("parameters").into_iter().flatten() {
        let word = String::from_utf8(word).expect("UTF-8");
        let (name, value) = word.split_once('=').expect("name=value");
        match name {
            "password" => login.password = Some(value.to_owned()),
            _ => login.parameters.push((name.to_owned(), value.to_owned())),
        }
    }
    for name in ["database", "user"] {
        if login.parameters.iter().all(|(n, _)| n != name) {
            let pair = (name.to_owned(), "app".to_owned());
            login.parameters.insert(0, pair);
        }
    }
    login
}

pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend((body.len() as i32 + 4).to_be_bytes());
    frame.extend(body);
    frame
}

pub fn query(sql: &str) -> Result<Vec<u8>, String> {
    Ok(frame(b'Q', &terminated(expand(sql)?)))
}

/// `SQL` or `SQL <<< values`.
fn extended(text: &str) -> Result<Vec<u8>, String> {
    let (sql, values) = text.split_once(" <<< ").unwrap_or((text, ""));
    Ok([
        parse(&format!("\"\" = {sql}"))?,
        bind(&format!(": {values}"))?,
        named(b'D', "p")?,
        execute("")?,
        frame(b'S', b""),
    ]
    .concat())
}

/// `name = SQL` or `name (type OIDs) = SQL`; the unnamed one is `""`.
fn parse(text: &str) -> Result<Vec<u8>, String> {
    let (head, sql) = text.split_once(" = ").ok_or("no = before the SQL")?;
    let (name, types) = match head.split_once(" (") {
        Some((name, types)) => (name, types.trim_end_matches(')')),
        None => (head, ""),
    };
    let types: Vec<u32> = numbers(&String::from_utf8_lossy(&expand(types)?))?;
    let mut body = terminated(name_of(name)?);
    body.extend(terminated(expand(sql)?));
    body.extend((types.len() as u16).to_be_bytes());
    for oid in types {
        body.extend(oid.to_be_bytes());
    }
    Ok(frame(b'P', &body))
}

/// `[portal <-] [statement] [in=formats] [out=formats] [: values]`.
fn bind(text: &str) -> Result<Vec<u8>, String> {
    let (head, values) = match text.strip_prefix(':') {
        Some(values) => ("", values),
        None => text.split_once(" :").unwrap_or((text, "")),
    };
    let (portal, head) = head.split_once("<-").unwrap_or(("", head));
    let (mut statement, mut formats_in, mut formats_out) = ("", Vec::new(), Vec::new());
    for word in head.split_whitespace() {
        if let Some(formats) = word.strip_prefix("in=") {
            formats_in = numbers::<i16>(formats)?;
        } else if let Some(formats) = word.strip_prefix("out=") {
            formats_out = numbers::<i16>(formats)?;
        } else {
            statement = word;
        }
    }
    let mut body = terminated(name_of(portal.trim())?);
    body.extend(terminated(name_of(statement)?));
    let shorts = |body: &mut Vec<u8>, numbers: &[i16]| {
        body.extend((numbers.len() as i16).to_be_bytes());
        numbers.iter().for_each(|n| body.extend(n.to_be_bytes()));
    };
    shorts(&mut body, &formats_in);
    values_into(&mut body, values)?;
    shorts(&mut body, &formats_out);
    Ok(frame(b'B', &body))
}

/// A count, and for each value its length and bytes.
fn values_into(body: &mut Vec<u8>, values: &str) -> Result<(), String> {
    let values = words(values)?;
    body.extend((values.len() as i16).to_be_bytes());
    for value in values {
        let len = value.as_ref().map_or(-1, |value| value.len() as i32);
        body.extend(len.to_be_bytes());
        body.extend(value.unwrap_or_default());
    }
    Ok(())
}

/// `[portal] [rows]`.
fn execute(text: &str) -> Result<Vec<u8>, String> {
    let (portal, rows) = match text.rsplit_once(' ') {
        Some((portal, rows)) => (portal, rows),
        None => (text, "0"),
    };
    let rows: i32 = rows.parse().map_err(|_| "no number of rows")?;
    let mut body = terminated(name_of(portal)?);
    body.extend(rows.to_be_bytes());
    Ok(frame(b'E', &body))
}

/// `s name` or `p name`: Describe and Close.
fn named(tag: u8, text: &str) -> Result<Vec<u8>, String> {
    let (kind, name) = split(text);
    let mut body = vec![single(kind)?.to_ascii_uppercase()];
    body.extend(terminated(name_of(name)?));
    Ok(frame(tag, &body))
}

/// `oid [in=formats] [out=format] [: values]`.
fn call(text: &str) -> Result<Vec<u8>, String> {
    let (head, values) = text.split_once(" :").unwrap_or((text, ""));
    let mut head = head.split_whitespace();
    let oid: u32 = head
        .next()
        .and_then(|oid| oid.parse().ok())
        .ok_or("no OID")?;
    let (mut formats, mut out) = (Vec::new(), 0);
    for word in head {
        if let Some(list) = word.strip_prefix("in=") {
            formats = numbers::<i16>(list)?;
        } else if let Some(format) = word.strip_prefix("out=") {
            out = format.parse::<i16>().map_err(|_| "no format")?;
        }
    }
    let mut body = oid.to_be_bytes().to_vec();
    body.extend((formats.len() as i16).to_be_bytes());
    formats.iter().for_each(|f| body.extend(f.to_be_bytes()));
    values_into(&mut body, values)?;
    body.extend(out.to_be_bytes());
    Ok(frame(b'F', &body))
}

/// `major.minor name=value …`.
fn startup(text: &str) -> Result<Vec<u8>, String> {
    let (version, rest) = split(text);
    let (major, minor) = version.split_once('.').ok_or("no version")?;
    let number = |text: &str| text.parse::<u16>().map_err(|_| "no version");
    let mut pairs = Vec::new();
    for word in words(rest)?.into_iter().flatten() {
        let at = word.iter().position(|&b| b == b'=').ok_or("no =")?;
        pairs.push((word[..at].to_vec(), word[at + 1..].to_vec()));
    }
    Ok(startup_packet(number(major)?, number(minor)?, &pairs))
}

pub fn startup_packet(major: u16, minor: u16, pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut body = [major.to_be_bytes(), minor.to_be_bytes()].concat();
    for (name, value) in pairs {
        body.extend(terminated(name.clone()));
        body.extend(terminated(value.clone()));
    }
    body.push(0);
    let mut packet = (body.len() as i32 + 4).to_be_bytes().to_vec();
    packet.extend(body);
    packet
}

fn terminated(mut text: Vec<u8>) -> Vec<u8> {
    text.push(0);
    text
}

fn single(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [byte] => Ok(*byte),
        _ => Err("not a single letter".to_owned()),
    }
}

fn numbers<T: std::str::FromStr>(text: &str) -> Result<Vec<T>, String> {
    let parse = |n: &str| n.trim().parse().map_err(|_| format!("no number: {n}"));
    match text {
        "" => Ok(Vec::new()),
        _ => text.split(',').map(parse).collect(),
    }
}

/// A name as it is, or within quotes.
fn name_of(text: &str) -> Result<Vec<u8>, String> {
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    expand(inner.unwrap_or(text))
}

/// Words apart by spaces; `NULL` is none, and one in single quotes may have spaces and escapes.
fn words(text: &str) -> Result<Vec<Option<Vec<u8>>>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('\'') {
            let end = quoted.find('\'').ok_or("a quote is missing")?;
            words.push(Some(bytes(&quoted[..end])?));
            rest = quoted[end + 1..].trim_start();
        } else {
            let end = rest.find(' ').unwrap_or(rest.len());
            let word = &rest[..end];
            words.push(match word {
                "NULL" => None,
                _ => Some(bytes(word)?),
            });
            rest = rest[end..].trim_start();
        }
    }
    Ok(words)
}

/// `@{hex 00ff}` is bytes, `@{text*1000}` a text so many times.
fn expand(text: &str) -> Result<Vec<u8>, String> {
    expand_with(text, |plain| Ok(plain.as_bytes().to_vec()))
}

fn expand_with(
    text: &str,
    plain: impl Fn(&str) -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("@{") {
        out.extend(plain(before)?);
        let (inner, after) = after.split_once('}').ok_or("@{ without }")?;
        if let Some(digits) = inner.strip_prefix("hex ") {
            out.extend(hex(digits)?);
        } else {
            let (text, times) = inner.rsplit_once('*').ok_or("neither hex nor *")?;
            let times = times.parse().map_err(|_| "no number of times")?;
            out.extend(text.repeat(times).as_bytes());
        }
        rest = after;
    }
    out.extend(plain(rest)?);
    Ok(out)
}

fn hex(digits: &str) -> Result<Vec<u8>, String> {
    let digits: String = digits.split_whitespace().collect();
    let byte = |at: usize| {
        let pair = digits.get(at..at + 2).ok_or("half a byte")?;
        u8::from_str_radix(pair, 16).map_err(|_| "no hexadecimal digits".to_owned())
    };
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// As [`expand`], and `\n`, `\t`, `\0`, `\\`, `\xff` are what they are in Rust.
fn bytes(text: &str) -> Result<Vec<u8>, String> {
    expand_with(text, unescaped)
}

fn unescaped(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'n') => out.push(b'\n'),
            Some(b't') => out.push(b'\t'),
            Some(b'0') => out.push(0),
            Some(b'\\') => out.push(b'\\'),
            Some(b'x') => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                out.extend(hex(&String::from_utf8_lossy(&digits))?);
            }
            _ => return Err("unknown escape".to_owned()),
        }
    }
    Ok(out)
}
