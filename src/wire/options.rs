//! Owns: the `options` of a start-up packet: command-line arguments for a server process. Never: knows
//! which settings there are.
//!
//! As PostgreSQL's `pg_split_opts` and `process_postgres_switches` read them.

/// What is wrong with options; displays as PostgreSQL says it, with SQLSTATE 42601.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("invalid command-line argument for server process: {0}")]
    Argument(String),
    /// The option as it was given: `-c name`, `--name`.
    #[error("{0} requires a value")]
    Value(String),
}

/// Names and values.
type Settings = Vec<(String, String)>;

/// Flags that are followed by an argument.
const WITH_ARGUMENT: &str = "BCcDdfhkNprStvW-";
/// Flags that are not.
const WITHOUT_ARGUMENT: &str = "bEeFijlnOPsT";

/// The settings that `options` asks for, in order.
///
/// # Errors
/// What no server process takes.
pub fn parse(options: &str) -> Result<Settings, OptionsError> {
    let mut settings = Vec::new();
    let mut strays = Vec::new();
    let mut words = split(options).into_iter();
    while let Some(word) = words.next() {
        let Some(flags) = word.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            strays.push(word);
            continue;
        };
        if flags == "-" {
            strays.extend(words);
            break;
        }
        let invalid = || OptionsError::Argument(word.clone());
        for (at, flag) in flags.char_indices() {
            if WITHOUT_ARGUMENT.contains(flag) {
                apply(flag, "", &mut settings);
            } else if WITH_ARGUMENT.contains(flag) {
                let joined = &flags[at + flag.len_utf8()..];
                let argument = match joined {
                    "" => words.next().ok_or_else(invalid)?,
                    joined => joined.to_owned(),
                };
                if matches!(flag, 'c' | '-') {
                    settings.push(assignment(flag, &argument)?);
                } else if !apply(flag, &argument, &mut settings) {
                    return Err(invalid());
                }
                break;
            } else {
                return Err(invalid());
            }
        }
    }
    match strays.into_iter().next() {
        Some(stray) => Err(OptionsError::Argument(stray)),
        None => Ok(settings),
    }
}

/// Words are apart by white space; a backslash makes the next character part of a word.
fn split(options: &str) -> Vec<String> {
    let is_space = |c: char| c.is_ascii_whitespace() || c == '\x0b';
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        if is_space(c) {
            words.extend(word.take());
        } else {
            let word = word.get_or_insert_default();
            match c {
                '\\' => word.extend(chars.next()),
                c => word.push(c),
            }
        }
    }
    words.extend(word);
    words
}

/// `name=value`; in the name, a dash stands for an underscore.
fn assignment(flag: char, argument: &str) -> Result<(String, String), OptionsError> {
    match argument.split_once('=') {
        Some((name, value)) => Ok((name.replace('-', "_"), value.to_owned())),
        None if flag == '-' => Err(OptionsError::Value(format!("--{argument}"))),
        None => Err(OptionsError::Value(format!("-c {argument}"))),
    }
}

/// The short forms of some settings; `false` for an argument that the flag does not take. Those that
/// a client may not give, or that mean nothing any more, are ignored.
fn apply(flag: char, argument: &str, settings: &mut Settings) -> bool {
    let mut set = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
    match flag {
        'B' => set("shared_buffers", argument),
        'd' => return debug(argument, settings),
        'e' => set("datestyle", "euro"),
        'F' => set("fsync", "false"),
        'f' => match plan(argument) {
            Some(name) => set(name, "false"),
            None => return false,
        },
        'h' => set("listen_addresses", argument),
        'i' => set("listen_addresses", "*"),
        'k' => set("unix_socket_directories", argument),
        'l' => set("ssl", "true"),
        'N' => set("max_connections", argument),
        'O' => set("allow_system_table_mods", "true"),
        'P' => set("ignore_system_indexes", "true"),
        'p' => set("port", argument),
        'S' => set("work_mem", argument),
        's' => set("log_statement_stats", "true"),
        't' => match statistics(argument) {
            Some(name) => set(name, "true"),
            None => return false,
        },
        'W' => set("post_auth_delay", argument),
        _ => {}
    }
    true
}

/// `-d`: the higher the level, the more is logged.
fn debug(level: &str, settings: &mut Settings) -> bool {
    // As `atoi` reads it: what is no number is 0.
    let digits = level.trim_start();
    let end = digits.find(|c: char| !c.is_ascii_digit());
    let level: u32 = digits[..end.unwrap_or(digits.len())].parse().unwrap_or(0);
    let messages = match level {
        0 => "notice".to_owned(),
        level => format!("debug{level}"),
    };
    settings.push(("log_min_messages".to_owned(), messages));
    let more = [
        (2, "log_statement", "all"),
        (3, "debug_print_parse", "true"),
        (4, "debug_print_plan", "true"),
        (5, "debug_print_rewritten", "true"),
    ];
    for (_, name, value) in more.iter().filter(|(from, ..)| level >= *from) {
        settings.push(((*name).to_owned(), (*value).to_owned()));
    }
    true
}

/// `-f`: the kind of plan to avoid, by its first letter.
fn plan(argument: &str) -> Option<&'static str> {
    Some(match argument.chars().next()? {
        's' => "enable_seqscan",
        'i' => "enable_indexscan",
        'o' => "enable_indexonlyscan",
        'b' => "enable_bitmapscan",
        't' => "enable_tidscan",
        'n' => "enable_nestloop",
        'm' => "enable_mergejoin",
        'h' => "enable_hashjoin",
        _ => return None,
    })
}

/// `-t`: whose statistics to log.
fn statistics(argument: &str) -> Option<&'static str> {
    match argument {
        a if a.starts_with("pa") => Some("log_parser_stats"),
        a if a.starts_with("pl") => Some("log_planner_stats"),
        a if a.starts_with('e') => Some("log_executor_stats"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(options: &str, expected: &[(&str, &str)]) {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let expected: Vec<_> = expected.iter().map(own).collect();
        assert_eq!(parse(options), Ok(expected), "{options:?}");
    }

    #[test]
    fn settings() {
        check("", &[]);
        check(" \t\n", &[]);
        check(
            "-c a=1  --work-mem=2MB -cb-c=x=y\x0b--d=",
            &[("a", "1"), ("work_mem", "2MB"), ("b_c", "x=y"), ("d", "")],
        );
        check(r"-c a=x,\ y\\z\'", &[("a", r"x, y\z'")]);
        check(r"-c a=x\", &[("a", "x")]);
        check(r"-c\ a=x", &[(" a", "x")]);
        check("-c a=é", &[("a", "é")]);
        check("--", &[]);
    }

    #[test]
    fn short_forms() {
        check(
            "-S 64 -s -fs -f i -tpl -O",
            &[
                ("work_mem", "64"),
                ("log_statement_stats", "true"),
                ("enable_seqscan", "false"),
                ("enable_indexscan", "false"),
                ("log_planner_stats", "true"),
                ("allow_system_table_mods", "true"),
            ],
        );
        check(
            "-esS64",
            &[
                ("datestyle", "euro"),
                ("log_statement_stats", "true"),
                ("work_mem", "64"),
            ],
        );
        check("-s-a=b", &[("log_statement_stats", "true"), ("a", "b")]);
        check("-d0", &[("log_min_messages", "notice")]);
        check(
            "-d2",
            &[("log_min_messages", "debug2"), ("log_statement", "all")],
        );
        check("-E -D /x -r y -b -j -n -T -v 3 -C z", &[]);
    }

    #[test]
    fn refusals() {
        let refusal = |options| parse(options).unwrap_err().to_string();
        for (options, argument) in [
            ("x", "x"),
            ("-", "-"),
            ("x -c a=1", "x"),
            ("-- x", "x"),
            ("-x", "-x"),
            ("-c a=1 -Z", "-Z"),
            ("-c", "-c"),
            ("-fx", "-fx"),
            ("-t q", "-t"),
            ("\\", ""),
        ] {
            let expected = format!("invalid command-line argument for server process: {argument}");
            assert_eq!(refusal(options), expected, "{options}");
        }
        assert_eq!(refusal("-c a"), "-c a requires a value");
        assert_eq!(refusal("--a-b"), "--a-b requires a value");
        // What is a wrong option is told before what is none.
        assert_eq!(refusal("x -c a"), "-c a requires a value");
    }

    proptest! {
        #[test]
        fn never_panics(options: String) {
            let _ = parse(&options);
        }

        #[test]
        fn an_escaped_value_reads_back(value: String) {
            let escaped: String = value.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert_eq!(parse(&format!("-c a={escaped}")), Ok(vec![("a".to_owned(), value)]));
        }
    }
}
