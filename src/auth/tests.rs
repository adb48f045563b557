//! Clients log in, and log in to servers: whole logins message by message, honest and not.

use proptest::prelude::*;

use super::lookup::Role;
use super::scram::{ClientExchange, Keys, ScramError, ServerExchange};
use super::*;

const NONCE: [u8; scram::NONCE_BYTES] = [7; scram::NONCE_BYTES];
const SALT: [u8; 4] = [1, 2, 3, 4];

fn user(name: &str, password: Option<&str>, verifier: Option<&Verifier>) -> User {
    User {
        name: name.to_owned(),
        password: password.map(Secret::new),
        verifier: verifier.cloned(),
    }
}

fn cheap_verifier() -> Verifier {
    Verifier::from_password("secret", b"salt", 2)
}

/// `plain` by a password, `stored` by a verifier, `bare` by neither; the secret is always "secret".
fn auth(method: AuthMethod) -> Auth {
    let users = vec![
        user("plain", Some("secret"), None),
        user("stored", None, Some(&cheap_verifier())),
        user("bare", None, None),
    ];
    Auth {
        method,
        users,
        lookup: None,
    }
}

fn users(method: AuthMethod) -> Users {
    Users::new(&auth(method))
}

fn begin(users: &Users, user: &str) -> (ClientAuth, Step) {
    ClientAuth::new(users, user, &Channel::default(), NONCE, SALT)
}

fn password(text: &str) -> Option<Credential> {
    Some(Credential::Password(Secret::new(text)))
}

fn sasl_initial(mechanism: &str, length: i32, data: &[u8]) -> Vec<u8> {
    [mechanism.as_bytes(), b"\0", &length.to_be_bytes(), data].concat()
}

/// A client that answers as a server's login would, until the proxy decides.
fn log_in(users: &Users, user: &str, credential: Option<Credential>) -> Step {
    finish(begin(users, user), user, credential)
}

fn finish(
    (mut proxy, mut step): (ClientAuth, Step),
    user: &str,
    credential: Option<Credential>,
) -> Step {
    let mut client = ServerAuth::new(user, credential, [8; scram::NONCE_BYTES]);
    loop {
        let (code, body) = match step {
            Step::Send(AuthRequest::Md5Password { salt }) => (5, salt.to_vec()),
            Step::Send(AuthRequest::Sasl { mechanisms }) => {
                (10, [mechanisms.join("\0").as_bytes(), b"\0\0"].concat())
            }
            Step::Send(AuthRequest::SaslContinue(data)) => (11, data),
            Step::Accept(ref accepted) => {
                if let Some(data) = &accepted.sasl_final {
                    assert_eq!(client.on_request(12, data), Ok(Reply::Nothing));
                }
                assert_eq!(client.on_request(0, b""), Ok(Reply::Done));
                return step;
            }
            Step::Reject(_) => return step,
        };
        let Reply::Send(answer) = client.on_request(code, &body).unwrap() else {
            panic!("{code}")
        };
        step = proxy.on_password_message(&answer);
    }
}

/// The credential for servers that a successful login leaves.
fn accepted(step: Step) -> Option<Credential> {
    match step {
        Step::Accept(accepted) => accepted.credential,
        other => panic!("{other:?}"),
    }
}

fn wrong_password(user: &str, cause: Cause) -> Step {
    Step::Reject(Rejection::WrongPassword {
        user: user.to_owned(),
        cause,
    })
}

#[test]
fn trust_takes_the_configured() {
    let users = users(AuthMethod::Trust);
    assert_eq!(accepted(log_in(&users, "plain", None)), password("secret"));
    assert_eq!(accepted(log_in(&users, "stored", None)), None);
    assert_eq!(accepted(log_in(&users, "bare", None)), None);
    let Step::Reject(rejection) = log_in(&users, "ghost", None) else {
        panic!()
    };
    assert_eq!(rejection.to_string(), r#"role "ghost" does not exist"#);
    assert_eq!(rejection.sqlstate(), "28000");
}

#[test]
fn md5_takes_the_right_password() {
    let users = users(AuthMethod::Md5);
    assert_eq!(
        accepted(log_in(&users, "plain", password("secret"))),
        password("secret")
    );
    let refused = [
        ("plain", "Secret", Cause::Mismatch),
        ("bare", "secret", Cause::NoPassword),
        ("bare", "", Cause::NoPassword),
        ("ghost", "secret", Cause::UnknownUser),
    ];
    for (user, text, cause) in refused {
        assert_eq!(
            log_in(&users, user, password(text)),
            wrong_password(user, cause)
        );
        let (_, step) = begin(&users, user);
        assert_eq!(step, Step::Send(AuthRequest::Md5Password { salt: SALT }));
    }
}

#[test]
fn md5_asks_for_scram_where_only_a_verifier_is_known() {
    let users = users(AuthMethod::Md5);
    let credential = accepted(log_in(&users, "stored", password("secret")));
    assert!(
        matches!(credential, Some(Credential::Keys(_))),
        "{credential:?}"
    );
    let refused = log_in(&users, "stored", password("Secret"));
    assert_eq!(refused, wrong_password("stored", Cause::Mismatch));
}

#[test]
fn scram_takes_the_right_password() {
    let users = users(AuthMethod::ScramSha256);
    assert_eq!(
        accepted(log_in(&users, "plain", password("secret"))),
        password("secret")
    );
    let refused = [
        ("plain", "Secret", Cause::Mismatch),
        ("stored", "Secret", Cause::Mismatch),
        ("bare", "secret", Cause::NoPassword),
        ("ghost", "secret", Cause::UnknownUser),
    ];
    for (user, text, cause) in refused {
        assert_eq!(
            log_in(&users, user, password(text)),
            wrong_password(user, cause)
        );
    }
}

#[test]
fn a_login_by_a_verifier_leaves_keys_that_log_in_to_its_server() {
    let users = users(AuthMethod::ScramSha256);
    let keys = accepted(log_in(&users, "stored", password("secret")));
    let Some(Credential::Keys(_)) = &keys else {
        panic!("{keys:?}")
    };
    // The same verifier again, as the server that it was copied from would hold it.
    assert_eq!(accepted(log_in(&users, "stored", keys.clone())), keys);
}

#[test]
fn refusals_tell_a_client_nothing() {
    let users = users(AuthMethod::ScramSha256);
    let texts = ["plain", "ghost"].map(|user| {
        let Step::Reject(rejection) = log_in(&users, user, password("wrong")) else {
            panic!()
        };
        assert_eq!(rejection.sqlstate(), "28P01");
        rejection.to_string().replace(user, "x")
    });
    assert_eq!(texts, [r#"password authentication failed for user "x""#; 2]);
}

/// The salt and iterations that the proxy sends for a user.
fn cost(users: &Users, user: &str) -> String {
    let (mut proxy, _) = begin(users, user);
    match proxy.on_password_message(&sasl_initial("SCRAM-SHA-256", 9, b"n,,n=,r=c")) {
        Step::Send(AuthRequest::SaslContinue(data)) => {
            let text = String::from_utf8(data).unwrap();
            text.split_once(",s=").unwrap().1.to_owned()
        }
        other => panic!("{other:?}"),
    }
}

/// A login of a role that is looked up, whose stored password is `stored`.
fn log_in_as_role(method: AuthMethod, stored: &str, credential: Option<Credential>) -> Step {
    let role = Role::read(Some(stored), None);
    let begun = ClientAuth::of_role(
        &users(method),
        "role",
        &Channel::default(),
        Some(&role),
        NONCE,
        SALT,
    );
    finish(begun, "role", credential)
}

#[test]
fn a_role_logs_in_by_what_is_stored_of_it() {
    let scram = cheap_verifier().to_string();
    let hash = md5::stored("role", "secret");
    let refused = |cause| wrong_password("role", cause);
    for method in [AuthMethod::Md5, AuthMethod::ScramSha256] {
        let log_in = |stored, text| log_in_as_role(method, stored, password(text));
        let keys = accepted(log_in(&scram, "secret"));
        assert!(matches!(keys, Some(Credential::Keys(_))), "{keys:?}");
        // They log in to the server that stores the same.
        assert_eq!(accepted(log_in_as_role(method, &scram, keys.clone())), keys);
        assert_eq!(log_in(&scram, "Secret"), refused(Cause::Mismatch));
        assert_eq!(log_in("secret", "secret"), refused(Cause::Unusable));
    }
    let log_in = |method, text| log_in_as_role(method, &hash, password(text));
    let known = Some(Credential::Md5(Secret::new(hash.clone())));
    assert_eq!(accepted(log_in(AuthMethod::Md5, "secret")), known);
    assert_eq!(log_in(AuthMethod::Md5, "Secret"), refused(Cause::Mismatch));
    assert_eq!(
        log_in(AuthMethod::ScramSha256, "secret"),
        refused(Cause::Md5Password)
    );
    // Who has the hash gets in by md5: that is md5.
    assert_eq!(
        accepted(log_in_as_role(AuthMethod::Md5, &hash, known.clone())),
        known
    );
}

#[test]
fn roles_without_a_password_and_no_roles_fail_alike() {
    let users = users(AuthMethod::Md5);
    let expired = Role::read(None, None);
    for (role, cause) in [(None, Cause::NoRole), (Some(&expired), Cause::NoPassword)] {
        // SCRAM is what a role most likely has.
        let begun = ClientAuth::of_role(&users, "role", &Channel::default(), role, NONCE, SALT);
        assert!(matches!(begun.1, Step::Send(AuthRequest::Sasl { .. })));
        let refused = finish(begun, "role", password("secret"));
        assert_eq!(refused, wrong_password("role", cause));
    }
}

#[test]
fn only_who_knows_the_password_is_told_that_a_role_may_not_log_in() {
    let users = users(AuthMethod::Md5);
    for stored in [cheap_verifier().to_string(), md5::stored("role", "secret")] {
        let role = Role::read(Some(&stored), Some("f"));
        let begin = || {
            ClientAuth::of_role(
                &users,
                "role",
                &Channel::default(),
                Some(&role),
                NONCE,
                SALT,
            )
        };
        assert_eq!(
            finish(begin(), "role", password("Secret")),
            wrong_password("role", Cause::Mismatch)
        );
        let Step::Reject(rejection) = finish(begin(), "role", password("secret")) else {
            panic!("{stored}")
        };
        assert_eq!(
            (rejection.to_string().as_str(), rejection.sqlstate()),
            (r#"role "role" is not permitted to log in"#, "28000")
        );
    }
}

#[test]
fn an_md5_answer_can_be_checked_against_a_newer_hash() {
    let users = users(AuthMethod::Md5);
    let role = |text| Role::read(Some(&md5::stored("role", text)), None);
    let answer = |text| {
        [
            md5::response(&md5::stored("role", text), SALT).as_bytes(),
            b"\0",
        ]
        .concat()
    };
    let (mut auth, _) = ClientAuth::of_role(
        &users,
        "role",
        &Channel::default(),
        Some(&role("old")),
        NONCE,
        SALT,
    );
    let refused = wrong_password("role", Cause::Mismatch);
    assert_eq!(auth.on_password_message(&answer("new")), refused);
    assert_eq!(auth.recheck(None), None);
    assert_eq!(auth.recheck(Some(&role("other"))), Some(refused));
    let accepted = accepted(auth.recheck(Some(&role("new"))).unwrap());
    let hash = Secret::new(md5::stored("role", "new"));
    assert_eq!(accepted, Some(Credential::Md5(hash)));
    // A SCRAM proof was made with a salt.
    let scram = Role::read(Some(&cheap_verifier().to_string()), None);
    let (mut auth, _) = ClientAuth::of_role(
        &users,
        "role",
        &Channel::default(),
        Some(&scram),
        NONCE,
        SALT,
    );
    assert_eq!(auth.recheck(Some(&scram)), None);
}

#[test]
fn an_md5_hash_logs_in_where_md5_is_asked_for_and_nowhere_else() {
    let hash = md5::stored("role", "secret");
    let server = || {
        let credential = Credential::Md5(Secret::new(hash.clone()));
        ServerAuth::new("role", Some(credential), NONCE)
    };
    let answer = [md5::response(&hash, SALT).as_bytes(), b"\0"].concat();
    assert_eq!(server().on_request(5, &SALT), Ok(Reply::Send(answer)));
    for (code, body, method) in [
        (3, &b""[..], "cleartext"),
        (10, b"SCRAM-SHA-256\0\0", "SCRAM"),
    ] {
        let user = "role".to_owned();
        let error = AuthError::OnlyHash { user, method };
        assert_eq!(server().on_request(code, body), Err(error));
    }
}

#[test]
fn users_that_exist_and_that_do_not_look_alike_over_time() {
    let first = users(AuthMethod::ScramSha256);
    let mut changed = auth(AuthMethod::ScramSha256);
    changed.users[0].password = Some(Secret::new("changed"));
    let second = first.reload(&changed);
    for user in ["plain", "stored", "bare", "ghost"] {
        assert_eq!(cost(&first, user), cost(&first, user), "{user}");
        assert_eq!(cost(&first, user), cost(&second, user), "{user}");
    }
    assert_ne!(cost(&first, "plain"), cost(&first, "ghost"));
}

#[test]
fn a_user_that_does_not_exist_is_shown_the_iterations_of_those_that_do() {
    let iterations = |users: &Users, user| -> u32 {
        let cost = cost(users, user);
        cost.split_once(",i=").unwrap().1.parse().unwrap()
    };
    let mut auth = auth(AuthMethod::ScramSha256);
    let listed = Users::new(&auth);
    assert_eq!(
        iterations(&listed, "ghost"),
        iterations(&listed, "stored"),
        "of the first verifier that is listed"
    );
    auth.users.remove(1);
    let users = Users::new(&auth);
    assert_eq!(cost(&users, "plain").len(), cost(&users, "ghost").len());
    for looked_up in [5, 7] {
        let stored = Verifier::from_password("secret", b"salt", looked_up).to_string();
        let role = Role::read(Some(&stored), None);
        let channel = Channel::default();
        let _ = ClientAuth::of_role(&users, "role", &channel, Some(&role), NONCE, SALT);
        assert_eq!(iterations(&users, "ghost"), looked_up);
    }
    assert_eq!(iterations(&users.reload(&auth), "ghost"), 7);
}

#[test]
fn who_shares_the_secret_shows_the_same_of_a_user_that_does_not_exist() {
    let auth = auth(AuthMethod::ScramSha256);
    let with = |secret| Users::with_secret(&auth, [secret; 32]);
    for user in ["plain", "bare", "ghost"] {
        assert_eq!(cost(&with(1), user), cost(&with(1), user), "{user}");
        assert_ne!(cost(&with(1), user), cost(&with(2), user), "{user}");
    }
}

#[test]
fn a_reload_keeps_what_is_unchanged_and_takes_what_is_new() {
    let first = users(AuthMethod::Md5);
    assert!(
        first.by_name["plain"].verifier.is_none(),
        "md5 needs no verifier"
    );
    // A verifier that its password does not fit shows that it was kept and not derived again.
    let mut scram = users(AuthMethod::ScramSha256);
    scram.by_name.get_mut("plain").unwrap().verifier = Some(cheap_verifier());
    let kept = scram.reload(&auth(AuthMethod::ScramSha256));
    assert_eq!(kept.by_name["plain"].verifier, Some(cheap_verifier()));

    let mut changed = auth(AuthMethod::ScramSha256);
    changed.users[0].password = Some(Secret::new("changed"));
    changed.users.remove(1);
    let second = kept.reload(&changed);
    assert_eq!(
        accepted(log_in(&second, "plain", password("changed"))),
        password("changed")
    );
    assert!(!second.contains("stored") && second.contains("bare"));
    assert_eq!(second.password("plain"), Some(&Secret::new("changed")));
    assert_eq!(second.method(), AuthMethod::ScramSha256);
}

#[test]
fn a_reload_with_another_method_asks_by_that() {
    for (before, after) in [
        (AuthMethod::ScramSha256, AuthMethod::Md5),
        (AuthMethod::Md5, AuthMethod::ScramSha256),
    ] {
        let reloaded = users(before).reload(&auth(after));
        let asks_for_md5 = |user| {
            let (_, step) = begin(&reloaded, user);
            matches!(step, Step::Send(AuthRequest::Md5Password { .. }))
        };
        assert_eq!(asks_for_md5("plain"), after == AuthMethod::Md5);
        assert!(!asks_for_md5("stored"));
        let answer = log_in(&reloaded, "plain", password("secret"));
        assert_eq!(accepted(answer), password("secret"));
    }
}

#[test]
fn malformed_password_messages() {
    let scram = users(AuthMethod::ScramSha256);
    let first = b"n,,n=,r=c";
    let no_length = Rejection::Malformed("the SASL response has no length");
    let wrong_length = Rejection::Malformed("the SASL response is not of the length that it tells");
    let cases = [
        (
            b"".to_vec(),
            Rejection::Malformed("the SASL mechanism has no end"),
        ),
        (
            b"SCRAM-SHA-256".to_vec(),
            Rejection::Malformed("the SASL mechanism has no end"),
        ),
        (
            sasl_initial("SCRAM-SHA-256-PLUS", 9, first),
            Rejection::Mechanism,
        ),
        (sasl_initial("", 9, first), Rejection::Mechanism),
        (b"SCRAM-SHA-256\0".to_vec(), no_length.clone()),
        (b"SCRAM-SHA-256\0\0\0\0".to_vec(), no_length),
        (
            sasl_initial("SCRAM-SHA-256", 8, first),
            wrong_length.clone(),
        ),
        (
            sasl_initial("SCRAM-SHA-256", 10, first),
            wrong_length.clone(),
        ),
        (
            sasl_initial("SCRAM-SHA-256", -1, first),
            wrong_length.clone(),
        ),
        (sasl_initial("SCRAM-SHA-256", -2, b""), wrong_length),
    ];
    for (body, rejection) in cases {
        let (mut proxy, _) = begin(&scram, "plain");
        assert_eq!(rejection.sqlstate(), "08P01");
        assert_eq!(
            proxy.on_password_message(&body),
            Step::Reject(rejection),
            "{body:?}"
        );
        // Whatever comes then, the login is over.
        let again = sasl_initial("SCRAM-SHA-256", 9, first);
        assert_eq!(
            proxy.on_password_message(&again),
            Step::Reject(Rejection::OutOfTurn)
        );
    }
    let (mut proxy, _) = begin(&users(AuthMethod::Md5), "plain");
    let unended = Rejection::Malformed("it does not end in a zero byte");
    assert_eq!(proxy.on_password_message(b""), Step::Reject(unended));
}

#[test]
fn the_first_scram_message_may_come_apart_from_the_mechanism() {
    let users = users(AuthMethod::ScramSha256);
    let (mut proxy, _) = begin(&users, "stored");
    let step = proxy.on_password_message(&sasl_initial("SCRAM-SHA-256", -1, b""));
    assert_eq!(step, Step::Send(AuthRequest::SaslContinue(Vec::new())));
    let Credential::Password(secret) = password("secret").unwrap() else {
        panic!()
    };
    let mut client = ClientExchange::new(Credential::Password(secret), "c".to_owned());
    let Step::Send(AuthRequest::SaslContinue(data)) =
        proxy.on_password_message(&client.client_first())
    else {
        panic!()
    };
    let step = proxy.on_password_message(&client.server_first(&data).unwrap());
    assert!(matches!(step, Step::Accept(_)), "{step:?}");
}

fn server_auth(credential: Option<Credential>) -> ServerAuth {
    ServerAuth::new("app", credential, NONCE)
}

fn keys() -> Option<Credential> {
    let (client_key, server_key, salt) = ([1; 32], [2; 32], b"salt".to_vec());
    Some(Credential::Keys(Keys {
        client_key,
        server_key,
        salt,
        iterations: 1,
    }))
}

const SCRAM_OFFER: &[u8] = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";

#[test]
fn a_server_that_trusts() {
    assert_eq!(server_auth(None).on_request(0, b""), Ok(Reply::Done));
    assert_eq!(
        server_auth(password("x")).on_request(0, b""),
        Ok(Reply::Done)
    );
}

#[test]
fn a_server_that_takes_a_password() {
    for (code, body, expected) in [
        (3, &b""[..], b"secret\0".to_vec()),
        (
            5,
            &SALT[..],
            [
                md5::response(&md5::stored("app", "secret"), SALT).as_bytes(),
                b"\0",
            ]
            .concat(),
        ),
    ] {
        let mut login = server_auth(password("secret"));
        assert_eq!(login.on_request(code, body), Ok(Reply::Send(expected)));
        assert_eq!(login.on_request(0, b""), Ok(Reply::Done));
        let mut asked_twice = server_auth(password("secret"));
        asked_twice.on_request(code, body).unwrap();
        assert_eq!(
            asked_twice.on_request(code, body),
            Err(AuthError::OutOfTurn(code))
        );
    }
}

#[test]
fn servers_that_ask_for_what_is_not_there() {
    let missing = || AuthError::MissingPassword("app".to_owned());
    let only_keys = |method| AuthError::OnlyKeys {
        user: "app".to_owned(),
        method,
    };
    let cases = [
        (None, 3, &b""[..], missing()),
        (None, 5, &SALT[..], missing()),
        (None, 10, SCRAM_OFFER, missing()),
        (keys(), 3, b"", only_keys("cleartext")),
        (keys(), 5, &SALT, only_keys("md5")),
        (
            password("x"),
            5,
            b"123",
            AuthError::Malformed("the md5 salt is not of 4 bytes"),
        ),
        (password("x"), 2, b"", AuthError::Unsupported("Kerberos V5")),
        (
            password("x"),
            6,
            b"",
            AuthError::Unsupported("SCM credential"),
        ),
        (password("x"), 7, b"", AuthError::Unsupported("GSSAPI")),
        (password("x"), 8, b"", AuthError::Unsupported("GSSAPI")),
        (password("x"), 9, b"", AuthError::Unsupported("SSPI")),
        (password("x"), 13, b"", AuthError::Unknown(13)),
        (password("x"), -1, b"", AuthError::Unknown(-1)),
        (password("x"), 11, b"", AuthError::OutOfTurn(11)),
        (password("x"), 12, b"", AuthError::OutOfTurn(12)),
        (
            password("x"),
            10,
            b"SCRAM-SHA-256-PLUS\0OTHER\n\0\0",
            AuthError::Mechanisms(r"SCRAM-SHA-256-PLUS, OTHER\n".to_owned()),
        ),
        (
            password("x"),
            10,
            b"\0",
            AuthError::Malformed("the list of SASL mechanisms has no end"),
        ),
        (
            password("x"),
            10,
            b"",
            AuthError::Malformed("the list of SASL mechanisms has no end"),
        ),
    ];
    for (credential, code, body, error) in cases {
        assert_eq!(
            server_auth(credential).on_request(code, body),
            Err(error),
            "{code} {body:?}"
        );
    }
}

#[test]
fn a_server_must_prove_itself() {
    let begun = || {
        let mut login = server_auth(password("secret"));
        let Ok(Reply::Send(initial)) = login.on_request(10, SCRAM_OFFER) else {
            panic!()
        };
        (login, initial[b"SCRAM-SHA-256\0".len() + 4..].to_vec())
    };
    // Done before the server's first message.
    let (mut login, _) = begun();
    assert_eq!(login.on_request(0, b""), Err(AuthError::Unproven));

    let answered = || {
        let (mut login, client_first) = begun();
        let mut server = ServerExchange::new(cheap_verifier(), true, "s".to_owned());
        let server_first = server.client_first(&client_first).unwrap();
        let Ok(Reply::Send(client_final)) = login.on_request(11, &server_first) else {
            panic!()
        };
        (login, server.client_final(&client_final).unwrap())
    };
    // Done without the server's signature, or with a wrong one.
    let (mut login, _) = answered();
    assert_eq!(login.on_request(0, b""), Err(AuthError::Unproven));
    let (mut login, _) = answered();
    let wrong = login.on_request(12, b"v=AAAA");
    assert_eq!(
        wrong,
        Err(AuthError::Scram(scram::ScramError::WrongServerSignature))
    );
    assert_eq!(login.on_request(0, b""), Err(AuthError::OutOfTurn(0)));
    // A downgrade in the middle.
    let (mut login, _) = answered();
    assert_eq!(login.on_request(3, b""), Err(AuthError::OutOfTurn(3)));

    let (mut login, server_final) = answered();
    assert_eq!(login.on_request(12, &server_final), Ok(Reply::Nothing));
    assert_eq!(login.on_request(0, b""), Ok(Reply::Done));
}

proptest! {
    #[test]
    fn no_input_panics_or_logs_in(
        bodies in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                "SCRAM-SHA-256\0\0\0\0[\0-\u{20}][ny]?,?,?n=,r=[ -~]{0,9}".prop_map(String::into_bytes),
            ],
            1..4,
        ),
        codes in proptest::collection::vec(-1..14, 4),
    ) {
        for (method, name) in [(AuthMethod::Md5, "plain"), (AuthMethod::Md5, "stored")] {
            let (mut proxy, _) = begin(&users(method), name);
            for body in &bodies {
                let step = proxy.on_password_message(body);
                prop_assert!(!matches!(step, Step::Accept(_)));
            }
        }
        let mut login = server_auth(password("secret"));
        for (code, body) in codes.iter().zip(&bodies) {
            let _ = login.on_request(*code, body);
        }
    }
}

const HASH: &[u8] = b"the hash of a certificate";

fn over_tls() -> Channel {
    Channel {
        end_point: Some(HASH.to_vec()),
        certificate: None,
    }
}

/// The whole login of our client's end, over connections whose ends see these hashes.
fn log_in_over_tls(at_client: Option<&[u8]>, at_server: Option<&[u8]>) -> (Vec<u8>, Step) {
    let users = users(AuthMethod::ScramSha256);
    let channel = Channel {
        end_point: at_server.map(<[u8]>::to_vec),
        certificate: None,
    };
    let (mut server, mut step) = ClientAuth::new(&users, "plain", &channel, NONCE, SALT);
    let mut client = ServerAuth::new("plain", password("secret"), [8; scram::NONCE_BYTES])
        .with_end_point(at_client.map(<[u8]>::to_vec));
    let mut first = Vec::new();
    loop {
        let (code, body) = match step {
            Step::Send(AuthRequest::Sasl { mechanisms }) => (
                10,
                mechanisms
                    .join("\0")
                    .into_bytes()
                    .into_iter()
                    .chain([0, 0])
                    .collect(),
            ),
            Step::Send(AuthRequest::SaslContinue(data)) => (11, data),
            step => return (first, step),
        };
        let Ok(Reply::Send(answer)) = client.on_request(code, &body) else {
            panic!("an answer")
        };
        if first.is_empty() {
            first.clone_from(&answer);
        }
        step = server.on_password_message(&answer);
    }
}

#[test]
fn both_ends_bind_where_both_can() {
    let (first, step) = log_in_over_tls(Some(HASH), Some(HASH));
    assert!(first.starts_with(b"SCRAM-SHA-256-PLUS\0"));
    assert_eq!(accepted(step), password("secret"));
    // A server whose certificate has no such hash does not offer it.
    let (first, step) = log_in_over_tls(Some(HASH), None);
    assert!(first.starts_with(b"SCRAM-SHA-256\0"));
    assert!(first.windows(3).any(|flag| flag == b"y,,"));
    assert_eq!(accepted(step), password("secret"));
    let (first, step) = log_in_over_tls(None, Some(HASH));
    assert!(first.windows(3).any(|flag| flag == b"n,,"));
    assert_eq!(accepted(step), password("secret"));
}

#[test]
fn somebody_in_the_middle_is_noticed() {
    // With a certificate of its own.
    let (_, step) = log_in_over_tls(Some(b"another"), Some(HASH));
    let Step::Reject(rejection) = step else {
        panic!("{step:?}")
    };
    assert_eq!(rejection.sqlstate(), "28000");
    assert_eq!(rejection.to_string(), "SCRAM channel binding check failed");

    // Having taken the offer away.
    let users = users(AuthMethod::ScramSha256);
    let (mut auth, _) = ClientAuth::new(&users, "plain", &over_tls(), NONCE, SALT);
    let step = auth.on_password_message(&sasl_initial("SCRAM-SHA-256", 9, b"y,,n=,r=c"));
    let downgraded = Rejection::Scram(ScramError::ChannelBindingDowngraded);
    assert_eq!(downgraded.sqlstate(), "28000");
    assert_eq!(step, Step::Reject(downgraded));
}

#[test]
fn binding_is_taken_only_where_it_was_offered() {
    let users = users(AuthMethod::ScramSha256);
    let (mut auth, step) = ClientAuth::new(&users, "plain", &Channel::default(), NONCE, SALT);
    let mechanisms: &[&str] = &["SCRAM-SHA-256"];
    assert_eq!(step, Step::Send(AuthRequest::Sasl { mechanisms }));
    let first = b"p=tls-server-end-point,,n=,r=c";
    let message = sasl_initial("SCRAM-SHA-256-PLUS", first.len() as i32, first);
    assert_eq!(
        auth.on_password_message(&message),
        Step::Reject(Rejection::Mechanism)
    );

    // And a server that offers nothing else over an unencrypted connection is not answered.
    let mut client = server_auth(password("secret"));
    let only_plus = b"SCRAM-SHA-256-PLUS\0\0";
    let refused = client.on_request(10, only_plus).unwrap_err();
    assert_eq!(
        refused,
        AuthError::Mechanisms("SCRAM-SHA-256-PLUS".to_owned())
    );
}

#[test]
fn a_certificate_is_for_one_user() {
    let users = users(AuthMethod::Cert);
    let begin = |user: &str, certificate: Option<&str>| {
        let shown = |name: &str| Shown {
            common_name: Some(name.to_owned()).filter(|name| !name.is_empty()),
        };
        let channel = Channel {
            end_point: None,
            certificate: certificate.map(shown),
        };
        ClientAuth::new(&users, user, &channel, NONCE, SALT).1
    };
    assert_eq!(accepted(begin("plain", Some("plain"))), password("secret"));
    assert_eq!(begin("plain", None), Step::Reject(Rejection::NoCertificate));
    let wrong = |cause| {
        let user = "plain".to_owned();
        Step::Reject(Rejection::WrongCertificate { user, cause })
    };
    let other = CertificateCause::OtherName("Plain".to_owned());
    assert_eq!(begin("plain", Some("Plain")), wrong(other));
    assert_eq!(begin("plain", Some("")), wrong(CertificateCause::Nameless));
    let unknown = Rejection::UnknownRole("nobody".to_owned());
    assert_eq!(begin("nobody", Some("nobody")), Step::Reject(unknown));
}
