//! What is wrong with a config, and where: file, line, column and the line itself.
//! Never quotes more of the file than that one line.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read the config file {}: {error}; name another one with --config FILE, \
         or start from a copy of the config.toml that comes with tidegate",
        path.display()
    )]
    Unreadable { path: PathBuf, error: io::Error },

    #[error("{0}")]
    Invalid(Box<Fault>),
}

/// A fault at a place in the text. Displays as `file:line:column: message` above the line itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub origin: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
    /// The offending line, without its end and without any secret.
    pub text: String,
    /// How many characters of the line are meant; at least 1.
    pub width: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}:{}:{}: {}",
            self.origin, self.line, self.column, self.message
        )?;
        let number = self.line.to_string();
        writeln!(f, "  {number} | {}", self.text)?;
        let gutter = " ".repeat(number.len());
        // Tabs are repeated, so that the marks stand under what they mean.
        let indent: String = (self.text.chars())
            .take(self.column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        write!(f, "  {gutter} | {indent}{}", "^".repeat(self.width))
    }
}

/// A config's text and the name it goes by in errors.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub origin: &'a str,
    pub text: &'a str,
    /// What paths are relative to.
    pub directory: &'a Path,
}

impl Source<'_> {
    /// A fault at a range of bytes; a range outside the text means its end.
    pub fn fault(self, span: &Range<usize>, message: impl Into<String>) -> ConfigError {
        let start = self.text.floor_char_boundary(span.start);
        let end = self.text.floor_char_boundary(span.end.max(start));
        let line_start = self.text[..start]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let line_end = (self.text[start..].find('\n')).map_or(self.text.len(), |at| start + at);
        ConfigError::Invalid(Box::new(Fault {
            origin: self.origin.to_owned(),
            line: self.text[..line_start].matches('\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            message: message.into(),
            text: without_secrets(self.text[line_start..line_end].trim_end_matches('\r')),
            width: self.text[start..end.min(line_end)]
                .trim_end()
                .chars()
                .count()
                .max(1),
        }))
    }
}

/// The line up to its first secret: a failed reload goes to the log, line and all. A key that is
/// nearly that of a secret is most likely meant to be it, and is an error for that.
fn without_secrets(line: &str) -> String {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = line;
    while let Some(start) = rest.find(is_part) {
        let word = &rest[start..];
        let end = word.find(|c| !is_part(c)).unwrap_or(word.len());
        rest = &word[end..];
        if names_secret(&word[..end])
            && let Some(equals_at) = rest.find('=')
        {
            let shown = line.len() - rest.len() + equals_at + 1;
            return format!("{} ***", &line[..shown]);
        }
    }
    line.to_owned()
}

/// Whether it is the name of a key for a secret, or what somebody may take for one.
fn names_secret(word: &str) -> bool {
    // The name, and how many typing errors leave it one.
    const NAMES: [(&str, usize); 7] = [
        ("password", 2),
        ("verifier", 2),
        ("secret", 2),
        // There may be a password in it.
        ("url", 1),
        ("pass", 0),
        ("pwd", 0),
        ("pw", 0),
    ];
    let word = word.to_lowercase();
    NAMES
        .iter()
        .any(|(name, typos)| word.contains(name) || strsim::osa_distance(&word, name) <= *typos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Range<usize>) -> String {
        let source = Source {
            origin: "a.toml",
            text,
            directory: Path::new(""),
        };
        source.fault(&span, "it is wrong").to_string()
    }

    #[test]
    fn points_at_the_place() {
        let cases = [
            (
                "x = 1",
                4..5,
                "a.toml:1:5: it is wrong\n  1 | x = 1\n    |     ^",
            ),
            (
                "a\n\tbé = é\r\nc",
                9..11,
                "a.toml:2:7: it is wrong\n  2 | \tbé = é\n    | \t     ^",
            ),
            (
                "a\nbcd\ne",
                2..7,
                "a.toml:2:1: it is wrong\n  2 | bcd\n    | ^^^",
            ),
            ("", 0..0, "a.toml:1:1: it is wrong\n  1 | \n    | ^"),
            ("a\n", 2..2, "a.toml:2:1: it is wrong\n  2 | \n    | ^"),
            ("ab", 90..99, "a.toml:1:3: it is wrong\n  1 | ab\n    |   ^"),
        ];
        for (text, span, expected) in cases {
            assert_eq!(shown(text, span), expected, "{text:?}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let cases = [
            ("password = 'x' y", "password = ***"),
            (
                "u = { name = 'a', password='x', verifier = 'y' }",
                "u = { name = 'a', password= ***",
            ),
            ("verifier = 'x", "verifier = ***"),
            ("# the password", "# the password"),
            ("pasword = 'x'", "pasword = ***"),
            (
                "{ name = 'a', Passwrod='x' }",
                "{ name = 'a', Passwrod= ***",
            ),
            ("\"password\" = 'x'", "\"password\" = ***"),
            (
                "redis = { tiemout = '1s', url = 'redis://:x@h' }",
                "redis = { tiemout = '1s', url = ***",
            ),
            ("uri = 'redis://:x@h'", "uri = ***"),
            ("db_pass = 'x'", "db_pass = ***"),
            ("secrte = 'x'", "secrte = ***"),
            ("address = 'é', max = 1", "address = 'é', max = 1"),
        ];
        for (line, expected) in cases {
            assert_eq!(without_secrets(line), expected);
        }
    }

    #[test]
    fn the_gutter_fits_long_line_numbers() {
        let text = format!("{}x", "\n".repeat(99));
        assert_eq!(
            shown(&text, 99..100),
            "a.toml:100:1: it is wrong\n  100 | x\n      | ^"
        );
    }
}
