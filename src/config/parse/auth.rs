//! Owns: the keys that say who may log in, and what must hold among them. Never: checks a password.

use super::super::section::{Keys, Section, Value};
use super::super::{Auth, AuthMethod, Lookup, User};
use super::Result;

pub(super) const AUTH: Keys = &[
    "method",
    "user",
    "query_user",
    "query_password",
    "query_database",
    "query",
    "query_cache",
];
pub(super) const USER: Keys = &["name", "password", "verifier"];

pub(super) fn auth(section: &Section<'_>) -> Result<Auth> {
    const METHODS: &[(&str, AuthMethod)] = &[
        ("trust", AuthMethod::Trust),
        ("md5", AuthMethod::Md5),
        ("scram-sha-256", AuthMethod::ScramSha256),
        ("cert", AuthMethod::Cert),
    ];
    let method = section.get("method", AuthMethod::default(), |v| v.choice(METHODS))?;
    let mut users: Vec<User> = Vec::new();
    for section in section.sections("user", USER)? {
        let user = user(&section, method)?;
        if users.iter().any(|other| other.name == user.name) {
            let message = format!(r#"user "{}" is listed twice"#, user.name);
            return Err(section.fault_at("name", message));
        }
        users.push(user);
    }
    let lookup = lookup(section, method)?;
    Ok(Auth {
        method,
        users,
        lookup,
    })
}

fn lookup(section: &Section<'_>, method: AuthMethod) -> Result<Option<Lookup>> {
    let Some(user) = section.optional("query_user", Value::string)? else {
        let others = ["query_password", "query_database", "query", "query_cache"];
        return match others.iter().find(|key| section.has(key)) {
            None => Ok(None),
            Some(key) => Err(section.fault_at(
                key,
                format!(r#""auth.{key}" is of no use without "auth.query_user""#),
            )),
        };
    };
    if !matches!(method, AuthMethod::Md5 | AuthMethod::ScramSha256) {
        let message = r#""auth.query_user" needs auth.method "scram-sha-256" or "md5": it is by a client's login that its servers are logged in to"#;
        return Err(section.fault_at("query_user", message));
    }
    let lookup = Lookup {
        user,
        password: section.optional("query_password", Value::secret)?,
        database: section.get("query_database", Lookup::DATABASE.to_owned(), Value::string)?,
        query: section.get("query", Lookup::QUERY.to_owned(), Value::string)?,
        cache: section.get("query_cache", Lookup::CACHE, Value::duration_or_zero)?,
    };
    if !lookup.query.contains("$1") {
        let message = r#""auth.query" must have the user's name as $1, such as "SELECT usename, passwd FROM my_lookup($1)""#;
        return Err(section.fault_at("query", message));
    }
    Ok(Some(lookup))
}

fn user(section: &Section<'_>, method: AuthMethod) -> Result<User> {
    let user = User {
        name: section.required("name", Value::name)?,
        password: section.optional("password", Value::secret)?,
        verifier: section.optional("verifier", Value::verifier)?,
    };
    let name = &user.name;
    match (&user.password, &user.verifier) {
        (Some(_), Some(_)) => Err(section.fault_at(
            "verifier",
            format!(r#"user "{name}" has a password and a verifier; keep one of them"#),
        )),
        (None, None) if !matches!(method, AuthMethod::Trust | AuthMethod::Cert) => {
            Err(section.fault(format!(
                r#"user "{name}" needs a password or a verifier, unless auth.method is "trust" or "cert""#
            )))
        }
        _ => Ok(user),
    }
}
