//! Durations and sizes as people write them: `"300ms"`, `"64MB"`.
//! Never takes a bare number (except a duration of "0"): a number without its unit is how a
//! timeout of five seconds becomes one of five milliseconds.

use std::time::Duration;

/// The longest duration a config may hold. It keeps every deadline far from overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

pub const DURATION_FORM: &str =
    r#"a whole number with a unit (us, ms, s, m, h or d), such as "300ms", "5s" or "2m""#;
pub const SIZE_FORM: &str =
    r#"a whole number with a unit (B, kB, MB, GB or TB, in powers of 1024), such as "64MB""#;

/// Reads a duration of any length.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (count, unit) = split(text)?;
    let unit = match unit {
        "us" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" | "min" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        "d" => Duration::from_secs(24 * 3600),
        _ => return None,
    };
    let micros = u64::try_from(unit.as_micros()).ok()?.checked_mul(count)?;
    Some(Duration::from_micros(micros))
}

/// As [`parse_duration`] reads it, in the largest unit that leaves a whole number.
pub fn show_duration(duration: Duration) -> String {
    let us = duration.as_micros();
    let units = [
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1_000),
    ];
    let fits = |(_, unit): &&(&str, u128)| us >= *unit && us.is_multiple_of(*unit);
    match units.iter().find(fits) {
        Some((name, unit)) => format!("{}{name}", us / unit),
        None => format!("{us}us"),
    }
}

/// Reads a size in bytes, with PostgreSQL's units: 1kB is 1024 bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let (count, unit) = split(text)?;
    let shift = match unit {
        "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    count.checked_mul(1 << shift)
}

/// The digits, and the unit behind them with or without a space.
fn split(text: &str) -> Option<(u64, &str)> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at(unit_at);
    Some((count.parse().ok()?, unit.trim_start_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let valid = [
            ("0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("250us", Duration::from_micros(250)),
            ("300ms", Duration::from_millis(300)),
            ("5s", Duration::from_secs(5)),
            ("5 s", Duration::from_secs(5)),
            ("2m", Duration::from_secs(120)),
            ("2min", Duration::from_secs(120)),
            ("1h", Duration::from_secs(3600)),
            ("365d", DURATION_MAX),
        ];
        for (text, expected) in valid {
            assert_eq!(parse_duration(text), Some(expected), "{text:?}");
        }
        for text in [
            "",
            "5",
            "s",
            "-5s",
            "+5s",
            "1.5s",
            "5S",
            "5sec",
            "5s ",
            " 5s",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn durations_are_shown_as_they_are_read() {
        for text in [
            "1us", "1500us", "200ms", "1s", "90s", "2m", "1h", "25h", "3d",
        ] {
            assert_eq!(show_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(show_duration(Duration::from_secs(120)), "2m");
    }

    #[test]
    fn sizes() {
        let valid = [
            ("0B", 0),
            ("1B", 1),
            ("8kB", 8 << 10),
            ("64MB", 64 << 20),
            ("64 MB", 64 << 20),
            ("1GB", 1 << 30),
            ("2TB", 2 << 40),
        ];
        for (text, expected) in valid {
            assert_eq!(parse_size(text), Some(expected), "{text:?}");
        }
        for text in [
            "",
            "64",
            "MB",
            "-1MB",
            "64mb",
            "64MiB",
            "1.5GB",
            "99999999TB",
        ] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }
}
