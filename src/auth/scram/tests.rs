//! RFC 7677's exchange, both ends against each other, and what a dishonest end may send.

use proptest::prelude::*;

use super::*;
use crate::config::Secret;

// RFC 7677, section 3.
const PASSWORD: &str = "pencil";
const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_FIRST: &str =
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==\
                        $WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=\
                        :wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

// The same with the empty user that our client sends, computed apart from this code.
const OUR_CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=qvT2SWdEH5Q06albL+hjSYuUhCG7VndFyzIb7CK4n9k=";
const OUR_SERVER_FINAL: &str = "v=3HO6Qt1M4MKJrmlKaoOqLAI0/0TV0HZe7J9H3MBtSOg=";

fn server() -> ServerExchange {
    ServerExchange::new(
        Verifier::parse(VERIFIER).unwrap(),
        true,
        SERVER_NONCE.to_owned(),
    )
}

/// A server that has had the RFC's first message.
fn begun_server() -> ServerExchange {
    let mut server = server();
    server.client_first(CLIENT_FIRST.as_bytes()).unwrap();
    server
}

fn client(password: &str) -> ClientExchange {
    ClientExchange::new(
        Credential::Password(Secret::new(password)),
        CLIENT_NONCE.to_owned(),
    )
}

/// A cheap verifier, for exchanges that are not about the RFC's figures.
fn cheap(password: &str) -> Verifier {
    Verifier::from_password(password, b"salt", 2)
}

/// The whole exchange; the server's keys if both ends are content.
fn exchange(mut client: ClientExchange, mut server: ServerExchange) -> Result<Keys, ScramError> {
    let server_first = server.client_first(&client.client_first())?;
    let client_final = client.server_first(&server_first)?;
    let server_final = server.client_final(&client_final)?;
    client.server_final(&server_final)?;
    assert!(client.is_verified());
    Ok(server.keys().cloned().unwrap())
}

fn exchange_with(credential: Credential, verifier: Verifier) -> Result<Keys, ScramError> {
    exchange(
        ClientExchange::new(credential, "c".to_owned()),
        ServerExchange::new(verifier, true, "s".to_owned()),
    )
}

fn password(text: &str) -> Credential {
    Credential::Password(Secret::new(text))
}

#[test]
fn the_rfcs_exchange_at_the_server() {
    let mut server = server();
    assert_eq!(
        server.client_first(CLIENT_FIRST.as_bytes()).unwrap(),
        SERVER_FIRST.as_bytes()
    );
    assert_eq!(server.keys(), None);
    assert_eq!(
        server.client_final(CLIENT_FINAL.as_bytes()).unwrap(),
        SERVER_FINAL.as_bytes()
    );
    let verifier = Verifier::parse(VERIFIER).unwrap();
    assert_eq!(
        server.keys(),
        Some(&Keys::from_password(PASSWORD, &verifier.salt, 4096))
    );
}

#[test]
fn the_rfcs_figures_at_the_client() {
    let mut client = client(PASSWORD);
    assert_eq!(
        client.client_first(),
        format!("n,,n=,r={CLIENT_NONCE}").as_bytes()
    );
    let client_final = client.server_first(SERVER_FIRST.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(client_final).unwrap(), OUR_CLIENT_FINAL);
    assert!(!client.is_verified());
    client.server_final(OUR_SERVER_FINAL.as_bytes()).unwrap();
    assert!(client.is_verified());
}

#[test]
fn verifiers_are_postgresqls() {
    let verifier = Verifier::parse(VERIFIER).unwrap();
    assert_eq!(
        verifier,
        Verifier::from_password(PASSWORD, &verifier.salt, 4096)
    );
    assert_eq!(verifier.to_string(), VERIFIER);
    assert_eq!(format!("{verifier:?}"), "Verifier(***)");
    let key = "A".repeat(43) + "=";
    let cases = [
        (String::new(), VerifierError::Form),
        ("md5abc".to_owned(), VerifierError::Form),
        ("SCRAM-SHA-256".to_owned(), VerifierError::Form),
        (
            "SCRAM-SHA-256$4096:c2FsdA==".to_owned(),
            VerifierError::Form,
        ),
        (
            format!("SCRAM-SHA-256$4096$c2FsdA==${key}:{key}"),
            VerifierError::Form,
        ),
        (
            format!("SCRAM-SHA-256$4096:c2FsdA==${key}"),
            VerifierError::Form,
        ),
        (
            format!("SCRAM-SHA-256$0:c2FsdA==${key}:{key}"),
            VerifierError::Iterations,
        ),
        (
            format!("SCRAM-SHA-256$+1:c2FsdA==${key}:{key}"),
            VerifierError::Iterations,
        ),
        (
            format!("SCRAM-SHA-256$99999999999:c2FsdA==${key}:{key}"),
            VerifierError::Iterations,
        ),
        (format!("SCRAM-SHA-256$1:${key}:{key}"), VerifierError::Salt),
        (
            format!("SCRAM-SHA-256$1:!${key}:{key}"),
            VerifierError::Salt,
        ),
        (
            format!("SCRAM-SHA-256$1:c2FsdA==$c2FsdA==:{key}"),
            VerifierError::Key,
        ),
        (
            format!("SCRAM-SHA-256$1:c2FsdA==${key}:{key}:{key}"),
            VerifierError::Key,
        ),
    ];
    for (text, error) in cases {
        assert_eq!(Verifier::parse(&text), Err(error), "{text}");
    }
}

#[test]
fn both_ends_agree() {
    for text in [
        "secret",
        "",
        "pässwörd",
        "p\u{a0}q",
        "\u{ad}",
        "tab\tand\u{7}bell",
        "\u{221}",
    ] {
        assert!(
            exchange_with(password(text), cheap(text)).is_ok(),
            "{text:?}"
        );
    }
}

#[test]
fn passwords_are_prepared_where_saslprep_allows() {
    // RFC 4013, section 3; then what it refuses or leaves nothing of, which stays as it is.
    let cases = [
        ("I\u{ad}X", "IX"),
        ("\u{aa}", "a"),
        ("\u{2168}", "IX"),
        ("p\u{a0}q", "p q"),
        ("\u{7}", "\u{7}"),
        ("\u{627}1", "\u{627}1"),
        ("\u{ad}", "\u{ad}"),
    ];
    for (text, expected) in cases {
        assert_eq!(normalize(text), expected, "{text:?}");
    }
}

#[test]
fn the_wrong_password() {
    assert_eq!(
        exchange_with(password("Secret"), cheap("secret")),
        Err(ScramError::WrongProof)
    );
}

#[test]
fn keys_from_one_login_make_another() {
    let verifier = cheap("secret");
    let keys = exchange_with(password("secret"), verifier.clone()).unwrap();
    assert_eq!(
        exchange_with(Credential::Keys(keys.clone()), verifier),
        Ok(keys.clone())
    );
    // The same password under another salt or cost is another verifier.
    for other in [
        Verifier::from_password("secret", b"other", 2),
        Verifier::from_password("secret", b"salt", 3),
    ] {
        let result = exchange_with(Credential::Keys(keys.clone()), other);
        assert_eq!(result, Err(ScramError::OtherVerifier));
    }
    assert_eq!(format!("{:?}", Credential::Keys(keys)), "Keys(Keys(***))");
}

#[test]
fn remembered_keys_are_those_of_the_question() {
    let questions = [
        ("secret", &b"salt"[..], 2),
        ("Secret", b"salt", 2),
        ("secret", b"other", 2),
        ("secret", b"salt", 3),
        // What one part ends with, the next could begin with.
        ("secretsalt", b"salt", 2),
        ("secret", b"saltsalt", 2),
    ];
    for _ in 0..2 {
        for (password, salt, iterations) in questions {
            assert_eq!(
                Keys::remembered(password, salt, iterations),
                Keys::from_password(password, salt, iterations)
            );
        }
    }
}

#[test]
fn a_mock_looks_like_a_user_and_never_succeeds() {
    let mock = Verifier::mock(b"secret", "ghost", 7);
    assert_eq!(mock, Verifier::mock(b"secret", "ghost", 7));
    assert_ne!(mock.salt, Verifier::mock(b"secret", "other", 7).salt);
    assert_ne!(
        mock.salt,
        Verifier::mock(b"another secret", "ghost", 7).salt
    );
    assert_eq!((mock.salt.len(), mock.iterations), (SALT_BYTES, 7));

    let server_first = |genuine| {
        ServerExchange::new(mock.clone(), genuine, "s".to_owned()).client_first(b"n,,n=,r=c")
    };
    assert_eq!(server_first(false), server_first(true));

    // Even the right password for the verifier is wrong when the user is not there.
    let server = ServerExchange::new(cheap("secret"), false, "s".to_owned());
    let client = ClientExchange::new(password("secret"), "c".to_owned());
    assert_eq!(exchange(client, server), Err(ScramError::WrongProof));
}

#[test]
fn client_first_messages() {
    let accepted = [
        "n,,n=,r=c",
        "y,,n=,r=c",
        "n,,n=whoever=2C=3D,r=c",
        "n,,n=,r=c,x=extension",
    ];
    for message in accepted {
        assert!(
            server().client_first(message.as_bytes()).is_ok(),
            "{message}"
        );
    }
    let refused = [
        (
            "p=tls-server-end-point,,n=,r=c",
            ScramError::ChannelBindingRequested,
        ),
        ("n,a=other,n=,r=c", ScramError::AuthorizationIdentity),
        ("n,,m=x,n=,r=c", ScramError::MandatoryExtension),
        (
            "",
            ScramError::Malformed("client-first has no channel binding flag"),
        ),
        (
            "x,,n=,r=c",
            ScramError::Malformed("client-first has no channel binding flag"),
        ),
        (
            "n",
            ScramError::Malformed("client-first has no channel binding flag"),
        ),
        (
            "n,",
            ScramError::Malformed("client-first has no authorization identity field"),
        ),
        (
            "n,é,",
            ScramError::Malformed("client-first has no authorization identity field"),
        ),
        (
            "n,,",
            ScramError::Malformed("client-first has no user name"),
        ),
        (
            "n,,n=x",
            ScramError::Malformed("client-first has no user name"),
        ),
        (
            "n,,n=x,s=x",
            ScramError::Malformed("client-first has no nonce"),
        ),
        (
            "n,,n=,r=",
            ScramError::Malformed("the nonce is empty or not printable"),
        ),
        (
            "n,,n=,r=a b",
            ScramError::Malformed("the nonce is empty or not printable"),
        ),
        (
            "n,,n=,r=é",
            ScramError::Malformed("the nonce is empty or not printable"),
        ),
    ];
    for (message, error) in refused {
        assert_eq!(
            server().client_first(message.as_bytes()),
            Err(error),
            "{message}"
        );
    }
    assert_eq!(
        server().client_first(b"n,,n=\xff,r=c"),
        Err(ScramError::Malformed("it is not UTF-8"))
    );
    assert_eq!(
        server().client_first(&[b'n'; 4097]),
        Err(ScramError::TooLong(4097))
    );
}

#[test]
fn client_final_messages() {
    let (nonce, proof) = (
        format!("{CLIENT_NONCE}{SERVER_NONCE}"),
        "A".repeat(43) + "=",
    );
    let no_binding = ScramError::Malformed("client-final has no channel binding or nonce");
    let cases = [
        (
            format!("c=biws,r={nonce},p={proof}"),
            ScramError::WrongProof,
        ),
        (CLIENT_FINAL.replace("p=dH", "p=dA"), ScramError::WrongProof),
        (
            CLIENT_FINAL.replace(",p=", ",x=added,p="),
            ScramError::WrongProof,
        ),
        // eSws is y,,: not what the exchange began with.
        (
            CLIENT_FINAL.replace("biws", "eSws"),
            ScramError::ChannelBindingMismatch,
        ),
        (
            CLIENT_FINAL.replace("biws", ""),
            ScramError::ChannelBindingMismatch,
        ),
        (
            CLIENT_FINAL.replace("k0,", "k1,"),
            ScramError::NonceMismatch,
        ),
        (
            CLIENT_FINAL.replace(SERVER_NONCE, ""),
            ScramError::NonceMismatch,
        ),
        (
            format!("c=biws,r={nonce}"),
            ScramError::Malformed("client-final has no proof"),
        ),
        (
            String::new(),
            ScramError::Malformed("client-final has no proof"),
        ),
        (format!("r={nonce},p={proof}"), no_binding.clone()),
        (format!("c=biws,p={proof}"), no_binding.clone()),
        (format!("c=biws,x=,p={proof}"), no_binding),
        (
            format!("c=biws,r={nonce},p=AAAA"),
            ScramError::Malformed("the proof is not 32 bytes in base64"),
        ),
        (
            format!("c=biws,r={nonce},p={proof},x=after"),
            ScramError::Malformed("the proof is not 32 bytes in base64"),
        ),
    ];
    for (message, error) in cases {
        assert_eq!(
            begun_server().client_final(message.as_bytes()),
            Err(error),
            "{message}"
        );
    }
}

#[test]
fn server_first_messages() {
    let refused = [
        ("r=x,s=c2FsdA==,i=1", ScramError::NonceMismatch),
        // Nothing added, and something added in front.
        (
            "r=rOprNGfwEbeRWgbNEkqO,s=c2FsdA==,i=1",
            ScramError::NonceMismatch,
        ),
        (
            "r=xrOprNGfwEbeRWgbNEkqO,s=c2FsdA==,i=1",
            ScramError::NonceMismatch,
        ),
        (
            "r=rOprNGfwEbeRWgbNEkqOx,s=c2FsdA==,i=0",
            ScramError::Iterations(0),
        ),
        (
            "r=rOprNGfwEbeRWgbNEkqOx,s=c2FsdA==,i=1000001",
            ScramError::Iterations(1_000_001),
        ),
        (
            "r=rOprNGfwEbeRWgbNEkqOx,s=c2FsdA==,i=4294967297",
            ScramError::Iterations(4_294_967_297),
        ),
        (
            "m=x,r=rOprNGfwEbeRWgbNEkqOx,s=c2FsdA==,i=1",
            ScramError::MandatoryExtension,
        ),
        ("", ScramError::Malformed("server-first has no nonce")),
        ("r=x", ScramError::Malformed("server-first has no nonce")),
        ("r=x,i=1", ScramError::Malformed("server-first has no salt")),
        (
            "r=x,s=c2FsdA==",
            ScramError::Malformed("server-first has no salt"),
        ),
        (
            "r=x,s=,i=1",
            ScramError::Malformed("the salt is empty or not base64"),
        ),
        (
            "r=x,s=!,i=1",
            ScramError::Malformed("the salt is empty or not base64"),
        ),
        (
            "r=x,s=c2FsdA==,i=",
            ScramError::Malformed("server-first has no number of iterations"),
        ),
        (
            "r=x,s=c2FsdA==,i=+1",
            ScramError::Malformed("server-first has no number of iterations"),
        ),
    ];
    for (message, error) in refused {
        assert_eq!(
            client("x").server_first(message.as_bytes()),
            Err(error),
            "{message}"
        );
    }
    let extended = b"r=rOprNGfwEbeRWgbNEkqOx,s=c2FsdA==,i=1,x=extension";
    assert!(client("x").server_first(extended).is_ok());
}

#[test]
fn server_final_messages() {
    let begun = || {
        let mut client = client(PASSWORD);
        client
            .server_first(b"r=rOprNGfwEbeRWgbNEkqOx,s=c2FsdA==,i=1")
            .unwrap();
        client
    };
    let refused = [
        (SERVER_FINAL, ScramError::WrongServerSignature),
        ("v=", ScramError::WrongServerSignature),
        ("v=c2hvcnQ=", ScramError::WrongServerSignature),
        (
            "v=!",
            ScramError::Malformed("the server signature is not base64"),
        ),
        ("", ScramError::Malformed("server-final has no signature")),
        (
            "e=other\nerror",
            ScramError::Refused(r"other\nerror".to_owned()),
        ),
    ];
    for (message, error) in refused {
        let mut client = begun();
        assert_eq!(
            client.server_final(message.as_bytes()),
            Err(error),
            "{message}"
        );
        assert!(!client.is_verified());
    }
}

#[test]
fn messages_out_of_turn_and_after_a_failure() {
    assert_eq!(
        server().client_final(CLIENT_FINAL.as_bytes()),
        Err(ScramError::OutOfTurn)
    );
    let mut twice = begun_server();
    assert_eq!(
        twice.client_first(CLIENT_FIRST.as_bytes()),
        Err(ScramError::OutOfTurn)
    );
    let mut failed = begun_server();
    failed.client_final(b"").unwrap_err();
    assert_eq!(
        failed.client_final(CLIENT_FINAL.as_bytes()),
        Err(ScramError::OutOfTurn)
    );
    assert_eq!(failed.keys(), None);
    assert_eq!(
        client("x").server_final(SERVER_FINAL.as_bytes()),
        Err(ScramError::OutOfTurn)
    );
}

/// Text that is nearly a SCRAM message, more often than not.
fn nearly_a_message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        "[nyp]?[,=a]{0,3}([cnrspivme]=[ -~é]{0,12},?){0,5}".prop_map(String::into_bytes),
        "(n,,n=,)?r=c(s)?[ -~]{0,4},s=[A-Za-z=]{0,8},i=[0-2]{0,3}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn no_input_panics_or_logs_in(first in nearly_a_message(), last in nearly_a_message()) {
        let mut server = ServerExchange::new(cheap("secret"), true, "s".to_owned());
        let _ = server.client_first(&first);
        prop_assert!(server.client_final(&last).is_err());

        let mut server = ServerExchange::new(cheap("secret"), true, "s".to_owned());
        server.client_first(b"n,,n=,r=c").unwrap();
        prop_assert!(server.client_final(&last).is_err());

        let mut client = ClientExchange::new(password("secret"), "c".to_owned());
        let _ = client.server_first(&first);
        prop_assert!(client.server_final(&last).is_err());

        let _ = Verifier::parse(&String::from_utf8_lossy(&last));
    }

    #[test]
    fn a_tampered_exchange_fails(message in 0..4usize, at in any::<proptest::sample::Index>(), flip in 1..128u8) {
        let mut server = ServerExchange::new(cheap("secret"), true, "server".to_owned());
        let mut client = ClientExchange::new(password("secret"), "client".to_owned());
        let tamper = |number: usize, mut bytes: Vec<u8>| {
            if number == message {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            bytes
        };
        let mut run = || -> Result<(), ScramError> {
            let client_first = tamper(0, client.client_first());
            let server_first = tamper(1, server.client_first(&client_first)?);
            let client_final = tamper(2, client.server_first(&server_first)?);
            client.server_final(&tamper(3, server.client_final(&client_final)?))
        };
        prop_assert!(run().is_err());
    }

    #[test]
    fn verifiers_survive_their_text_form(
        iterations in 1u32..,
        salt in proptest::collection::vec(any::<u8>(), 1..40),
        stored_key: Key,
        server_key: Key,
    ) {
        let verifier = Verifier { iterations, salt, stored_key, server_key };
        prop_assert_eq!(Verifier::parse(&verifier.to_string()), Ok(verifier));
    }
}
