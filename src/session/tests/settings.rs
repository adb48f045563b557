//! What a session has set, as it goes from server to server.

use super::*;

/// Each statement looked for from the start of its text, this would take minutes.
#[test]
fn a_text_of_many_settings_is_read_once() {
    const COUNT: usize = 50_000;
    let (mut session, mut server) = (session(), server());
    let text = "SET a.b = 1; ".repeat(COUNT) + "\0";
    told(&mut session, &mut server, &frame(b'Q', text.as_bytes()));
    let answers = [vec![done("SET"); COUNT], vec![ready("I")]].concat();
    assert_eq!(heard(&mut session, &mut server, &answers).len(), COUNT + 1);
    assert_eq!(session.settings().names().collect::<Vec<_>>(), ["a.b"]);
    assert!(!session.is_pinned());
}

#[test]
fn who_has_too_many_settings_keeps_the_server() {
    let (mut session, mut server) = (session(), server());
    for i in 0..=Settings::NUMBER_MAX {
        assert!(!session.is_pinned());
        let set = format!("SET a.b{i} = 1\0");
        told(&mut session, &mut server, &frame(b'Q', set.as_bytes()));
        heard(&mut session, &mut server, &[done("SET"), ready("I")]);
    }
    assert!(session.is_pinned());
    assert_eq!(session.settings().names().count(), Settings::NUMBER_MAX);
    let long = format!("SET a.b0 = '{}'\0", "x".repeat(Settings::BYTES_MAX));
    let (mut other, mut server) = (self::session(), self::server());
    told(&mut other, &mut server, &frame(b'Q', long.as_bytes()));
    heard(&mut other, &mut server, &[done("SET"), ready("I")]);
    assert!(other.is_pinned());
}

/// What text a string has depends on other settings, which a server may not have yet when it is told.
#[test]
fn a_setting_with_a_backslash_is_asked_for() {
    for (sql, expected) in [("SET a.b = 'it''s'", false), (r"SET a.b = 'it\'s'", true)] {
        let (mut session, mut server) = (session(), server());
        let client = frame(b'Q', format!("{sql}\0").as_bytes());
        told(&mut session, &mut server, &client);
        heard(&mut session, &mut server, &[done("SET"), ready("I")]);
        assert_eq!(session.must_inspect(), expected, "{sql}");
    }
}

/// It stands for what the search path has led to, whatever that is later.
#[test]
fn a_text_search_configuration_is_asked_for() {
    let (mut session, mut server) = (session(), server());
    let set = frame(b'Q', b"SET default_text_search_config = mine\0");
    told(&mut session, &mut server, &set);
    heard(&mut session, &mut server, &[done("SET"), ready("I")]);
    assert!(session.must_inspect());
}

/// On another server it would be set by the user who has logged in.
#[test]
fn who_sets_what_is_a_superusers_by_a_role_keeps_the_server() {
    for (login, kind, asks, keeps) in [
        ("off", "privileged", true, true),
        ("off", "setting", true, false),
        ("on", "privileged", false, false),
    ] {
        let mut session = session_with(params(&[("is_superuser", login)]));
        let mut server = server();
        server.params.set(b"is_superuser", b"on");
        let set = frame(b'Q', b"SET session_replication_role = replica\0");
        told(&mut session, &mut server, &set);
        heard(&mut session, &mut server, &[done("SET"), ready("I")]);
        assert_eq!(session.must_inspect(), asks, "{login}");
        if asks {
            session.say_inspection(&mut server, &mut BytesMut::new());
            let fact = row([kind, "session_replication_role", "replica"]);
            heard(&mut session, &mut server, &[done("SET"), fact, ready("I")]);
            session.inspected(&mut server);
        }
        assert_eq!(session.is_pinned(), keeps, "{login} {kind}");
        let names: Vec<_> = session.settings().names().collect();
        assert_eq!(names, ["session_replication_role"]);
    }
}

/// A row of the answer to an inspection.
fn row(values: [&str; 3]) -> Vec<u8> {
    let mut body = b"\0\x03".to_vec();
    for value in values {
        body.extend((value.len() as i32).to_be_bytes());
        body.extend(value.as_bytes());
    }
    frame(b'D', &body)
}

/// The words that have set it are told to servers in the encoding that there is then.
#[test]
fn a_setting_beyond_ascii_is_asked_for_in_another_encoding() {
    for (value, sql, expected) in [
        ("e", "SET NAMES 'LATIN1'", false),
        ("é", "SET work_mem = 1", false),
        ("é", "SET NAMES 'LATIN1'", true),
        ("é", "RESET client_encoding", true),
    ] {
        let (mut session, mut server) = (session(), server());
        for sql in [&format!("SET a.b = '{value}'"), sql] {
            assert!(!session.must_inspect());
            let client = frame(b'Q', format!("{sql}\0").as_bytes());
            told(&mut session, &mut server, &client);
            heard(&mut session, &mut server, &[done("SET"), ready("I")]);
        }
        assert_eq!(session.must_inspect(), expected, "{value} {sql}");
    }
}

#[test]
fn what_would_have_changed_settings_and_is_not_run_has_not() {
    let (mut session, mut server) = (session(), server());
    told(&mut session, &mut server, &frame(b'Q', b"BEGIN\0"));
    heard(&mut session, &mut server, &[done("BEGIN"), ready("T")]);
    let set = [parse("", "SET LOCAL DateStyle = 'German'"), bind("")].concat();
    let client = [set, execute(), SYNC.to_vec()].concat();
    let mut batch = Batch::new();
    let planned = session.plan(&client, &mut batch);
    assert_eq!(planned, Ok(Planned::Batch(End::Ready)));
    session.forget_batch(&batch);
    assert!(session.meaning().is_some());
    // What is behind it in the pipeline, in whatever part of that, finds them changed.
    let open = &client[..client.len() - SYNC.len()];
    let flush = [open, &frame(b'H', b"")].concat();
    told(&mut session, &mut server, &flush);
    assert!(session.meaning().is_none());
}

/// As by SET.
#[test]
fn who_has_set_too_much_by_functions_keeps_the_server() {
    let rows = |bytes: usize| {
        let fact = row(["setting", "a.b", &"x".repeat(bytes)]);
        vec![done("SET"), fact, ready("I")]
    };
    for (bytes, names) in [(1000, &["a.b"][..]), (Settings::BYTES_MAX, &[])] {
        let (mut session, mut server) = (session(), server());
        session.uncertain = true;
        session.say_inspection(&mut server, &mut BytesMut::new());
        assert_eq!(heard(&mut session, &mut server, &rows(bytes)), "");
        session.inspected(&mut server);
        assert_eq!(session.settings().names().collect::<Vec<_>>(), names);
        assert_eq!(session.is_pinned(), names.is_empty());
        assert!(server.settings == *session.settings());
    }
}

#[test]
fn settings_are_brought_along_and_undone() {
    let (mut session, mut first) = (session(), server());
    let set = frame(b'Q', b"SET work_mem = '1MB'\0");
    told(&mut session, &mut first, &set);
    assert_eq!(
        heard(&mut session, &mut first, &[done("SET"), ready("I")]),
        "CZ"
    );

    let mut second = server();
    let read = frame(b'Q', b"SELECT 1\0");
    let said = told(&mut session, &mut second, &read);
    assert!(said[0].starts_with("Q SET work_mem"), "{said:?}");
    let answers = [done("SET"), ready("I"), done("SELECT 1"), ready("I")];
    assert_eq!(heard(&mut session, &mut second, &answers), "CZ");
    assert_eq!(
        told(&mut session, &mut second, &read).len(),
        1,
        "it has them now"
    );
    heard(&mut session, &mut second, &[done("SELECT 1"), ready("I")]);

    for (sql, tag, status) in [
        ("BEGIN", "BEGIN", "T"),
        ("RESET work_mem", "RESET", "T"),
        ("ROLLBACK", "ROLLBACK", "I"),
    ] {
        told(
            &mut session,
            &mut first,
            &frame(b'Q', format!("{sql}\0").as_bytes()),
        );
        heard(&mut session, &mut first, &[done(tag), ready(status)]);
    }
    assert!(session.settings() == &second.settings);
    assert!(session.settings() == &first.settings);
}

/// A server that is reset has its own defaults, not those that were given at start-up.
#[test]
fn a_date_style_is_restated_where_it_was_set() {
    let defaults = Settings::from_startup([("timezone", "Asia/Tokyo"), ("datestyle", "German")]);
    for (sql, is_reset, on_server) in [
        ("RESET ALL; SET DateStyle = 'SQL'", false, "datestyle"),
        ("SET DateStyle = 'SQL'; RESET DateStyle", true, "timezone"),
    ] {
        let (mut session, mut server) = (session(), server());
        (session.settings, session.defaults) = (defaults.clone(), defaults.clone());
        server.settings = defaults.clone();
        let client = frame(b'Q', format!("{sql}\0").as_bytes());
        told(&mut session, &mut server, &client);
        let style = frame(b'S', b"DateStyle\0SQL, DMY\0");
        let answers = [done("SET"), done("SET"), style, ready("I")];
        heard(&mut session, &mut server, &answers);
        assert_eq!(*session.settings() == defaults, is_reset, "{sql}");
        let names: Vec<_> = server.settings.names().collect();
        assert_eq!(names, [on_server], "{sql}");
        let agrees = server.settings.agrees(session.settings(), b"DateStyle");
        assert_eq!(agrees, !is_reset, "{sql}");
    }
}

#[test]
fn a_setting_in_a_failed_text_is_undone() {
    let (mut session, mut server) = (session(), server());
    told(
        &mut session,
        &mut server,
        &frame(b'Q', b"SET work_mem = '1MB'; SELECT 1/0\0"),
    );
    assert_eq!(
        heard(
            &mut session,
            &mut server,
            &[done("SET"), failed(), ready("I")]
        ),
        "CEZ"
    );
    assert!(*session.settings() == Settings::default());
    assert!(server.settings == Settings::default());
}
