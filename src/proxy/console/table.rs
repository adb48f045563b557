//! Owns: what the console shows, as rows of typed values, and how those are said in either format. Never:
//! knows what they mean.

use std::time::Duration;

use bytes::BytesMut;

use crate::wire::encode;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Text,
    Int,
    Float,
    Bool,
}

impl Type {
    /// PostgreSQL's OID of it, and its size in bytes; negative for one that varies.
    fn described(self) -> (u32, i16) {
        match self {
            Type::Text => (25, -1),
            Type::Int => (20, 8),
            Type::Float => (701, 8),
            Type::Bool => (16, 1),
        }
    }
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl Value {
    fn say(&self, is_binary: bool) -> Option<Vec<u8>> {
        Some(match (self, is_binary) {
            (Value::Null, _) => return None,
            (Value::Text(text), _) => text.clone().into_bytes(),
            (Value::Int(number), true) => number.to_be_bytes().to_vec(),
            (Value::Int(number), false) => number.to_string().into_bytes(),
            (Value::Float(number), true) => number.to_be_bytes().to_vec(),
            (Value::Float(number), false) => number.to_string().into_bytes(),
            (Value::Bool(is), true) => vec![u8::from(*is)],
            (Value::Bool(is), false) => if *is { b"t" } else { b"f" }.to_vec(),
        })
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<bool> for Value {
    fn from(is: bool) -> Value {
        Value::Bool(is)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Value::Int(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Value {
        Value::from(number as u64)
    }
}

/// In seconds.
impl From<Duration> for Value {
    fn from(time: Duration) -> Value {
        Value::Float(time.as_micros() as f64 / 1e6)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, T::into)
    }
}

/// A row of values of whatever types.
macro_rules! row {
    ($($value:expr),* $(,)?) => {
        vec![$($crate::proxy::console::table::Value::from($value)),*]
    };
}
pub(super) use row;

/// The name of a column, and its type.
pub type Column = (&'static str, Type);

#[derive(Debug)]
pub struct Table {
    pub columns: &'static [Column],
    pub rows: Vec<Vec<Value>>,
}

/// Which columns are to be binary: none, all, or each as its code says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formats(Vec<bool>);

impl Formats {
    /// From the codes of a Bind; `None` for one that is not known.
    pub fn of(codes: impl IntoIterator<Item = u16>) -> Option<Formats> {
        let is_binary = |code| match code {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        let codes: Option<_> = codes.into_iter().map(is_binary).collect();
        codes.map(Formats)
    }

    /// Whether there may be so many columns.
    pub fn fit(&self, columns: usize) -> bool {
        self.0.len() <= 1 || self.0.len() == columns
    }

    fn is_binary(&self, column: usize) -> bool {
        let code = if self.0.len() == 1 { 0 } else { column };
        self.0.get(code).copied().unwrap_or(false)
    }
}

/// Appends a RowDescription.
pub fn describe(columns: &[Column], formats: &Formats, out: &mut BytesMut) {
    let described = columns.iter().enumerate().map(|(at, (name, kind))| {
        let (oid, size) = kind.described();
        (*name, oid, size, i16::from(formats.is_binary(at)))
    });
    encode::row_description(out, described);
}

/// Appends a DataRow.
pub fn say(row: &[Value], formats: &Formats, out: &mut BytesMut) {
    let said = row.iter().enumerate();
    let said: Vec<_> = said
        .map(|(at, value)| value.say(formats.is_binary(at)))
        .collect();
    encode::data_row(out, &said);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::body;
    use crate::wire::message;

    #[test]
    fn values_are_said_as_their_column_wants_them() {
        let row = row!["a", 258u64, Duration::from_millis(1500), true, None::<bool>];
        let read = |formats: &Formats| {
            let mut out = BytesMut::new();
            say(&row, formats, &mut out);
            let row = message::data_row(body(&out)).unwrap();
            row.iter()
                .map(|v| v.map(<[u8]>::to_vec))
                .collect::<Vec<_>>()
        };
        let text = ["a", "258", "1.5", "t"].map(|v| Some(v.as_bytes().to_vec()));
        assert_eq!(read(&Formats::default())[..4], text);
        let binary = read(&Formats::of([1]).unwrap());
        assert_eq!(binary[0], text[0]);
        assert_eq!(binary[1], Some(vec![0, 0, 0, 0, 0, 0, 1, 2]));
        assert_eq!(binary[2], Some(1.5f64.to_be_bytes().to_vec()));
        assert_eq!(binary[3..], [Some(vec![1]), None]);
        let mixed = Formats::of([0, 1, 0, 0, 0]).unwrap();
        assert_eq!(read(&mixed)[1..3], [binary[1].clone(), text[2].clone()]);
        assert!(mixed.fit(5) && !mixed.fit(4) && Formats::default().fit(9));
        assert_eq!(Formats::of([2]), None);
    }
}
