//! Reads one TOML table: its keys are checked as it opens, its values typed as they are taken.
//! Never lets a key pass unread: what is not known is an error with the nearest known name.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Source};
use super::units;
use super::{NAME_BYTES_MAX, Secret, Verifier};

type Result<T> = std::result::Result<T, ConfigError>;

/// How far a typing error may be from the name it is taken for, in edits.
const TYPO_EDITS_MAX: usize = 3;

/// What the operating system leaves for the directory of a Unix socket: 107 bytes, less the longest
/// `/.s.PGSQL.65535`.
const SOCKET_DIRECTORY_BYTES_MAX: usize = 107 - 15;

/// The keys of a table.
pub(super) type Keys = &'static [&'static str];

/// Keys that a later version will read, by their full names.
const RESERVED: &[&str] = &["cluster.node.tags"];

pub(super) struct Section<'a> {
    source: Source<'a>,
    /// `"pool"`, `"cluster.node"`; empty for the file's root.
    path: String,
    span: Range<usize>,
    /// `None` if the file leaves the table out: then every key has its default.
    table: Option<&'a DeTable<'a>>,
    keys: Keys,
    /// It is one of a list, and so written `[[path]]`.
    is_listed: bool,
    /// `None` in the file's root.
    parent: Option<Parent>,
}

/// The table that another one is in.
#[derive(Clone)]
struct Parent {
    header: String,
    keys: Keys,
}

impl<'a> Section<'a> {
    pub fn root(source: Source<'a>, table: &'a DeTable<'a>, keys: Keys) -> Result<Section<'a>> {
        // A fault of the file as a whole has no place of its own: it is shown at the first line.
        let (path, span) = (String::new(), 0..0);
        Section {
            source,
            path,
            span,
            table: Some(table),
            keys,
            is_listed: false,
            parent: None,
        }
        .checked()
    }

    /// The table under `key`, empty if it is left out.
    pub fn section(&self, key: &'static str, keys: Keys) -> Result<Section<'a>> {
        match self.value(key) {
            Some(value) => value.section(keys),
            None => Ok(Section {
                source: self.source,
                path: self.full_name(key),
                span: self.span.clone(),
                table: None,
                keys,
                is_listed: false,
                parent: self.as_parent(),
            }),
        }
    }

    /// The tables under `key`, written `[[key]]` once for each.
    pub fn sections(&self, key: &'static str, keys: Keys) -> Result<Vec<Section<'a>>> {
        match self.value(key) {
            Some(value) => match value.value {
                DeValue::Array(_) => value
                    .items()?
                    .iter()
                    .map(|item| item.section(keys))
                    .collect(),
                DeValue::Table(_) => Err(value.fault(format!(
                    "write [[{0}]], not [{0}]: it is a list",
                    value.name
                ))),
                _ => Err(value.wrong_type("a list of tables")),
            },
            None => Ok(Vec::new()),
        }
    }

    pub fn get<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value<'a>) -> Result<T>,
    ) -> Result<T> {
        self.value(key).map_or(Ok(default), |value| read(&value))
    }

    pub fn optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Value<'a>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.value(key).map(|value| read(&value)).transpose()
    }

    pub fn required<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Value<'a>) -> Result<T>,
    ) -> Result<T> {
        match self.value(key) {
            Some(value) => read(&value),
            None => Err(self.fault(format!(r#"missing key "{}""#, self.full_name(key)))),
        }
    }

    pub fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// A fault of the whole table.
    pub fn fault(&self, message: impl Into<String>) -> ConfigError {
        self.source.fault(&self.span, message)
    }

    /// A fault of one value, or of the table if the value is a default.
    pub fn fault_at(&self, key: &'static str, message: impl Into<String>) -> ConfigError {
        match self.value(key) {
            Some(value) => value.fault(message),
            None => self.fault(message),
        }
    }

    fn value(&self, key: &'static str) -> Option<Value<'a>> {
        debug_assert!(self.keys.contains(&key), "{key} is not in the table's keys");
        let value = self.table?.get(key)?;
        Some(Value {
            source: self.source,
            name: self.full_name(key),
            span: value.span(),
            value: value.get_ref(),
            is_listed: false,
            parent: self.as_parent(),
        })
    }

    /// The root is no place to be told: what it knows are other tables.
    fn as_parent(&self) -> Option<Parent> {
        (!self.path.is_empty()).then(|| Parent {
            header: self.header(),
            keys: self.keys,
        })
    }

    /// `[auth]`, `[[cluster.node]]`.
    fn header(&self) -> String {
        match self.is_listed {
            true => format!("[[{}]]", self.path),
            false => format!("[{}]", self.path),
        }
    }

    fn full_name(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// Refuses unknown keys first of all: a typing error in a required key should be reported as
    /// such, not as a missing key.
    fn checked(self) -> Result<Section<'a>> {
        let unknown = (self.table.into_iter().flatten())
            .map(|(key, _)| key)
            .filter(|key| !self.keys.contains(&key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        match unknown {
            None => Ok(self),
            Some(key) => Err(self
                .source
                .fault(&key.span(), self.unknown_key(key.get_ref().as_ref()))),
        }
    }

    fn unknown_key(&self, key: &str) -> String {
        let name = self.full_name(key);
        if RESERVED.contains(&name.as_str()) {
            return format!(r#""{name}" is not supported yet"#);
        }
        if let Some(near) = nearest(key, self.keys) {
            return format!(r#"unknown key "{name}"; did you mean "{near}"?"#);
        }
        if let Some(place) = self.place_above(key) {
            return format!(r#"unknown key "{name}"; it belongs in {place}"#);
        }
        let known = self.keys.join(", ");
        format!(r#"unknown key "{name}"; the keys known here are {known}"#)
    }

    /// Where the key belongs that is written below the header of a table within its own.
    fn place_above(&self, key: &str) -> Option<String> {
        let parent = self.parent.as_ref()?;
        let is_own_name = self.path.ends_with(&format!(".{key}"));
        if is_own_name || !parent.keys.contains(&key) {
            return None;
        }
        let text = self.source.text.get(self.span.start..);
        let has_header = text.is_some_and(|text| text.starts_with('['));
        let (place, header) = (&parent.header, self.header());
        Some(match (has_header, self.is_listed) {
            (false, _) => place.clone(),
            (true, true) => format!("{place}, above the first {header}"),
            (true, false) => format!("{place}, above {header}"),
        })
    }
}

/// A value with its full name and its place.
pub(super) struct Value<'a> {
    source: Source<'a>,
    name: String,
    span: Range<usize>,
    value: &'a DeValue<'a>,
    is_listed: bool,
    parent: Option<Parent>,
}

impl<'a> Value<'a> {
    /// Any text but an empty one. A zero byte would end a protocol string early, so it is refused
    /// wherever the text may go.
    pub fn string(&self) -> Result<String> {
        match self.text()? {
            "" => Err(self.fault(format!(r#""{}" must not be empty"#, self.name))),
            text => Ok(text.to_owned()),
        }
    }

    /// What a client may name, which PostgreSQL cuts after so many bytes: nobody could name what is longer.
    pub fn name(&self) -> Result<String> {
        let name = self.string()?;
        match name.len() > NAME_BYTES_MAX {
            true => Err(self.fault(format!(
                r#""{}" must have {NAME_BYTES_MAX} bytes at most, as names in PostgreSQL have"#,
                self.name
            ))),
            false => Ok(name),
        }
    }

    pub fn names(&self) -> Result<Vec<String>> {
        self.items()?.iter().map(Value::name).collect()
    }

    pub fn secret(&self) -> Result<Secret> {
        self.string().map(Secret::new)
    }

    /// The text is not repeated: an error may end up where a secret must not.
    pub fn verifier(&self) -> Result<Verifier> {
        Verifier::parse(&self.string()?).map_err(|error| {
            let name = &self.name;
            self.fault(format!(
                r#""{name}" is no SCRAM verifier as pg_authid.rolpassword has them: {error}"#
            ))
        })
    }

    /// A path, relative to the file's own directory.
    pub fn path(&self) -> Result<PathBuf> {
        Ok(self.source.directory.join(self.string()?))
    }

    pub fn strings(&self) -> Result<Vec<String>> {
        self.items()?.iter().map(Value::string).collect()
    }

    pub fn integer<T: TryFrom<i64>>(&self, range: RangeInclusive<i64>) -> Result<T> {
        let DeValue::Integer(integer) = self.value else {
            return Err(self.wrong_type("an integer"));
        };
        (i64::from_str_radix(integer.as_str(), integer.radix()).ok())
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                let (name, min, max) = (&self.name, range.start(), range.end());
                self.fault(format!(
                    r#""{name}" must be from {min} to {max}, not {integer}"#
                ))
            })
    }

    pub fn boolean(&self) -> Result<bool> {
        match self.value {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// A duration that may be 0.
    pub fn duration_or_zero(&self) -> Result<Duration> {
        let duration = units::parse_duration(self.scalar_text(units::DURATION_FORM)?)
            .ok_or_else(|| self.not_of_form(units::DURATION_FORM))?;
        match duration > units::DURATION_MAX {
            true => Err(self.not_of_form("at most 365d")),
            false => Ok(duration),
        }
    }

    pub fn duration(&self) -> Result<Duration> {
        match self.duration_or_zero()? {
            Duration::ZERO => Err(self.must_be_positive()),
            duration => Ok(duration),
        }
    }

    /// A size in bytes, at least 1.
    pub fn size(&self) -> Result<u64> {
        match units::parse_size(self.scalar_text(units::SIZE_FORM)?) {
            None => Err(self.not_of_form(units::SIZE_FORM)),
            Some(0) => Err(self.must_be_positive()),
            Some(size) => Ok(size),
        }
    }

    /// One of the named choices.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T> {
        let text = self.text()?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(*choice);
        }
        let names: Vec<_> = choices
            .iter()
            .map(|(name, _)| format!(r#""{name}""#))
            .collect();
        Err(self.not_of_form(&names.join(" or ")))
    }

    /// An address to listen on, or a list of them.
    pub fn socket_addresses(&self) -> Result<Vec<SocketAddr>> {
        match self.value {
            DeValue::Array(_) => self.items()?.iter().map(Value::socket_address).collect(),
            _ => Ok(vec![self.socket_address()?]),
        }
    }

    /// As [`Value::socket_addresses`] of one, where an empty text means none.
    pub fn socket_address_or_none(&self) -> Result<Option<SocketAddr>> {
        match self.text()? {
            "" => Ok(None),
            _ => self.socket_address().map(Some),
        }
    }

    /// A node's `host:port`, with an IPv6 address in brackets; or its Unix socket's
    /// `/directory:port`.
    pub fn host_and_port(&self) -> Result<(String, u16)> {
        let text = self.text()?;
        if text.starts_with('/') {
            return self.directory_and_port(text);
        }
        split_host_and_port(text).ok_or_else(|| self.not_of_form(r#""host:port""#))
    }

    fn directory_and_port(&self, text: &str) -> Result<(String, u16)> {
        const FORM: &str =
            r#"the directory and the port of a Unix socket, such as "/run/postgresql:5432""#;
        let (directory, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let port = port
            .parse()
            .ok()
            .filter(|_| port.starts_with(|c: char| c.is_ascii_digit()));
        let port: u16 = port
            .filter(|port| *port != 0)
            .ok_or_else(|| self.not_of_form(FORM))?;
        self.check_socket_directory(directory.len())?;
        Ok((directory.to_owned(), port))
    }

    /// The directory of a Unix socket of our own.
    pub fn socket_directory(&self) -> Result<PathBuf> {
        let path = self.path()?;
        self.check_socket_directory(path.as_os_str().len())?;
        Ok(path)
    }

    fn check_socket_directory(&self, bytes: usize) -> Result<()> {
        const MAX: usize = SOCKET_DIRECTORY_BYTES_MAX;
        match bytes > MAX {
            true => Err(self.fault(format!(
                "the directory of a Unix socket may have {MAX} bytes at most"
            ))),
            false => Ok(()),
        }
    }

    pub fn section(&self, keys: Keys) -> Result<Section<'a>> {
        let (source, path, span) = (self.source, self.name.clone(), self.span.clone());
        match self.value {
            DeValue::Table(table) => Section {
                source,
                path,
                span,
                table: Some(table),
                keys,
                is_listed: self.is_listed,
                parent: self.parent.clone(),
            }
            .checked(),
            DeValue::Array(_) => Err(self.fault(format!(
                "write [{0}], not [[{0}]]: there is only one",
                self.name
            ))),
            _ => Err(self.wrong_type("a table")),
        }
    }

    pub fn fault(&self, message: impl Into<String>) -> ConfigError {
        self.source.fault(&self.span, message)
    }

    fn socket_address(&self) -> Result<SocketAddr> {
        (self.text()?.parse())
            .map_err(|_| self.not_of_form(r#"an IP address and a port, such as "127.0.0.1:6432""#))
    }

    /// The elements, each by the name of the whole.
    fn items(&self) -> Result<Vec<Value<'a>>> {
        let DeValue::Array(array) = self.value else {
            return Err(self.wrong_type("a list"));
        };
        Ok(array
            .iter()
            .map(|item| Value {
                source: self.source,
                name: self.name.clone(),
                span: item.span(),
                value: item.get_ref(),
                is_listed: true,
                parent: self.parent.clone(),
            })
            .collect())
    }

    fn text(&self) -> Result<&'a str> {
        self.scalar_text("a string")
    }

    /// The text of a string, or an error that tells what the string should have held.
    fn scalar_text(&self, expected: &str) -> Result<&'a str> {
        match self.value {
            DeValue::String(text) if text.contains('\0') => {
                Err(self.fault(format!(r#""{}" must not contain a zero byte"#, self.name)))
            }
            DeValue::String(text) => Ok(text),
            _ => Err(self.wrong_type(expected)),
        }
    }

    fn wrong_type(&self, expected: &str) -> ConfigError {
        let actual = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.fault(format!(
            r#""{}" must be {expected}, not {actual}"#,
            self.name
        ))
    }

    fn not_of_form(&self, expected: &str) -> ConfigError {
        let actual = self.value.as_str().unwrap_or_default();
        self.fault(format!(
            r#""{}" must be {expected}, not "{actual}""#,
            self.name
        ))
    }

    fn must_be_positive(&self) -> ConfigError {
        self.fault(format!(r#""{}" must be more than 0"#, self.name))
    }
}

fn split_host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']').filter(|ip| ip.contains(':'))?,
        None => Some(host).filter(|name| !name.contains(':'))?,
    };
    let allowed = |c: char| c.is_alphanumeric() || "-_.:%".contains(c);
    if host.is_empty()
        || !host.chars().all(allowed)
        || !port.starts_with(|c: char| c.is_ascii_digit())
    {
        return None;
    }
    Some((
        host.to_owned(),
        port.parse().ok().filter(|port| *port != 0)?,
    ))
}

/// The known name that a typing error most likely meant.
fn nearest(typed: &str, known: &[&'static str]) -> Option<&'static str> {
    (known.iter())
        .map(|name| (strsim::damerau_levenshtein(typed, name), *name))
        // Half of a short name's letters changed makes it another name, not a typing error.
        .filter(|(edits, name)| *edits <= TYPO_EDITS_MAX && *edits * 2 <= name.len())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        let valid = [
            ("127.0.0.1:5500", "127.0.0.1", 5500),
            ("db-1.internal:5432", "db-1.internal", 5432),
            ("[::1]:5432", "::1", 5432),
            ("[fe80::1%eth0]:5432", "fe80::1%eth0", 5432),
        ];
        for (text, host, port) in valid {
            assert_eq!(
                split_host_and_port(text),
                Some((host.to_owned(), port)),
                "{text}"
            );
        }
        for text in [
            "", "db", ":5432", "db:", "db:0", "db:65536", "db:+1", "db:x", "::1:5432", "[db]:1",
            "[::1]", "a b:1",
        ] {
            assert_eq!(split_host_and_port(text), None, "{text}");
        }
    }

    #[test]
    fn the_nearest_name() {
        let known = &["size", "mode", "checkout_timeout", "tls"];
        let cases = [
            ("sise", Some("size")),
            ("Size", Some("size")),
            ("checkout-timeout", Some("checkout_timeout")),
            ("checkouttimeout", Some("checkout_timeout")),
            ("tsl", Some("tls")),
            ("banana", None),
            ("", None),
        ];
        for (typed, expected) in cases {
            assert_eq!(nearest(typed, known), expected, "{typed:?}");
        }
    }
}
