//! Owns: tokens: what a session has written and seen, in a form that can be carried elsewhere. Never:
//! compares the positions of two histories.

use std::fmt;

use super::consistency::Lsn;

/// A position in the history of one system. Its text is `tg1:SYSTEM:TIMELINE:LSN`, where `tg1` is the
/// version of the form, and the others are as PostgreSQL shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The system identifier.
    pub system: u64,
    /// 0 is none.
    pub timeline: u32,
    pub lsn: Lsn,
}

const VERSION: &str = "tg1";

/// The longest text of a token, in bytes.
const TEXT_BYTES_MAX: usize = 64;

/// What is wrong with a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is no token")]
    Form,
    #[error("it is a token of a version that is not known here")]
    Version,
    #[error("it is of another cluster, this one's system identifier is {0}")]
    OtherSystem(u64),
}

impl TokenError {
    pub fn advice(&self) -> &'static str {
        match self {
            TokenError::Form => "Use what SHOW tidegate.token has shown.",
            TokenError::Version => "It is from a newer Tidegate than this one.",
            TokenError::OtherSystem(_) => {
                "A token is of use where its cluster is read, and nowhere else."
            }
        }
    }
}

impl Token {
    /// # Errors
    /// What is not the text of a token.
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Form);
        }
        let (version, rest) = text.split_once(':').ok_or(TokenError::Form)?;
        let number = version.strip_prefix("tg").ok_or(TokenError::Form)?;
        if version != VERSION {
            let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            return Err(match is_number {
                true => TokenError::Version,
                false => TokenError::Form,
            });
        }
        let mut parts = rest.split(':');
        let mut next = || parts.next().ok_or(TokenError::Form);
        let (system, timeline, lsn) = (next()?, next()?, next()?);
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let (Ok(system), Ok(timeline), Some(lsn), true) = (
            system.parse(),
            timeline.parse(),
            Lsn::parse(lsn).filter(|_| parts.next().is_none()),
            digits(system) && digits(timeline),
        ) else {
            return Err(TokenError::Form);
        };
        Ok(Token {
            system,
            timeline,
            lsn,
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Token {
            system,
            timeline,
            lsn,
        } = self;
        write!(f, "{VERSION}:{system}:{timeline}:{lsn}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text() {
        let token = Token {
            system: 7_312_345_678_901_234_567,
            timeline: 3,
            lsn: Lsn(0x16_B374_D848),
        };
        let text = token.to_string();
        assert_eq!(text, "tg1:7312345678901234567:3:16/B374D848");
        assert_eq!(Token::parse(&text), Ok(token));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in [
            "",
            "tg1",
            "tg1:1:1",
            "tg1:1:1:0",
            "tg1:1:1:0/0:0",
            "tg1:-1:1:0/0",
            "tg1:+1:1:0/0",
            "tg1:1:99999999999:0/0",
            "tg:1:1:0/0",
            "tgx:1:1:0/0",
            "x1:1:1:0/0",
            "tg1:1:1:0/0 ' or '",
        ] {
            assert_eq!(Token::parse(text), Err(TokenError::Form), "{text}");
        }
        assert_eq!(Token::parse("tg2:anything"), Err(TokenError::Version));
        let long = format!("tg1:1:1:{}0/0", " ".repeat(99));
        assert_eq!(Token::parse(&long), Err(TokenError::Form));
    }
}
