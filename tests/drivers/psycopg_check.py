"""psycopg 3, the driver over libpq: prints what it sees of the server that PGHOST and PGPORT name.

Owns: the steps. Never: decides whether they are right; the transcript of a direct connection does.
"""

import re
import threading
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address
from uuid import UUID

import psycopg
from psycopg import pq, sql
from psycopg.types.composite import CompositeInfo
from psycopg.types.enum import EnumInfo
from psycopg.types.json import Json, Jsonb
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from transcript import failed, record

FIELDS = [field for field in dir(psycopg.errors.Diagnostic) if not field.startswith("_")]
SECTIONS = []
MEGABYTES_5 = 5 * 1024 * 1024


def section(run):
    SECTIONS.append(run)
    return run


def connect(**options):
    return psycopg.connect(autocommit=True, connect_timeout=30, **options)


def fields(diagnostic):
    """Every field that the server has given."""
    values = {name: getattr(diagnostic, name) for name in FIELDS}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def outcome(run):
    """What a call returns, or the error it raises, in full."""
    try:
        result = run()
    except psycopg.Error as error:
        return {"class": type(error).__name__, **fields(error.diag)}
    return result


def attempt(conn, query, params=None, **options):
    return outcome(lambda: answer(conn.execute(query, params, **options)))


def answer(cursor):
    """The command tag and, where there are some, columns and rows."""
    columns = [(c.name, c.type_code if c.type_code < 16384 else "own") for c in cursor.description or []]
    return [cursor.statusmessage, columns, cursor.fetchall() if columns else cursor.rowcount]


def one(conn, query, params=None, **options):
    return conn.execute(query, params, **options).fetchone()[0]


@section
def connecting(step):
    names = (
        "server_version server_encoding client_encoding application_name is_superuser in_hot_standby"
        " session_authorization DateStyle IntervalStyle TimeZone integer_datetimes"
        " standard_conforming_strings default_transaction_read_only"
    )
    with connect() as conn:
        step("no name", [conn.info.parameter_status("application_name"), attempt(conn, "SHOW application_name")])
    with connect(application_name="check") as conn:
        step("parameters", {name: conn.info.parameter_status(name) for name in names.split()})
        step("server version", conn.info.server_version)
        step("status", [conn.info.status.name, conn.info.transaction_status.name, conn.info.encoding])
        step("user", attempt(conn, "SELECT current_user, session_user, current_database()"))
    with connect(options="-c search_path=tide -c TimeZone=Asia/Tokyo -c work_mem=5MB -c tide.mark=x") as conn:
        for name in ["search_path", "timezone", "work_mem", "tide.mark"]:
            step(f"options: {name}", attempt(conn, "SELECT current_setting(%s)", [name]))
        step("options: reported", conn.info.parameter_status("TimeZone"))
        conn.execute("SET work_mem = '7MB'")
        step("options: changed", attempt(conn, "SHOW work_mem"))
        conn.execute("RESET work_mem")
        step("options: reset", attempt(conn, "SHOW work_mem"))
    for name, options in {
        "wrong password": {"password": "wrong"},
        "no password": {"password": ""},
        "unknown user": {"user": "nobody"},
        "unknown database": {"dbname": "nowhere"},
        "unknown setting": {"options": "-c no_such_setting=1"},
        "bad setting": {"options": "-c work_mem=lots"},
    }.items():
        try:
            connect(**options).close()
            step(name, "connected")
        except psycopg.OperationalError as error:
            step(name, re.sub(r'connection to server at "[^"]*", port \d+', "connection", str(error)))


TYPES = [
    ("int2", -32768),
    ("int4", 2147483647),
    ("int8", -(2**63)),
    ("float8", 0.1),
    ("float8", float("inf")),
    ("bool", True),
    ("text", "snow ☃, quote ', back\\slash, new\nline"),
    ("text", ""),
    ("varchar(5)", "abcde"),
    ("bytea", bytes(range(256))),
    ("bytea", b""),
    ("json", Json({"a": [1, None, "x"]})),
    ("jsonb", Jsonb({"b": {"c": 1.5}, "a": "ü"})),
    ("int4[]", [1, None, 3]),
    ("int4[]", [[1, 2], [3, 4]]),
    ("text[]", ['a"b', "c,d", "{e}", None, ""]),
    ("numeric", Decimal("12345678901234567890.0123456789")),
    ("numeric", Decimal("NaN")),
    ("timestamptz", datetime(2024, 2, 29, 12, 30, 15, 123456, timezone.utc)),
    ("timestamp", datetime(1999, 12, 31, 23, 59, 59)),
    ("date", date(2000, 1, 1)),
    ("time", time(1, 2, 3, 4)),
    ("interval", timedelta(days=40, seconds=5, microseconds=6)),
    ("uuid", UUID(int=2**127 + 5)),
    ("inet", ip_address("10.0.0.1")),
    ("int4range", Range(1, 10)),
    ("int4multirange", Multirange([Range(1, 3), Range(7, 9)])),
    ("int4", None),
    ("text", None),
]


@section
def types(step):
    with connect() as conn:
        conn.execute("CREATE TABLE types (n serial PRIMARY KEY, t text, b bytea, j jsonb, a int[], d timestamptz)")
        for binary in [False, True]:
            for kind, value in TYPES:
                with conn.cursor(binary=binary) as cur:
                    read = outcome(lambda: answer(cur.execute(f"SELECT %s::{kind} AS v", [value])))
                    step(f"{kind} {'binary' if binary else 'text'}", read)
        values = ["text", b"\x00\xff", Jsonb([1]), [1, 2], datetime(2024, 1, 1, tzinfo=timezone.utc)]
        for row in [values, [None] * 5]:
            written = attempt(conn, "INSERT INTO types (t, b, j, a, d) VALUES (%s, %s, %s, %s, %s) RETURNING n", row)
            step("stored", written)
        for binary in [False, True]:
            step("read", attempt(conn, "SELECT * FROM types ORDER BY n", binary=binary))
        conn.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
        conn.execute("CREATE TYPE point2 AS (x int, label text)")
        mood, point = EnumInfo.fetch(conn, "mood"), CompositeInfo.fetch(conn, "point2")
        step("catalogue", [mood.labels, point.field_names])
        step("enum", attempt(conn, "SELECT %s::mood, enum_range(NULL::mood)", ["ok"]))
        step("composite", attempt(conn, "SELECT ROW(1, 'a b')::point2, %s::point2", ['(2,"x,y")']))
        step("several", attempt(conn, "SELECT 1; SELECT 2"))
        step("nothing", outcome(lambda: conn.execute("").pgresult.status))
        step("no columns", attempt(conn, "SELECT"))


@section
def large(step):
    text, data = "tide " * (MEGABYTES_5 // 5), bytes(range(256)) * (MEGABYTES_5 // 256)
    with connect() as conn:
        conn.execute("CREATE TABLE large (n int, t text, b bytea)")
        for binary in [False, True]:
            step("parameters", attempt(conn, "SELECT %s::text, %s::bytea", [text, data], binary=binary))
        step("stored", attempt(conn, "INSERT INTO large VALUES (1, %s, %s)", [text, data]))
        step("read", attempt(conn, "SELECT n, t, b FROM large"))
        step("made", attempt(conn, "SELECT repeat('x', 5000000), 1"))
        step("in the statement", attempt(conn, sql.SQL("SELECT length({})").format(sql.Literal(text))))
        step("rows", attempt(conn, "SELECT i, md5(i::text) FROM generate_series(1, 100000) AS i"))
        with conn.cursor() as cur:
            step("streamed", sum(row[0] for row in cur.stream("SELECT generate_series(1, 50000)")))


@section
def prepare(step):
    with connect(prepare_threshold=0) as conn:
        conn.execute("CREATE TABLE prepare (n int PRIMARY KEY, v text)")
        step("insert", [one(conn, "INSERT INTO prepare VALUES (%s, %s) RETURNING n", [n, f"v{n}"]) for n in range(30)])
        read = [one(conn, "SELECT v FROM prepare WHERE n = %s", [n % 30]) for n in range(100)]
        step("threshold 0", read)
        names = "SELECT name, statement, parameter_types::text FROM pg_prepared_statements WHERE from_sql ORDER BY 1"
        step("errors", [attempt(conn, "SELECT 1 / %s::int", [n % 2]) for n in range(6)])
        step("error of a write", [attempt(conn, "INSERT INTO prepare VALUES (%s, 'x')", [n]) for n in (5, 40, 40)])
        step("mixed", [one(conn, f"SELECT {n % 7} + %s::int", [n]) for n in range(50)])
        step("result changes", changed_result(conn))
    with connect(prepare_threshold=5) as conn:
        conn.prepared_max = 3
        conn.execute("CREATE TABLE prepare5 (n int)")
        rows = []
        for n in range(120):
            rows.append(one(conn, f"SELECT count(*) + {n % 5} FROM prepare5 WHERE n <> %s", [n]))
            if n % 10 == 0:
                conn.execute("INSERT INTO prepare5 VALUES (%s)", [n])
        step("threshold 5, at most 3", rows)
        conn.execute("DEALLOCATE ALL")
        step("after DEALLOCATE ALL", [one(conn, "SELECT %s::int * 2", [n]) for n in range(12)])
    with connect(prepare_threshold=None) as conn:
        conn.execute("PREPARE plus(int) AS SELECT $1 + 1 AS plus")
        step("EXECUTE", [attempt(conn, f"EXECUTE plus({n})") for n in range(5)])
        conn.execute("CREATE TABLE prepare_sql (n int)")
        conn.execute("PREPARE put(int) AS INSERT INTO prepare_sql VALUES ($1) RETURNING n")
        step("EXECUTE of a write", [attempt(conn, f"EXECUTE put({n})") for n in range(3)])
        step("names", attempt(conn, names))
        step("twice", attempt(conn, "PREPARE put AS SELECT 1"))
        step("DEALLOCATE", attempt(conn, "DEALLOCATE plus"))
        step("gone", [attempt(conn, q) for q in ("EXECUTE plus(1)", "DEALLOCATE plus")])
        pgconn = conn.pgconn
        for name in [b"", b"by_hand"]:
            step("by hand: Parse", pgconn.prepare(name, b"SELECT $1::int + $2").status)
            described = pgconn.describe_prepared(name)
            types = [described.param_type(n) for n in range(described.nparams)]
            step("by hand: Describe", [types, described.ftype(0)])
            for n in range(4):
                step("by hand: Bind", pgconn.exec_prepared(name, [b"%d" % n, b"1"]).get_value(0, 0))
        step("by hand: taken", result_error(pgconn.prepare(b"by_hand", b"SELECT 2")))
        step("by hand: Close", pgconn.close_prepared(b"by_hand").status)
        step("by hand: closed", result_error(pgconn.exec_prepared(b"by_hand", [b"1", b"1"])))
        step("by hand: wrong number", result_error(pgconn.exec_prepared(b"", [b"1"])))
        step("by hand: bad value", result_error(pgconn.exec_prepared(b"", [b"1", b"x"])))


def changed_result(conn):
    conn.execute("CREATE TABLE changing (a int)")
    conn.execute("INSERT INTO changing VALUES (1)")
    read = [attempt(conn, "SELECT * FROM changing")]
    conn.execute("ALTER TABLE changing ADD b text DEFAULT 'b'")
    return read + [attempt(conn, "SELECT * FROM changing")]


def result_error(result):
    fields = [field for field in pq.DiagnosticField]
    return {field.name: result.error_field(field) for field in fields if result.error_field(field)}


@section
def pipeline(step):
    with connect() as conn:
        conn.execute("CREATE TABLE pipeline (n int PRIMARY KEY, v text)")
        with conn.cursor() as cur:
            cur.executemany("INSERT INTO pipeline VALUES (%s, %s)", [(n, f"v{n}") for n in range(500)])
            step("executemany", [cur.rowcount, one(conn, "SELECT count(*) FROM pipeline")])
            cur.executemany("SELECT v FROM pipeline WHERE n = %s", [[n] for n in range(50)], returning=True)
            step("executemany of reads", [row for result in cur.results() for row in result.fetchall()])
            wrong = [(n, "x") for n in (600, 601, 1, 602)]
            step("executemany fails", outcome(lambda: cur.executemany("INSERT INTO pipeline VALUES (%s, %s)", wrong)))
            step("nothing of it stays", one(conn, "SELECT count(*) FROM pipeline"))
        with conn.pipeline():
            cursors = [conn.execute("SELECT %s::int, count(*) FROM pipeline", [n]) for n in range(20)]
        step("reads", [cursor.fetchall() for cursor in cursors])
        with conn.pipeline():
            cursors = []
            for n in range(1000, 1020):
                conn.execute("INSERT INTO pipeline VALUES (%s, 'p')", [n])
                cursors.append(conn.execute("SELECT count(*) FROM pipeline WHERE n >= 1000"))
        step("own writes", [cursor.fetchone() for cursor in cursors])
        pgconn = conn.pgconn
        step("error, then Sync", libpq_pipeline(pgconn, [b"SELECT 1", None, b"SELECT 1/0", b"SELECT 2", None, b"SELECT 3", None]))
        write = b"INSERT INTO pipeline VALUES (2100, 'w') RETURNING v"
        step("error undoes", libpq_pipeline(pgconn, [write, b"SELECT nothing", None, b"SELECT count(*) FROM pipeline", None]))
        step("write, then reads", libpq_pipeline(pgconn, [write, None, *[b"SELECT max(n) FROM pipeline", None] * 20]))
        step("only Syncs", libpq_pipeline(pgconn, [None, None, b"SELECT 1", None]))
        def aborted():
            with conn.pipeline():
                conn.execute("INSERT INTO pipeline VALUES (2000, 'lost')")
                conn.execute("SELECT nothing")
                conn.execute("INSERT INTO pipeline VALUES (2001, 'lost')")
        step("aborted", [outcome(aborted), one(conn, "SELECT count(*) FROM pipeline WHERE n >= 2000")])
        with conn.pipeline(), conn.transaction():
            conn.execute("INSERT INTO pipeline VALUES (3000, 't')")
            with conn.transaction():
                inner = conn.execute("SELECT v FROM pipeline WHERE n = 3000")
        step("transaction", [inner.fetchone(), conn.info.transaction_status.name])


def libpq_pipeline(pgconn, queries):
    """libpq's own pipeline, where None is a Sync. psycopg's raises an error as soon as it comes,
    and so leaves it to chance which of its calls that is."""
    pgconn.enter_pipeline_mode()
    for query in queries:
        if query is None:
            pgconn.pipeline_sync()
        else:
            pgconn.send_query_params(query, [])
    results, syncs = [], queries.count(None)
    while syncs:
        result = pgconn.get_result()
        if result is None:
            continue
        syncs -= result.status == pq.ExecStatus.PIPELINE_SYNC
        value = result.get_value(0, 0) if result.ntuples else result_error(result)
        results.append([pq.ExecStatus(result.status).name, value])
    pgconn.exit_pipeline_mode()
    return results


@section
def transactions(step):
    with connect() as conn:
        count = lambda: one(conn, "SELECT count(*) FROM transactions")
        insert = lambda n: conn.execute("INSERT INTO transactions VALUES (%s)", [n])
        conn.execute("CREATE TABLE transactions (n int PRIMARY KEY)")
        with conn.transaction():
            insert(1)
            step("inside", [count(), conn.info.transaction_status.name])
        step("committed", [count(), conn.info.transaction_status.name])
        with conn.transaction(force_rollback=True):
            insert(2)
        step("rolled back", count())
        with conn.transaction():
            insert(3)
            try:
                with conn.transaction("inner"):
                    insert(4)
                    insert(1)
            except psycopg.errors.UniqueViolation as error:
                step("savepoint's error", fields(error.diag))
            step("after the savepoint", [count(), conn.info.transaction_status.name])
            insert(5)
        step("kept", attempt(conn, "SELECT n FROM transactions ORDER BY n"))
        conn.execute("BEGIN")
        step("error", attempt(conn, "SELECT * FROM no_such_table"))
        step("failed", [conn.info.transaction_status.name, attempt(conn, "SELECT 1"), attempt(conn, "COMMIT")])
        step("over", conn.info.transaction_status.name)
        for name, setting in {"isolation_level": "SERIALIZABLE", "read_only": True, "deferrable": True}.items():
            setattr(conn, name, psycopg.IsolationLevel[setting] if isinstance(setting, str) else setting)
            with conn.transaction(force_rollback=True):
                step(name, [attempt(conn, f"SHOW transaction_{s}") for s in ("isolation", "read_only", "deferrable")])
                step(f"{name}: read", count())
                step(f"{name}: write", attempt(conn, "INSERT INTO transactions VALUES (9)"))
        conn.isolation_level = conn.read_only = conn.deferrable = None
        step("warnings", [attempt(conn, "COMMIT"), attempt(conn, "ROLLBACK"), attempt(conn, "SAVEPOINT s")])
        step("chain", [attempt(conn, q) for q in ("BEGIN", "COMMIT AND CHAIN", "SELECT 1", "ROLLBACK")])
        step("in one text", attempt(conn, "BEGIN; INSERT INTO transactions VALUES (10); COMMIT; SELECT 1"))
        step("implicit", attempt(conn, "INSERT INTO transactions VALUES (11); SELECT 1/0"))
        step("afterwards", attempt(conn, "SELECT n FROM transactions ORDER BY n"))
        conn.autocommit = False
        xid = conn.xid(1, "tide", "branch")
        for end in [conn.tpc_commit, conn.tpc_rollback]:
            conn.tpc_begin(xid)
            insert(20 if end == conn.tpc_commit else 21)
            conn.tpc_prepare()
            end()
        step("two phases", attempt(conn, "SELECT n FROM transactions WHERE n >= 20"))
        conn.rollback()
        insert(30)
        step("not autocommit", [conn.info.transaction_status.name, count()])
        conn.rollback()
        step("rollback", [conn.info.transaction_status.name, count()])
        conn.commit()


@section
def copy(step):
    rows = [(n, f"row\t{n}\\" if n % 3 else None) for n in range(2000)]
    with connect() as conn:
        conn.execute("CREATE TABLE copy (n int, v text)")
        for form in ["text", "binary"]:
            with conn.cursor() as cur:
                with cur.copy(f"COPY copy FROM STDIN (FORMAT {form})") as into:
                    if form == "binary":
                        into.set_types(["int4", "text"])
                    for row in rows:
                        into.write_row(row)
                step(f"in, {form}", [cur.statusmessage, one(conn, "SELECT count(*) FROM copy")])
                with cur.copy(f"COPY (SELECT * FROM copy ORDER BY n) TO STDOUT (FORMAT {form})") as out:
                    data = b"".join(out)
                step(f"out, {form}", [data, cur.statusmessage])
        with conn.cursor() as cur:
            with cur.copy("COPY copy (v) FROM STDIN") as into:
                for _ in range(10):
                    into.write("x" * (MEGABYTES_5 // 10) + "\n")
            step("in, large", cur.statusmessage)
            with cur.copy("COPY copy TO STDOUT") as out:
                step("out, large", b"".join(out))
            def copied(data, table="copy"):
                with cur.copy(f"COPY {table} FROM STDIN") as into:
                    into.write(data)
            step("bad data", outcome(lambda: copied("1\ta\nx\tb\n")))
            step("no table", outcome(lambda: copied("1\ta\n", "no_such_table")))
            try:
                with cur.copy("COPY copy FROM STDIN") as into:
                    into.write("77\tgiven up\n")
                    raise ValueError("given up")
            except ValueError as error:
                step("given up", [str(error), conn.info.transaction_status.name])
            try:
                with cur.copy("COPY (SELECT generate_series(1, 1000000)) TO STDOUT") as out:
                    step("left early", out.read_row())
                    raise ValueError("enough")
            except ValueError:
                step("usable", attempt(conn, "SELECT 1"))
            with conn.transaction(force_rollback=True):
                copied("88\tin a transaction\n")
                step("in a transaction", attempt(conn, "SELECT count(*) FROM copy"))
            def to_nowhere():
                with cur.copy("COPY (SELECT 1 / (3 - n) FROM copy WHERE n < 9 ORDER BY n) TO STDOUT") as out:
                    return list(out)
            step("out, error", outcome(to_nowhere))
        step("afterwards", attempt(conn, "SELECT count(*), count(v) FROM copy"))


@section
def cursors(step):
    with connect() as conn:
        conn.execute("CREATE TABLE cursors AS SELECT generate_series(1, 1000) AS n")
        with conn.transaction():
            with conn.cursor("forward") as cur:
                cur.itersize = 70
                cur.execute("SELECT n FROM cursors ORDER BY n")
                step("iterated", [row[0] for row in cur])
            with conn.cursor("scrolling", scrollable=True) as cur:
                cur.execute("SELECT n FROM cursors ORDER BY n")
                first = cur.fetchmany(3)
                cur.scroll(500)
                middle = cur.fetchmany(3)
                cur.scroll(10, mode="absolute")
                step("scrolled", [first, middle, cur.fetchone(), answer(conn.execute("MOVE LAST scrolling"))])
        with conn.cursor("held", withhold=True) as cur:
            cur.execute("SELECT n FROM cursors ORDER BY n")
            pages = [cur.fetchmany(100)]
            conn.execute("INSERT INTO cursors VALUES (0)")
            pages += [cur.fetchmany(100), one(conn, "SELECT count(*) FROM cursors")]
            step("held", pages)
        step("outside", attempt(conn, "DECLARE c CURSOR FOR SELECT 1"))
        step("no such cursor", attempt(conn, "FETCH 1 FROM c"))


@section
def cancel(step):
    with connect() as conn:
        conn.execute("CREATE TABLE cancel (n int)")
        step("read", cancelled(conn, "SELECT pg_sleep(600)"))
        step("usable", attempt(conn, "SELECT 1"))
        step("again", cancelled(conn, "SELECT pg_sleep(%s)", [600]))
        step("write", cancelled(conn, "INSERT INTO cancel SELECT 1 FROM pg_sleep(600)"))
        conn.execute("BEGIN")
        step("in a transaction", cancelled(conn, "SELECT pg_sleep(600)"))
        step("failed", [conn.info.transaction_status.name, attempt(conn, "SELECT 1"), attempt(conn, "ROLLBACK")])
        conn.cancel_safe()
        step("with nothing to cancel", attempt(conn, "SELECT count(*) FROM cancel"))


def cancelled(conn, query, params=None):
    """Runs a query that nothing but a cancel request ends. It is sent until it has reached it."""
    done = threading.Event()

    def send():
        while not done.wait(0.2):
            conn.cancel_safe(timeout=30)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return attempt(conn, query, params)
    finally:
        done.set()
        sender.join()


@section
def notices(step):
    with connect() as conn:
        heard = []
        conn.add_notice_handler(lambda notice: heard.append(fields(notice)))
        conn.execute("DO $$ BEGIN RAISE NOTICE 'one' USING DETAIL = 'd', HINT = 'h'; RAISE WARNING 'two'; END $$")
        conn.execute("DROP TABLE IF EXISTS never_was")
        conn.execute("COMMIT")
        step("heard", heard.copy())
        heard.clear()
        conn.execute("SET client_min_messages = error")
        conn.execute("DROP TABLE IF EXISTS never_was")
        step("quiet", heard)
        conn.execute("LISTEN tide")
        conn.execute("NOTIFY tide, 'own'")
        with connect() as other:
            other.execute("SELECT pg_notify('tide', 'other')")
            other.execute("NOTIFY elsewhere")
        step("notified", [(n.channel, n.payload) for n in conn.notifies(timeout=30, stop_after=2)])
        step("read while listening", [one(conn, "SELECT %s::int", [n]) for n in range(5)])
        step("channels", attempt(conn, "SELECT pg_listening_channels()"))
        conn.execute("UNLISTEN *")
        step("no channels", attempt(conn, "SELECT pg_listening_channels()"))


@section
def settings(step):
    with connect() as conn:
        conn.execute("CREATE SCHEMA tide")
        conn.execute("CREATE TABLE tide.place AS SELECT 'tide' AS name")
        conn.execute("CREATE TABLE public.place AS SELECT 'public' AS name")
        read = lambda query, times=10: [one(conn, query) for _ in range(times)]
        show = lambda name: attempt(conn, "SELECT current_setting(%s)", [name])
        conn.execute("SET search_path TO tide, public")
        step("search_path", read("SELECT name FROM place", 30))
        conn.execute("SET TimeZone = 'Asia/Tokyo'")
        step("TimeZone", read("SELECT '2024-01-01 00:00+00'::timestamptz::text"))
        conn.execute("SET DateStyle = 'German, DMY'")
        step("DateStyle", read("SELECT '01.02.2024'::date::text"))
        conn.execute("SET application_name = 'renamed'")
        step("application_name", read("SELECT current_setting('application_name')"))
        step("reported", [conn.info.parameter_status(n) for n in ("TimeZone", "DateStyle", "application_name")])
        step("set_config", [attempt(conn, "SELECT set_config('work_mem', '3MB', false)"), *read("SHOW work_mem")])
        with conn.transaction():
            conn.execute("SET LOCAL search_path TO public")
            step("SET LOCAL", read("SELECT name FROM place"))
        step("after SET LOCAL", read("SELECT name FROM place"))
        with conn.transaction(force_rollback=True):
            conn.execute("SET search_path TO public")
            conn.execute("SET TimeZone = 'UTC'")
            step("rolled back: inside", [read("SELECT name FROM place", 1), conn.info.parameter_status("TimeZone")])
        step("rolled back", [read("SELECT name FROM place"), conn.info.parameter_status("TimeZone")])
        with conn.transaction():
            conn.execute("SET search_path TO public")
        step("committed", read("SELECT name FROM place"))
        conn.execute("SET tide.own = 'it''s mine'")
        step("own", show("tide.own"))
        step("unknown", [attempt(conn, "SET no_such = 1"), attempt(conn, "SHOW no_such"), show("tide.none")])
        conn.execute("SET bytea_output = 'escape'")
        step("bytea_output", attempt(conn, "SELECT '\\x0001ff'::bytea::text"))
        conn.execute("SET standard_conforming_strings = off")
        step("strings", attempt(conn, "SELECT 'a\\'b', E'c\\'d'"))
        conn.execute("RESET standard_conforming_strings")
        step("strings again", attempt(conn, "SELECT 'a\\'"))
        conn.execute("SET client_encoding TO latin1")
        step("encoding", [attempt(conn, "SELECT %s::text, 'ü'", ["é"]), conn.info.encoding])
        step("not in latin1", attempt(conn, "SELECT U&'\\2603'"))
        conn.execute("RESET client_encoding")
        conn.execute("SET statement_timeout = '50ms'")
        step("timeout", attempt(conn, "SELECT pg_sleep(600)"))
        conn.execute("SET statement_timeout TO DEFAULT")
        conn.execute("SET default_transaction_read_only = on")
        step("read only", [attempt(conn, "CREATE TABLE never (n int)"), attempt(conn, "SELECT 1")])
        conn.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE, ISOLATION LEVEL REPEATABLE READ")
        step("characteristics", [show("transaction_isolation"), show("transaction_read_only")])
        conn.execute("SET ROLE app")
        step("role", attempt(conn, "SELECT current_user, session_user"))
        step("forbidden", attempt(conn, "SET ROLE postgres"))
        conn.execute("RESET ALL")
        step("RESET ALL", [show(n) for n in ("search_path", "TimeZone", "work_mem", "tide.own", "application_name")])
        conn.execute("SET work_mem = '9MB'")
        conn.execute("DISCARD ALL")
        step("DISCARD ALL", [show("work_mem"), conn.info.parameter_status("DateStyle")])
    # Sessions that have not written, whose reads any replica could take, were it not for this.
    for how in ["default_transaction_isolation = serializable", "SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"]:
        with connect() as conn:
            conn.execute(f"SET {how}")
            step(how, [attempt(conn, "SELECT 1") for _ in range(3)])
    with connect(options="-c default_transaction_isolation=serializable") as conn:
        step("serializable from the start", [attempt(conn, "SHOW transaction_isolation") for _ in range(3)])


@section
def own_writes(step):
    with connect() as conn:
        conn.execute("CREATE TABLE own_writes (n int)")
        seen = []
        for n in range(100):
            conn.execute("INSERT INTO own_writes VALUES (%s)", [n])
            seen.append(one(conn, "SELECT count(*) FROM own_writes"))
        step("in order", seen)
        with conn.transaction():
            conn.execute("UPDATE own_writes SET n = n + 1000")
        step("after a transaction", attempt(conn, "SELECT min(n), max(n) FROM own_writes"))
        step("in a CTE", attempt(conn, "WITH d AS (DELETE FROM own_writes WHERE n < 1050 RETURNING 1) SELECT count(*) FROM d"))
        step("deleted", attempt(conn, "SELECT count(*) FROM own_writes"))
        step("many reads", [one(conn, "SELECT count(*) + %s FROM own_writes", [n]) for n in range(100)])
        conn.execute("CREATE FUNCTION add_one() RETURNS bigint LANGUAGE sql AS"
                     " 'INSERT INTO own_writes VALUES (1); SELECT count(*) FROM own_writes'")
        step("by a function", [one(conn, f) for f in ("SELECT add_one()", "SELECT count(*) FROM own_writes") * 5])
        conn.execute("CREATE VIEW adding AS SELECT add_one()")
        # By now the reads are on a replica, which does not know that this one is none.
        step("settled", len([one(conn, "SELECT count(*) FROM own_writes") for _ in range(200)]))
        step("by a view", [attempt(conn, f) for f in ("SELECT * FROM adding", "SELECT count(*) FROM own_writes") * 5])
        step("sequence", [attempt(conn, q) for q in ("CREATE SEQUENCE s", "SELECT nextval('s')", "SELECT currval('s'), lastval()")])


@section
def temporary(step):
    with connect() as conn:
        conn.execute("CREATE TEMP TABLE scratch (n int)")
        seen = []
        for n in range(20):
            conn.execute("INSERT INTO scratch VALUES (%s)", [n])
            seen.append(one(conn, "SELECT count(*) FROM scratch"))
        step("kept", seen)
        conn.execute("CREATE TABLE lasting (n int)")
        step("beside others", attempt(conn, "SELECT (SELECT count(*) FROM scratch), count(*) FROM lasting"))
        with conn.transaction():
            conn.execute("CREATE TEMP TABLE brief ON COMMIT DROP AS SELECT 1 AS n")
            step("brief", attempt(conn, "SELECT * FROM brief"))
        step("dropped", attempt(conn, "SELECT * FROM brief"))
        conn.execute("SELECT 5 AS n INTO TEMP chosen")
        step("SELECT INTO", attempt(conn, "SELECT * FROM chosen"))
        conn.execute("DISCARD TEMP")
        step("discarded", attempt(conn, "SELECT * FROM scratch"))
        step("lock", [one(conn, "SELECT pg_try_advisory_lock(7)"), one(conn, "SELECT pg_advisory_unlock(7)")])
    with connect() as conn:
        step("not of others", attempt(conn, "SELECT * FROM scratch"))


@section
def errors(step):
    with connect() as conn:
        conn.execute("CREATE TABLE errors (n int PRIMARY KEY, v varchar(3) NOT NULL, CHECK (n < 100))")
        conn.execute("CREATE TABLE errors_child (n int REFERENCES errors)")
        conn.execute("INSERT INTO errors VALUES (1, 'a')")
        conn.execute("CREATE FUNCTION raises() RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN"
                     " RAISE EXCEPTION 'no %', 1 USING ERRCODE = 'TG001', DETAIL = 'd', HINT = 'h', COLUMN = 'c'; END $$")
        for query in [
            "SELECT 1/0",
            "SELECT 1/%s::int",
            "INSERT INTO errors VALUES (1, 'b')",
            "INSERT INTO errors VALUES (2, NULL)",
            "INSERT INTO errors VALUES (200, 'c')",
            "INSERT INTO errors VALUES (3, 'abcd')",
            "INSERT INTO errors_child VALUES (9)",
            "SELEC 1",
            "SELECT ☃☃, FROM errors WHERE (",
            "SELECT * FROM no_such_table",
            "SELECT no_such_column FROM errors",
            "SELECT no_such_function(1)",
            "SELECT raises()",
            "SELECT 'x'::int",
            "SELECT n FROM errors WHERE v = 1",
            "SELECT 9223372036854775807 + 1",
            "SELECT * FROM pg_authid",
            "CREATE TABLE errors (n int)",
            "VACUUM no_such_table",
            "SELECT 1; SELECT 1/0; SELECT 2",
        ]:
            params = [0] if "%s" in query else None
            step(query, attempt(conn, query, params, prepare=False))
            if ";" not in query:
                step(f"{query} prepared", attempt(conn, query, params, prepare=True))
        step("usable", attempt(conn, "SELECT count(*) FROM errors"))
    with connect() as conn:
        end = attempt(conn, "SELECT pg_terminate_backend(pg_backend_pid())")
        step("terminated", [end["sqlstate"], end["message_primary"]])
        step("terminated: severity", end["severity"])
        step("terminated: connection", [conn.closed, conn.broken])


def main():
    with connect() as conn:
        conn.execute("DROP SCHEMA IF EXISTS public, tide CASCADE")
        conn.execute("CREATE SCHEMA public")
    for run in SECTIONS:
        name = run.__name__
        try:
            run(lambda step, value: record(f"{name}/{step}", value))
        except Exception as error:
            failed(name, error)
    record("END", len(SECTIONS))


main()
