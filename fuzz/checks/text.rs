//! Other spellings of a text, which must not make a difference.

use tidegate::sql::lexer::{Kind, Lexer, Token};

/// The tokens of a text that count.
pub fn solid(sql: &[u8], conforming: bool) -> Vec<Token> {
    let mut lexer = Lexer::new(sql, conforming);
    std::iter::from_fn(|| lexer.solid()).collect()
}

/// `sql` with other literals, other space and comments, and other letters in its words: `choices`
/// says which. The tokens are the same otherwise.
pub fn respelled(sql: &[u8], conforming: bool, choices: &[u8]) -> Vec<u8> {
    const NUMBERS: [&[u8]; 4] = [b"0", b"42", b"12.5e3", b"0x1F"];
    const STRINGS: [&[u8]; 4] = [b"''", b"'a;b''c'", b"$q$ ' -- $q$", b"E'\\''"];
    const PARAMETERS: [&[u8]; 2] = [b"$1", b"$65535"];
    // A line end between two strings would make them one.
    const SPACES: [&[u8]; 4] = [b" ", b" /* ; ' */ ", b" --'\"/*\n", b"\t\r\n"];
    let mut choices = choices.iter().copied().cycle();
    let mut choose = move |n: usize| choices.next().unwrap_or(0) as usize % n;
    let mut out = Vec::with_capacity(2 * sql.len());
    for token in solid(sql, conforming) {
        let text = token.text(sql);
        match token.kind {
            Kind::Number => out.extend(NUMBERS[choose(4)]),
            Kind::String => out.extend(STRINGS[choose(4)]),
            Kind::Parameter => out.extend(PARAMETERS[choose(2)]),
            Kind::Word if choose(2) == 0 => out.extend(text.to_ascii_uppercase()),
            _ => out.extend(text),
        }
        match token.kind {
            // It is the last one, and goes on to the end.
            Kind::Broken => {}
            Kind::String => out.extend(SPACES[choose(2)]),
            _ => out.extend(SPACES[choose(4)]),
        }
    }
    out
}

/// The lines of a script. `\0`, `\n`, `\\` and `\x1f` stand for a byte each.
pub fn lines(script: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    script
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(unescaped)
}

fn unescaped(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match (first, tail) {
            (b'\\', [b'0', tail @ ..]) => (0, tail),
            (b'\\', [b'n', tail @ ..]) => (b'\n', tail),
            (b'\\', [b'\\', tail @ ..]) => (b'\\', tail),
            (b'\\', [b'x', a, b, tail @ ..]) => match (digit(*a), digit(*b)) {
                (Some(a), Some(b)) => (a << 4 | b, tail),
                _ => (first, rest.get(1..).unwrap_or(&[])),
            },
            _ => (first, tail),
        };
        out.push(byte);
        rest = tail;
    }
    out
}

fn digit(hex: u8) -> Option<u8> {
    char::from(hex).to_digit(16).map(|digit| digit as u8)
}
