//! Both ends of a login, against a peer that says anything.
//!
//! A case is a script: its first line names the end that is tested, each other line is a message
//! of the peer's. What is right at its place can be written as `{nonce}`, `{proof}`, `{salt}` and
//! `{signature}`, so that valid exchanges and those that differ a little are both short.
//!
//! The keys, proofs and signatures are computed here once more, from RFC 5802.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use tidegate::auth::scram::{
    ClientExchange, ITERATIONS_MAX, Key, Keys, MESSAGE_BYTES_MAX, ServerExchange, Verifier,
};
use tidegate::auth::{
    AuthRequest, Channel, ClientAuth, Credential, Rejection, Reply, ServerAuth, Step, Users, md5,
};
use tidegate::config::{Auth, AuthMethod, Secret, User};

use super::text::lines;

const PASSWORD: &str = "pencil";
const SALT: &[u8] = b"sixteen bytes...";
const ITERATIONS: u32 = 3;
const CLIENT_NONCE: &str = "fyko+d2lbbFgONRv9qkxdawL";
const SERVER_NONCE: &str = "3rfcNHYJY1ZVvWVs7j";
const MD5_SALT: [u8; 4] = [1, 2, 3, 4];
/// More iterations than this are not computed here: a fuzzer would do little else.
const ITERATIONS_COMPUTED_MAX: u64 = 100;

pub fn check(script: &[u8]) {
    let mut lines = lines(script);
    let Some(end) = lines.next() else { return };
    let messages: Vec<_> = lines.take(8).collect();
    match &*end {
        b"server" => server_end(&messages, true),
        b"mock server" => server_end(&messages, false),
        b"client" => client_end(&messages, false),
        b"client with keys" => client_end(&messages, true),
        b"login" => login(&messages, AuthMethod::ScramSha256, "verified"),
        b"login of nobody" => login(&messages, AuthMethod::ScramSha256, "nobody"),
        b"md5 login" => login(&messages, AuthMethod::Md5, "plain"),
        b"md5 login with verifier" => login(&messages, AuthMethod::Md5, "verified"),
        b"trust" => login(&messages, AuthMethod::Trust, "plain"),
        b"at a server" => at_a_server(&messages, Some(Credential::Password(secret()))),
        b"at a server with keys" => {
            at_a_server(&messages, Some(Credential::Keys(keys(&REFERENCE))));
        }
        b"at a server with nothing" => at_a_server(&messages, None),
        _ => verifier(&end),
    }
}

fn secret() -> Secret {
    Secret::new(PASSWORD)
}

/// The keys of the password, by the book.
struct Reference {
    client: Key,
    server: Key,
    stored: Key,
}

static REFERENCE: LazyLock<Reference> = LazyLock::new(|| reference(SALT, ITERATIONS));

fn reference(salt: &[u8], iterations: u32) -> Reference {
    let mut block = hmac(PASSWORD.as_bytes(), &[salt, &[0, 0, 0, 1]].concat());
    let mut salted = block;
    for _ in 1..iterations {
        block = hmac(PASSWORD.as_bytes(), &block);
        salted = xor(salted, block);
    }
    let client = hmac(&salted, b"Client Key");
    Reference {
        client,
        server: hmac(&salted, b"Server Key"),
        stored: Sha256::digest(client).into(),
    }
}

fn hmac(key: &[u8], text: &[u8]) -> Key {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    mac.chain_update(text).finalize().into_bytes().into()
}

fn xor(a: Key, b: Key) -> Key {
    std::array::from_fn(|i| a[i] ^ b[i])
}

fn keys(reference: &Reference) -> Keys {
    Keys {
        client_key: reference.client,
        server_key: reference.server,
        salt: SALT.to_vec(),
        iterations: ITERATIONS,
    }
}

fn known_verifier() -> Verifier {
    let verifier = Verifier::from_password(PASSWORD, SALT, ITERATIONS);
    assert_eq!(verifier.stored_key, REFERENCE.stored);
    assert_eq!(verifier.server_key, REFERENCE.server);
    verifier
}

/// `message` with `{name}` replaced.
fn filled(message: &[u8], name: &str, value: &str) -> Vec<u8> {
    let name = format!("{{{name}}}").into_bytes();
    let mut out = Vec::new();
    let mut rest = message;
    while let Some(at) = rest.windows(name.len()).position(|part| part == name) {
        out.extend(&rest[..at]);
        out.extend(value.as_bytes());
        rest = &rest[at + name.len()..];
    }
    out.extend(rest);
    out
}

/// What a client that knows the password would answer.
struct Proving {
    bare: Vec<u8>,
    server_first: Vec<u8>,
    nonce: String,
}

impl Proving {
    /// After `client_first` was answered with `server_first`.
    fn new(client_first: &[u8], server_first: &[u8]) -> Proving {
        assert!(client_first.starts_with(b"n,,") || client_first.starts_with(b"y,,"));
        let text = str::from_utf8(server_first).expect("text");
        let nonce = text.strip_prefix("r=").expect("a nonce");
        let (nonce, rest) = nonce.split_once(',').expect("a salt");
        assert!(nonce.len() > SERVER_NONCE.len());
        assert!(rest.starts_with("s=") && rest.contains(",i="));
        Proving {
            bare: client_first[3..].to_vec(),
            server_first: server_first.to_vec(),
            nonce: nonce.to_owned(),
        }
    }

    fn filled(&self, message: &[u8]) -> Vec<u8> {
        let message = filled(message, "nonce", &self.nonce);
        let proof = BASE64.encode(self.proof(&message));
        // The nonce, which is the peer's, may hold the word too.
        let last = message.windows(3).rposition(|part| part == b",p=");
        let (before, last) = message.split_at(last.unwrap_or(message.len()));
        [before, &filled(last, "proof", &proof)].concat()
    }

    fn auth_message(&self, client_final: &[u8]) -> Vec<u8> {
        let end = client_final.windows(3).rposition(|part| part == b",p=");
        let without_proof = &client_final[..end.unwrap_or(client_final.len())];
        [&self.bare, &self.server_first, without_proof].join(&b","[..])
    }

    fn proof(&self, client_final: &[u8]) -> Key {
        let signature = hmac(&REFERENCE.stored, &self.auth_message(client_final));
        xor(signature, REFERENCE.client)
    }

    fn server_final(&self, client_final: &[u8]) -> Vec<u8> {
        let signature = hmac(&REFERENCE.server, &self.auth_message(client_final));
        format!("v={}", BASE64.encode(signature)).into_bytes()
    }

    /// What is to hold if `client_final` was taken.
    fn was_right(&self, client_final: &[u8], gs2: &[u8]) -> bool {
        let text = str::from_utf8(client_final).expect("text");
        let (head, proof) = text.rsplit_once(",p=").expect("a proof");
        let start = format!("c={},r={}", BASE64.encode(gs2), self.nonce);
        let rest = head.strip_prefix(&start);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(','))
            && BASE64.decode(proof).ok().as_deref() == Some(&self.proof(client_final))
    }
}

fn server_end(messages: &[Vec<u8>], genuine: bool) {
    let exchange = || ServerExchange::new(known_verifier(), genuine, SERVER_NONCE.to_owned());
    let mut out_of_turn = exchange();
    let [first, rest @ ..] = messages else { return };
    assert!(out_of_turn.client_final(first).is_err());
    assert!(out_of_turn.client_first(first).is_err());

    let mut exchange = exchange();
    let Ok(server_first) = exchange.client_first(first) else {
        return assert!(exchange.client_first(b"n,,n=,r=a").is_err(), "it is over");
    };
    assert!(first.len() <= MESSAGE_BYTES_MAX);
    assert!(exchange.keys().is_none());
    let proving = Proving::new(first, &server_first);
    assert!(proving.nonce.ends_with(SERVER_NONCE));
    let Some(last) = rest.first() else { return };
    let client_final = proving.filled(last);
    let gs2 = &first[..3];
    match exchange.client_final(&client_final) {
        Ok(server_final) => {
            assert!(genuine && proving.was_right(&client_final, gs2));
            assert_eq!(server_final, proving.server_final(&client_final));
            assert_eq!(exchange.keys(), Some(&keys(&REFERENCE)));
        }
        Err(_) => {
            assert!(exchange.keys().is_none());
            let plain = [
                b"c=",
                BASE64.encode(gs2).as_bytes(),
                b",r={nonce},p={proof}",
            ]
            .concat();
            assert!(!genuine || proving.filled(&plain) != client_final);
        }
    }
    assert!(exchange.client_final(&client_final).is_err(), "it is over");
}

/// Whether the client would be asked to compute more than is worth it here.
fn costs_too_much(server_first: &[u8]) -> bool {
    let text = String::from_utf8_lossy(server_first);
    text.split("i=").skip(1).any(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        let number = digits.and_then(|digits| digits.parse::<u64>().ok());
        number.is_some_and(|n| n > ITERATIONS_COMPUTED_MAX && n <= ITERATIONS_MAX.into())
    })
}

fn client_end(messages: &[Vec<u8>], with_keys: bool) {
    let credential = match with_keys {
        true => Credential::Keys(keys(&REFERENCE)),
        false => Credential::Password(secret()),
    };
    let mut exchange = ClientExchange::new(credential, CLIENT_NONCE.to_owned());
    let client_first = exchange.client_first();
    assert_eq!(client_first, format!("n,,n=,r={CLIENT_NONCE}").into_bytes());
    let [first, rest @ ..] = messages else { return };
    let first = filled(first, "nonce", CLIENT_NONCE);
    let first = filled(&first, "salt", &BASE64.encode(SALT));
    if !with_keys && costs_too_much(&first) {
        return;
    }
    let Ok(client_final) = exchange.server_first(&first) else {
        assert!(exchange.server_first(&first).is_err(), "it is over");
        assert!(exchange.server_final(b"v=").is_err());
        return assert!(!exchange.is_verified());
    };
    let expected = answer(CLIENT_NONCE, &first, with_keys);
    assert_eq!(client_final, expected.client_final);
    assert!(!exchange.is_verified());
    let Some(last) = rest.first() else { return };
    let signature = BASE64.encode(expected.signature);
    let last = filled(last, "signature", &signature);
    let taken = exchange.server_final(&last).is_ok();
    let right = format!("v={signature}").into_bytes();
    let extended = last.starts_with(&right) && last.get(right.len()) == Some(&b',');
    let whole = str::from_utf8(&last).is_ok() && last.len() <= MESSAGE_BYTES_MAX;
    assert_eq!(taken, (last == right || extended) && whole);
    assert_eq!(exchange.is_verified(), taken);
    assert!(exchange.server_final(&last).is_err(), "it is over");
}

struct Answer {
    client_final: Vec<u8>,
    signature: Key,
}

/// What the client has to answer to a server-first that it takes.
fn answer(client_nonce: &str, server_first: &[u8], with_keys: bool) -> Answer {
    let bare = format!("n=,r={client_nonce}");
    let text = str::from_utf8(server_first).expect("text");
    let mut attributes = text.split(',');
    let mut attribute = |name| attributes.next().and_then(|text| text.strip_prefix(name));
    let nonce = attribute("r=").expect("a nonce");
    let salt = BASE64
        .decode(attribute("s=").expect("a salt"))
        .expect("base64");
    let iterations: u32 = attribute("i=").expect("a cost").parse().expect("a number");
    assert!(nonce.len() > client_nonce.len() && nonce.starts_with(client_nonce));
    assert!(!salt.is_empty() && (1..=ITERATIONS_MAX).contains(&iterations));
    if with_keys {
        assert_eq!((&salt[..], iterations), (SALT, ITERATIONS));
    }
    let reference = reference(&salt, iterations);
    let without_proof = format!("c=biws,r={nonce}");
    let auth_message = [bare.as_bytes(), server_first, without_proof.as_bytes()].join(&b","[..]);
    let proof = xor(hmac(&reference.stored, &auth_message), reference.client);
    Answer {
        client_final: format!("{without_proof},p={}", BASE64.encode(proof)).into_bytes(),
        signature: hmac(&reference.server, &auth_message),
    }
}

fn users(method: AuthMethod) -> Users {
    let user = |name: &str, password, verifier| User {
        name: name.to_owned(),
        password,
        verifier,
    };
    let mut users = vec![user("verified", None, Some(known_verifier()))];
    if method != AuthMethod::ScramSha256 {
        users.push(user("plain", Some(secret()), None));
    }
    Users::new(&Auth {
        method,
        users,
        lookup: None,
    })
}

/// A client's login at the proxy.
fn login(messages: &[Vec<u8>], method: AuthMethod, user: &str) {
    let users = users(method);
    let (mut auth, mut step) =
        ClientAuth::new(&users, user, &Channel::default(), [7; 18], MD5_SALT);
    let mut said: Vec<Vec<u8>> = Vec::new();
    let mut asked = Vec::new();
    for message in messages {
        let Step::Send(request) = step else { break };
        let message = match message.strip_prefix(b"initial ") {
            Some(data) => initial(data),
            None => message.clone(),
        };
        let message = match &request {
            AuthRequest::SaslContinue(first) if !first.is_empty() => {
                Proving::new(said.last().expect("client-first"), first).filled(&message)
            }
            AuthRequest::Md5Password { salt } => filled(
                &message,
                "md5",
                &md5::response(&md5::stored(user, PASSWORD), *salt),
            ),
            _ => message,
        };
        asked.push(request);
        step = auth.on_password_message(&message);
        said.push(match said.is_empty() {
            true => response_data(&message).unwrap_or(message),
            false => message,
        });
    }
    match step {
        Step::Send(_) => {}
        Step::Accept(_) => may_enter(method, user, &said, &asked),
        Step::Reject(rejection) => {
            assert!(!rejection.sqlstate().is_empty());
            let again = auth.on_password_message(b"");
            assert_eq!(again, Step::Reject(Rejection::OutOfTurn), "it is over");
        }
    }
}

fn may_enter(method: AuthMethod, user: &str, said: &[Vec<u8>], asked: &[AuthRequest]) {
    match (method, user) {
        (AuthMethod::Trust, _) => assert!(said.is_empty()),
        (AuthMethod::Md5, "plain") => {
            let right = md5::response(&md5::stored(user, PASSWORD), MD5_SALT) + "\0";
            assert_eq!(said, [right.into_bytes()]);
        }
        (_, "verified") => {
            let [.., first, last] = said else {
                panic!("two messages at least")
            };
            let Some(AuthRequest::SaslContinue(server_first)) = asked.last() else {
                panic!("{asked:?}")
            };
            let proving = Proving::new(first, server_first);
            assert!(proving.was_right(last, &first[..3]));
        }
        _ => panic!("{user} must not enter by {method:?}"),
    }
}

/// SASLInitialResponse.
fn initial(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as i32).to_be_bytes();
    [b"SCRAM-SHA-256\0", &length[..], data].concat()
}

/// The data of a SASLInitialResponse, where there is any.
fn response_data(message: &[u8]) -> Option<Vec<u8>> {
    let end = message.iter().position(|&byte| byte == 0)?;
    let data = message.get(end + 5..)?;
    Some(data.to_vec()).filter(|data| !data.is_empty())
}

/// The proxy's login at a server: each message is a code and, after a space, a body.
fn at_a_server(messages: &[Vec<u8>], credential: Option<Credential>) {
    let by_keys = matches!(credential, Some(Credential::Keys(_)));
    let mut auth = ServerAuth::new("app", credential, [9; 18]);
    let nonce = BASE64.encode([9; 18]);
    let (mut scram, mut proven, mut over) = (false, false, false);
    let mut expected: Option<Answer> = None;
    for message in messages {
        let space = message.iter().position(|&byte| byte == b' ');
        let (code, body) = match space {
            Some(at) => (&message[..at], &message[at + 1..]),
            None => (&message[..], &b""[..]),
        };
        let code = str::from_utf8(code).ok().and_then(|code| code.parse().ok());
        let code: i32 = code.unwrap_or(0);
        let body = filled(body, "nonce", &nonce);
        let body = filled(&body, "salt", &BASE64.encode(SALT));
        let signature = expected
            .as_ref()
            .map(|answer| BASE64.encode(answer.signature));
        let body = filled(&body, "signature", signature.as_deref().unwrap_or(""));
        if costs_too_much(&body) {
            return;
        }
        let reply = auth.on_request(code, &body);
        assert!(!over || reply.is_err(), "it is over");
        match reply {
            Ok(Reply::Done) => {
                assert!(
                    code == 0 && (!scram || proven),
                    "the server has proved itself"
                );
                over = true;
            }
            Ok(Reply::Nothing) => {
                assert_eq!(code, 12);
                let right = format!("v={}", signature.expect("client-final was sent"));
                assert!(body.starts_with(right.as_bytes()));
                proven = true;
            }
            Ok(Reply::Send(answered)) if code == 11 => {
                let right = answer(&nonce, &body, by_keys);
                assert_eq!(answered, right.client_final);
                expected = Some(right);
            }
            Ok(Reply::Send(_)) => {
                assert!(matches!(code, 3 | 5 | 10) && !scram);
                assert!(!by_keys || code == 10, "keys are no password");
                scram = code == 10;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                over = true;
            }
        }
    }
}

fn verifier(text: &[u8]) {
    let Some(verifier) = str::from_utf8(text)
        .ok()
        .and_then(|t| Verifier::parse(t).ok())
    else {
        return;
    };
    assert!(verifier.iterations > 0 && !verifier.salt.is_empty());
    assert_eq!(Verifier::parse(&verifier.to_string()), Ok(verifier));
}
