//! What the demo prints, for a person at a terminal or for a file.
//!
//! Owns: colour, bars, tables and what is drawn over. Never: sends an escape sequence to anything
//! but a terminal, nor colour to one that asks for none.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// How wide a full bar is, in characters.
const BAR: usize = 24;

/// Standard output.
pub struct Terminal {
    is_terminal: bool,
    has_color: bool,
    /// Lines of the table that the next one is drawn over.
    drawn: usize,
}

#[derive(Clone, Copy)]
pub enum Style {
    Bold,
    Dim,
    Good,
    Primary,
    Replica,
}

impl Terminal {
    pub fn stdout() -> Terminal {
        let is_dumb = env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let is_terminal = io::stdout().is_terminal() && !is_dumb;
        // As <https://no-color.org> has it: set and not empty.
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Terminal {
            is_terminal,
            has_color: is_terminal && !no_color,
            drawn: 0,
        }
    }

    /// Whether somebody watches, for whom a table may change in place.
    pub fn is_watched(&self) -> bool {
        self.is_terminal
    }

    pub fn line(&self, text: &str) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{}", text.trim_end_matches(' '))
    }

    /// The headline of a step.
    pub fn step(&self, number: usize, title: &str) -> io::Result<()> {
        let number = self.paint(Style::Dim, &format!("{number} "));
        self.line(&format!("\n{number} {}", self.paint(Style::Bold, title)))
    }

    /// Something that was done or seen, and what came of it.
    pub fn fact(&self, what: &str, outcome: &str) -> io::Result<()> {
        self.line(&format!("   {what:<46} {outcome}"))
    }

    pub fn remark(&self, text: &str) -> io::Result<()> {
        self.line(&format!("   {}", self.paint(Style::Dim, text)))
    }

    pub fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Good => "1;32",
            Style::Primary => "33",
            Style::Replica => "36",
        };
        match self.has_color && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// A bar for `part` of `whole`; what is not nothing shows.
    pub fn bar(&self, part: u64, whole: u64) -> String {
        let block = if self.is_terminal { "█" } else { "#" };
        block.repeat(bar_length(part, whole))
    }

    /// Prints a table; on a terminal, over the one before if nothing was printed since.
    pub fn redraw(&mut self, lines: &[String]) -> io::Result<()> {
        let mut out = String::new();
        if self.is_terminal {
            if self.drawn > 0 {
                out += &format!("\x1b[{}A\r\x1b[J", self.drawn);
            }
            // Without wrapping, a narrow terminal cuts lines off and the count of lines stays true.
            out += "\x1b[?7l";
        }
        for line in lines {
            out += line.trim_end();
            out.push('\n');
        }
        if self.is_terminal {
            out += "\x1b[?7h";
        }
        self.drawn = lines.len();
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }

    /// Time to read what was printed, where somebody does.
    pub async fn pause(&self) {
        if self.is_terminal {
            tokio::time::sleep(Duration::from_millis(2200)).await;
        }
    }
}

fn bar_length(part: u64, whole: u64) -> usize {
    match part {
        0 => 0,
        _ => ((part * BAR as u64).div_ceil(whole.max(1)) as usize).clamp(1, BAR),
    }
}

/// Bytes as a person reads them.
pub fn bytes(count: f64) -> String {
    match count {
        n if !n.is_finite() => "?".to_owned(),
        n if n < 1024.0 => format!("{n:.0} B"),
        n if n < 1024.0 * 1024.0 => format!("{:.1} kB", n / 1024.0),
        n => format!("{:.1} MB", n / (1024.0 * 1024.0)),
    }
}

/// A span of time as a person reads it.
pub fn seconds(span: f64) -> String {
    match span {
        s if !s.is_finite() => "?".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s => format!("{s:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_whatever_is_there() {
        for (part, whole, expected) in [
            (0, 0, 0),
            (0, 10, 0),
            (1, 10_000, 1),
            (5, 10, BAR / 2),
            (10, 10, BAR),
            (3, 0, BAR),
        ] {
            assert_eq!(bar_length(part, whole), expected, "{part} of {whole}");
        }
    }

    #[test]
    fn figures_have_units_a_person_reads() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1536.0), "1.5 kB");
        assert_eq!(bytes(3.0 * 1024.0 * 1024.0), "3.0 MB");
        assert_eq!(bytes(f64::NAN), "?");
        assert_eq!(seconds(0.0124), "12 ms");
        assert_eq!(seconds(2.34), "2.3 s");
    }

    #[test]
    fn nothing_is_painted_without_colour() {
        let plain = Terminal {
            is_terminal: false,
            has_color: false,
            drawn: 0,
        };
        assert_eq!(plain.paint(Style::Good, "0 stale"), "0 stale");
        assert_eq!(plain.bar(1, 1), "#".repeat(BAR));
    }
}
