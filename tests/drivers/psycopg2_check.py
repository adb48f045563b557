"""psycopg2, the older driver over libpq, which says everything in simple queries: prints what it
sees of the server that PGHOST and PGPORT name.

Owns: the steps. Never: decides whether they are right; the transcript of a direct connection does.
"""

import io
import re
import select
import threading
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import psycopg2
from psycopg2 import errors as errorcodes
from psycopg2 import extensions, extras, sql

from transcript import failed, record

FIELDS = [field for field in dir(extensions.Diagnostics) if not field.startswith("_")]
SECTIONS = []
MEGABYTES_5 = 5 * 1024 * 1024
POLL_SECONDS = 30

extras.register_uuid()


def section(run):
    SECTIONS.append(run)
    return run


def connect(autocommit=True, **options):
    # One parameter at least, or the driver does not look at the environment.
    conn = psycopg2.connect(connect_timeout=30, **options)
    conn.autocommit = autocommit
    return conn


class closing:
    """psycopg2's own `with` ends a transaction, not the connection."""

    def __init__(self, conn):
        self.conn = conn

    def __enter__(self):
        return self.conn

    def __exit__(self, *_):
        self.conn.close()


def fields(diagnostic):
    values = {name: getattr(diagnostic, name) for name in FIELDS}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def outcome(run):
    """What a call returns, or the error it raises, in full."""
    try:
        return run()
    except psycopg2.Error as error:
        return {"class": type(error).__name__, "code": error.pgcode, "text": error.pgerror, **fields(error.diag)}


def execute(conn, query, params=None):
    cur = conn.cursor()
    cur.execute(query, params)
    return cur


def attempt(conn, query, params=None):
    return outcome(lambda: answer(execute(conn, query, params)))


def answer(cur):
    """The command tag and, where there are some, columns and rows."""
    columns = [(c.name, c.type_code if c.type_code < 16384 else "own") for c in cur.description or []]
    return [cur.statusmessage, columns, cur.fetchall() if columns else cur.rowcount]


def one(conn, query, params=None):
    return execute(conn, query, params).fetchone()[0]


STATUS = {getattr(extensions, name): name for name in dir(extensions) if name.startswith("TRANSACTION_STATUS_")}


def status(conn):
    return STATUS[conn.get_transaction_status()]


@section
def connecting(step):
    names = (
        "server_version server_encoding client_encoding application_name is_superuser in_hot_standby"
        " session_authorization DateStyle IntervalStyle TimeZone integer_datetimes"
        " standard_conforming_strings default_transaction_read_only"
    )
    with closing(connect(application_name="check")) as conn:
        step("parameters", {name: conn.get_parameter_status(name) for name in names.split()})
        step("info", [conn.server_version, conn.protocol_version, conn.encoding, conn.info.used_password])
        step("user", attempt(conn, "SELECT current_user, session_user, current_database()"))
    with closing(connect(options="-c search_path=tide -c TimeZone=Asia/Tokyo -c tide.mark=x")) as conn:
        for name in ["search_path", "timezone", "tide.mark"]:
            step(f"options: {name}", attempt(conn, "SELECT current_setting(%s)", [name]))
    for name, options in {
        "wrong password": {"password": "wrong"},
        "unknown user": {"user": "nobody"},
        "unknown database": {"dbname": "nowhere"},
        "bad setting": {"options": "-c work_mem=lots"},
    }.items():
        try:
            connect(**options).close()
            step(name, "connected")
        except psycopg2.OperationalError as error:
            step(name, re.sub(r'connection to server at "[^"]*", port \d+', "connection", str(error)))


TYPES = [
    ("int8", -(2**63)),
    ("float8", 0.1),
    ("bool", True),
    ("text", "snow ☃, quote ', back\\slash, new\nline, per%cent"),
    ("text", ""),
    ("bytea", psycopg2.Binary(bytes(range(256)))),
    ("jsonb", extras.Json({"b": {"c": 1.5}, "a": "ü"})),
    ("int4[]", [[1, 2], [3, 4]]),
    ("text[]", ['a"b', "c,d", "{e}", None, ""]),
    ("numeric", Decimal("12345678901234567890.0123456789")),
    ("timestamptz", datetime(2024, 2, 29, 12, 30, 15, 123456, timezone.utc)),
    ("date", date(2000, 1, 1)),
    ("interval", timedelta(days=40, seconds=5, microseconds=6)),
    ("uuid", UUID(int=2**127 + 5)),
    ("int4range", extras.NumericRange(1, 10)),
    ("text", None),
]


@section
def types(step):
    with closing(connect()) as conn:
        for kind, value in TYPES:
            step(kind, attempt(conn, f"SELECT %s::{kind} AS v", [value]))
        conn.cursor().execute("CREATE TYPE point2 AS (x int, label text)")
        composite = extras.register_composite("point2", conn)
        step("composite", [composite.attnames, attempt(conn, "SELECT ROW(1, 'a b')::point2")])
        text, data = "tide " * (MEGABYTES_5 // 5), bytes(range(256)) * (MEGABYTES_5 // 256)
        step("large", attempt(conn, "SELECT %s::text, %s::bytea", [text, data]))
        step("rows", attempt(conn, "SELECT i, md5(i::text) FROM generate_series(1, 50000) AS i"))
        step("several", attempt(conn, "SELECT 1; SELECT 2"))
        step("nothing", attempt(conn, ""))
        cur = conn.cursor(cursor_factory=extras.RealDictCursor)
        cur.execute("SELECT 1 AS a, 'x' AS b")
        step("as a dictionary", cur.fetchall())
        cur = conn.cursor()
        cur.execute("CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2'")
        cur.callproc("twice", [21])
        step("callproc", cur.fetchall())


@section
def batches(step):
    with closing(connect()) as conn:
        cur = conn.cursor()
        cur.execute("CREATE TABLE batches (n int PRIMARY KEY, v text)")
        cur.executemany("INSERT INTO batches VALUES (%s, %s)", [(n, f"v{n}") for n in range(20)])
        step("executemany", [cur.rowcount, one(conn, "SELECT count(*) FROM batches")])
        extras.execute_batch(cur, "INSERT INTO batches VALUES (%s, %s)", [(n, "b") for n in range(20, 120)], page_size=30)
        step("execute_batch", one(conn, "SELECT count(*) FROM batches"))
        rows = [(n, "values") for n in range(120, 220)]
        got = extras.execute_values(cur, "INSERT INTO batches VALUES %s RETURNING n", rows, page_size=30, fetch=True)
        step("execute_values", [got, one(conn, "SELECT count(*) FROM batches")])
        wrong = [(n, "x") for n in (300, 301, 1)]
        step("fails", outcome(lambda: extras.execute_batch(cur, "INSERT INTO batches VALUES (%s, %s)", wrong)))
        step("nothing of it stays", one(conn, "SELECT count(*) FROM batches"))


@section
def prepare(step):
    """It has none of its own; people write PREPARE."""
    with closing(connect()) as conn:
        cur = conn.cursor()
        cur.execute("CREATE TABLE prepare (n int PRIMARY KEY)")
        cur.execute("PREPARE put(int) AS INSERT INTO prepare VALUES ($1) RETURNING n")
        cur.execute("PREPARE get(int) AS SELECT count(*) FROM prepare WHERE n <> $1")
        step("by turns", [[one(conn, f"EXECUTE put({n})"), one(conn, f"EXECUTE get({n})")] for n in range(20)])
        step("error", [attempt(conn, q) for q in ("EXECUTE put(1)", "EXECUTE get('x')", "EXECUTE nothing")])
        step("DEALLOCATE", [attempt(conn, q) for q in ("DEALLOCATE get", "EXECUTE get(1)", "EXECUTE put(100)")])


@section
def transactions(step):
    with closing(connect(autocommit=False)) as conn:
        count = lambda: one(conn, "SELECT count(*) FROM transactions")
        insert = lambda n: execute(conn, "INSERT INTO transactions VALUES (%s)", [n])
        with conn:
            execute(conn, "CREATE TABLE transactions (n int PRIMARY KEY)")
        step("ended by with", status(conn))
        with conn:
            insert(1)
            step("inside", [count(), status(conn)])
        try:
            with conn:
                insert(2)
                insert(1)
        except errorcodes.UniqueViolation as error:
            step("rolled back", [fields(error.diag), status(conn)])
        step("begun by a read", [count(), status(conn)])
        conn.rollback()
        insert(3)
        execute(conn, "SAVEPOINT s")
        step("error", [attempt(conn, "SELECT nothing"), status(conn), attempt(conn, "SELECT 1")])
        execute(conn, "ROLLBACK TO SAVEPOINT s")
        step("back to the savepoint", [count(), status(conn)])
        conn.commit()
        shown = lambda: [attempt(conn, f"SHOW transaction_{s}") for s in ("isolation", "read_only", "deferrable")]
        for level in ["READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE"]:
            conn.set_session(isolation_level=level, readonly=True, deferrable=True)
            step(level, [*shown(), count(), attempt(conn, "INSERT INTO transactions VALUES (9)")])
            conn.rollback()
        conn.set_session(isolation_level="DEFAULT", readonly="DEFAULT", deferrable="DEFAULT")
        step("default", shown())
        conn.rollback()
        # In autocommit the driver sets the session's own defaults.
        conn.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=True)
        step("of the session", [shown(), [attempt(conn, "SELECT count(*) FROM transactions") for _ in range(20)]])
        step("of the session: write", [attempt(conn, "INSERT INTO transactions VALUES (9)"), status(conn)])
        conn.set_session(isolation_level="DEFAULT", readonly="DEFAULT")
        step("of the session: over", [shown(), attempt(conn, "INSERT INTO transactions VALUES (10)")])
        conn.autocommit = False
        insert(11)
        conn.reset()
        step("reset", [status(conn), count()])
        conn.rollback()
        for number, end in enumerate([conn.tpc_commit, conn.tpc_rollback]):
            conn.tpc_begin(conn.xid(2, f"tide{number}", "psycopg2"))
            insert(20 + number)
            conn.tpc_prepare()
            end()
        conn.tpc_begin(conn.xid(2, "kept", "psycopg2"))
        insert(22)
        conn.tpc_prepare()
    with closing(connect()) as conn:
        pending = conn.tpc_recover()
        step("left prepared", [(xid.format_id, xid.gtrid, xid.bqual) for xid in pending])
        for xid in pending:
            conn.tpc_commit(xid)
        step("two phases", attempt(conn, "SELECT n FROM transactions WHERE n >= 20 ORDER BY n"))


@section
def copy(step):
    with closing(connect()) as conn:
        cur = conn.cursor()
        cur.execute("CREATE TABLE copy (n int, v text)")
        cur.copy_from(io.StringIO("".join(f"{n}\tv{n}\n" for n in range(2000))), "copy")
        step("copy_from", [cur.rowcount, one(conn, "SELECT count(*) FROM copy")])
        out = io.StringIO()
        cur.copy_to(out, "copy", columns=["v", "n"])
        step("copy_to", [out.getvalue(), cur.rowcount])
        out = io.BytesIO()
        cur.copy_expert("COPY (SELECT * FROM copy ORDER BY n) TO STDOUT (FORMAT binary)", out)
        step("binary out", out.getvalue())
        out.seek(0)
        cur.copy_expert("COPY copy FROM STDIN (FORMAT binary)", out)
        step("binary in", one(conn, "SELECT count(*) FROM copy"))
        cur.copy_expert("COPY copy (v) FROM STDIN", io.StringIO(("x" * (MEGABYTES_5 // 10) + "\n") * 10))
        out = io.StringIO()
        cur.copy_expert("COPY copy TO STDOUT", out)
        step("large", out.getvalue())
        step("bad data", outcome(lambda: cur.copy_from(io.StringIO("1\ta\nx\tb\n"), "copy")))
        step("no table", outcome(lambda: cur.copy_to(io.StringIO(), "no_such_table")))
        def broken():
            yield "1\ta\n"
            raise ValueError("given up")
        class Source:
            lines = broken()
            def read(self, _size):
                return next(self.lines)
        step("given up", outcome(lambda: cur.copy_from(Source(), "copy")))
        step("afterwards", [attempt(conn, "SELECT count(*) FROM copy"), status(conn)])


@section
def cursors(step):
    with closing(connect(autocommit=False)) as conn:
        execute(conn, "CREATE TABLE cursors AS SELECT generate_series(1, 1000) AS n")
        conn.commit()
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
            step("scrolled", [first, middle, cur.fetchone()])
        conn.commit()
        held = conn.cursor("held", withhold=True)
        held.execute("SELECT n FROM cursors ORDER BY n")
        pages = [held.fetchmany(100)]
        conn.commit()
        with conn:
            execute(conn, "INSERT INTO cursors VALUES (0)")
        step("held", [*pages, held.fetchmany(100), one(conn, "SELECT count(*) FROM cursors")])
        held.close()
        conn.commit()
        step("gone", attempt(conn, "FETCH 1 FROM held"))


@section
def large_objects(step):
    """libpq's calls are FunctionCall messages."""
    with closing(connect(autocommit=False)) as conn:
        lob = conn.lobject(0, "wb")
        oid, data = lob.oid, bytes(range(256)) * 1000
        step("written", [lob.write(data), lob.tell(), lob.mode])
        lob.close()
        conn.commit()
        for _ in range(5):
            lob = conn.lobject(oid, "rb")
            lob.seek(1000)
            step("read", [lob.read(300), lob.read()])
            lob.close()
            conn.commit()
        lob = conn.lobject(oid, "rw")
        lob.truncate(10)
        lob.seek(0, 2)
        lob.write(b"end")
        lob.seek(0)
        step("changed", [lob.tell(), lob.read()])
        conn.rollback()
        lob = conn.lobject(oid, "rb")
        step("rolled back", len(lob.read()))
        lob.unlink()
        conn.commit()
        gone = outcome(lambda: conn.lobject(oid, "rb").read())
        step("gone", {name: text.replace(str(oid), "OID") for name, text in gone.items() if text})
        conn.rollback()
        step("usable", attempt(conn, "SELECT count(*) FROM pg_largeobject_metadata"))


@section
def cancel(step):
    with closing(connect()) as conn:
        execute(conn, "CREATE TABLE cancel (n int)")
        step("read", cancelled(conn, "SELECT pg_sleep(600)"))
        step("write", cancelled(conn, "INSERT INTO cancel SELECT 1 FROM pg_sleep(600)"))
        execute(conn, "BEGIN")
        step("in a transaction", cancelled(conn, "SELECT pg_sleep(600)"))
        step("failed", [status(conn), attempt(conn, "SELECT 1"), attempt(conn, "ROLLBACK")])
        conn.cancel()
        step("with nothing to cancel", attempt(conn, "SELECT count(*) FROM cancel"))


def cancelled(conn, query):
    """Runs a query that nothing but a cancel request ends. It is sent until it has reached it."""
    done = threading.Event()

    def send():
        while not done.wait(0.2):
            conn.cancel()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return attempt(conn, query)
    finally:
        done.set()
        sender.join()


def wait(conn):
    """Drives an asynchronous connection."""
    while True:
        state = conn.poll()
        if state == extensions.POLL_OK:
            return
        readers = [conn] if state == extensions.POLL_READ else []
        writers = [conn] if state == extensions.POLL_WRITE else []
        if not any(select.select(readers, writers, [], POLL_SECONDS)):
            raise TimeoutError("the server says nothing")


@section
def asynchronous(step):
    conn = psycopg2.connect(connect_timeout=30, async_=True)
    wait(conn)
    cur = conn.cursor()
    def run(query, params=None):
        cur.execute(query, params)
        wait(conn)
        return answer(cur)
    step("write", run("CREATE TABLE asynchronous (n int)"))
    for n in range(20):
        run("INSERT INTO asynchronous VALUES (%s)", [n])
        step("read", run("SELECT count(*) FROM asynchronous"))
    step("reads", [run("SELECT count(*) + %s FROM asynchronous", [n])[2] for n in range(50)])
    step("error", outcome(lambda: run("SELECT 1/0")))
    step("usable", run("SELECT 1"))
    conn.close()
    # The same loop below calls that look synchronous.
    extensions.set_wait_callback(wait)
    try:
        with closing(connect()) as conn:
            step("green", [attempt(conn, "SELECT count(*) FROM asynchronous") for _ in range(10)])
            step("green: error", attempt(conn, "SELECT nothing"))
    finally:
        extensions.set_wait_callback(None)


@section
def notices(step):
    with closing(connect()) as conn:
        execute(conn, "DO $$ BEGIN RAISE NOTICE 'one' USING DETAIL = 'd', HINT = 'h'; RAISE WARNING 'two'; END $$")
        execute(conn, "DROP TABLE IF EXISTS never_was")
        execute(conn, "COMMIT")
        step("heard", list(conn.notices))
        execute(conn, "LISTEN tide")
        execute(conn, "NOTIFY tide, 'own'")
        with closing(connect()) as other:
            execute(other, "SELECT pg_notify('tide', 'other')")
            execute(other, "NOTIFY elsewhere")
        while len(conn.notifies) < 2:
            if not select.select([conn], [], [], POLL_SECONDS)[0]:
                raise TimeoutError("no notification")
            conn.poll()
        step("notified", [(n.channel, n.payload) for n in conn.notifies])
        step("reads while listening", [one(conn, "SELECT %s", [n]) for n in range(5)])
        execute(conn, "UNLISTEN *")
        step("no channels", attempt(conn, "SELECT pg_listening_channels()"))


@section
def settings(step):
    with closing(connect()) as conn:
        execute(conn, "CREATE SCHEMA tide")
        execute(conn, "CREATE TABLE tide.place AS SELECT 'tide' AS name")
        execute(conn, "CREATE TABLE public.place AS SELECT 'public' AS name")
        read = lambda query, times=10: [one(conn, query) for _ in range(times)]
        execute(conn, "SET search_path TO tide, public")
        step("search_path", read("SELECT name FROM place", 30))
        execute(conn, "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German, DMY'")
        step("several", read("SELECT '2024-01-01 00:00+00'::timestamptz::text"))
        step("reported", [conn.get_parameter_status(n) for n in ("TimeZone", "DateStyle")])
        conn.set_client_encoding("LATIN1")
        step("encoding", [conn.encoding, attempt(conn, "SELECT %s, 'ü'", ["é"]), attempt(conn, "SELECT U&'\\2603'")])
        conn.set_client_encoding("UTF8")
        conn.autocommit = False
        execute(conn, "SET search_path TO public")
        step("inside", read("SELECT name FROM place", 2))
        conn.rollback()
        step("rolled back", read("SELECT name FROM place", 2))
        execute(conn, "SET LOCAL TimeZone TO 'UTC'")
        step("local", [read("SHOW TimeZone", 2), conn.get_parameter_status("TimeZone")])
        conn.commit()
        step("no longer local", [read("SHOW TimeZone", 2), conn.get_parameter_status("TimeZone")])
        conn.reset()
        conn.autocommit = True
        step("reset", [attempt(conn, f"SHOW {name}") for name in ("search_path", "TimeZone", "DateStyle")])


@section
def own_writes(step):
    with closing(connect()) as conn:
        execute(conn, "CREATE TABLE own_writes (n int)")
        seen = []
        for n in range(50):
            execute(conn, "INSERT INTO own_writes VALUES (%s)", [n])
            seen.append(attempt(conn, "SELECT count(*), max(n) FROM own_writes")[2])
        step("in turns", seen)
        step("many reads", [one(conn, "SELECT count(*) + %s FROM own_writes", [n]) for n in range(600)])
        conn.autocommit = False
        execute(conn, "UPDATE own_writes SET n = n + 1000")
        conn.commit()
        conn.autocommit = True
        step("after a transaction", attempt(conn, "SELECT min(n), max(n) FROM own_writes"))
        step("write and read in one text", attempt(conn, "INSERT INTO own_writes VALUES (1); SELECT count(*) FROM own_writes"))
        step("in a CTE", attempt(conn, "WITH d AS (DELETE FROM own_writes WHERE n < 1030 RETURNING 1) SELECT count(*) FROM d"))
        step("deleted", attempt(conn, "SELECT count(*) FROM own_writes"))


@section
def errors(step):
    with closing(connect()) as conn:
        execute(conn, "CREATE TABLE errors (n int PRIMARY KEY, v varchar(3) NOT NULL, CHECK (n < 100))")
        execute(conn, "INSERT INTO errors VALUES (1, 'a')")
        for query in [
            "SELECT 1/0",
            "INSERT INTO errors VALUES (1, 'b')",
            "INSERT INTO errors VALUES (2, NULL)",
            "INSERT INTO errors VALUES (200, 'c')",
            "SELEC 1",
            "SELECT ☃☃, FROM errors WHERE (",
            "SELECT * FROM no_such_table",
            "SELECT no_such_column FROM errors",
            "SELECT 'x'::int",
            "SELECT * FROM pg_authid",
            "SELECT 1; SELECT 1/0; SELECT 2",
            "DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'TG001', DETAIL = 'd', HINT = 'h'; END $$",
        ]:
            step(query, attempt(conn, query))
        name = sql.Identifier('strange "name"')
        step("quoted", attempt(conn, sql.SQL("SELECT {} FROM errors").format(name)))
        step("usable", [attempt(conn, "SELECT count(*) FROM errors"), conn.closed])


def main():
    with closing(connect()) as conn:
        execute(conn, "DROP SCHEMA IF EXISTS public, tide CASCADE")
        execute(conn, "CREATE SCHEMA public")
    for run in SECTIONS:
        name = run.__name__
        try:
            run(lambda step, value: record(f"{name}/{step}", value))
        except Exception as error:
            failed(name, error)
    record("END", len(SECTIONS))


main()
