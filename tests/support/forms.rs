//! The same statement in each form of the protocol.

use tidegate::wire::encode;
use tidegate::wire::frame::body;
use tidegate::wire::message;

use super::raw::{Raw, VERSION_3_0};

/// How a statement is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Simple,
    Extended,
    /// By a name that it gets in the same pipeline.
    Named,
    /// Between two others in one pipeline.
    Pipelined,
}

impl Form {
    pub const ALL: [Form; 4] = [Form::Simple, Form::Extended, Form::Named, Form::Pipelined];

    /// A word for names.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// A session that speaks message by message.
pub struct Speaker {
    raw: Raw,
    names: usize,
}

impl Speaker {
    pub fn start(port: u16) -> Speaker {
        Speaker::start_in(port, "app")
    }

    /// A session in this database.
    pub fn start_in(port: u16, database: &str) -> Speaker {
        // Of a parameter that is given twice the last counts.
        let mut raw = Raw::start(port, VERSION_3_0, &[("database", database)]);
        raw.log_in();
        Speaker { raw, names: 0 }
    }

    /// Runs `sql` in this form; the first column of its only row.
    ///
    /// # Errors
    /// The SQLSTATE of the error it gets.
    pub fn ask(&mut self, form: Form, sql: &str) -> Result<String, String> {
        self.say(form, sql);
        let answers = self.answers(form);
        match form {
            Form::Pipelined => {
                let [before, answer, rest @ ..] = &answers[..] else {
                    panic!("{answers:?}");
                };
                assert_eq!(before.as_deref(), Ok("11"));
                match answer {
                    Ok(_) => assert_eq!(rest, [Ok("12".to_owned())]),
                    // What comes behind it in the pipeline is skipped.
                    Err(_) => assert_eq!(rest, []),
                }
                answer.clone()
            }
            _ => {
                assert_eq!(answers.len(), 1, "{answers:?}");
                answers[0].clone()
            }
        }
    }

    /// Says `sql` in this form and does not wait for the answer.
    pub fn say(&mut self, form: Form, sql: &str) {
        self.names += 1;
        let name = format!("s{}", self.names);
        let extended = |name: &str, sql: &str| {
            [
                frame(b'P', format!("{name}\0{sql}\0\0\0").as_bytes()),
                frame(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes()),
                frame(b'D', b"P\0"),
                frame(b'E', b"\0\0\0\0\0"),
            ]
            .concat()
        };
        let said = match form {
            Form::Simple => frame(b'Q', format!("{sql}\0").as_bytes()),
            Form::Extended => [&extended("", sql), encode::SYNC].concat(),
            Form::Named => [&extended(&name, sql), encode::SYNC].concat(),
            Form::Pipelined => {
                let both = [extended("", "SELECT 11"), extended("", sql)].concat();
                [&both, &extended("", "SELECT 12")[..], encode::SYNC].concat()
            }
        };
        self.raw.send(|out| out.extend_from_slice(&said));
    }

    /// What comes up to ReadyForQuery: the last row of each statement, or its error.
    pub fn answers(&mut self, form: Form) -> Vec<Result<String, String>> {
        let mut answers = Vec::new();
        let (mut row, mut parsed) = (String::new(), 0);
        loop {
            let frame = self.raw.next().expect("an answer");
            match frame[0] {
                b'D' => {
                    let values = message::data_row(body(&frame)).expect("a row");
                    let first = values.first().copied().flatten().unwrap_or(b"");
                    row = String::from_utf8_lossy(first).into_owned();
                }
                b'C' => answers.push(Ok(std::mem::take(&mut row))),
                b'E' => {
                    let code = message::error_field(body(&frame), b'C').unwrap_or(b"");
                    answers.push(Err(String::from_utf8_lossy(code).into_owned()));
                }
                b'1' => parsed += 1,
                b'Z' => break,
                _ => {}
            }
        }
        if answers.iter().all(Result::is_ok) {
            let expected = match form {
                Form::Simple => 0,
                Form::Extended | Form::Named => 1,
                Form::Pipelined => 3,
            };
            assert_eq!(parsed, expected, "nothing is answered twice");
        }
        answers
    }
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend((body.len() as i32 + 4).to_be_bytes());
    frame.extend(body);
    frame
}
