"""asyncpg, which speaks the protocol itself, in binary: prints what it sees of PGHOST and PGPORT.

Owns: the steps. Never: decides whether they are right; the transcript of a direct connection does.
"""

import asyncio
import io
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import asyncpg

from transcript import failed, record

SECTIONS = []
MEGABYTES_5 = 5 * 1024 * 1024


def section(run):
    SECTIONS.append(run)
    return run


class connect:
    """A connection that ends with its block; what is left to end it with is a matter of the step."""

    def __init__(self, **options):
        self.options = {"timeout": 30, **options}

    async def __aenter__(self):
        self.conn = await asyncpg.connect(**self.options)
        return self.conn

    async def __aexit__(self, *_):
        await self.conn.close(timeout=30)


def fields(error):
    values = {"class": type(error).__name__, **error.as_dict()}
    return {name: value for name, value in values.items() if value is not None}


async def outcome(call):
    """What a call returns, or the error it raises, in full."""
    try:
        return rows(await call)
    except asyncpg.PostgresError as error:
        return fields(error)
    except asyncpg.InterfaceError as error:
        return [type(error).__name__, str(error)]


def rows(value):
    """Records as pairs of names and values, whatever they are in."""
    if isinstance(value, asyncpg.Record):
        return [[name, rows(item)] for name, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [rows(item) for item in value]
    return value


@section
async def connecting(step):
    names = ["server_version", "server_encoding", "client_encoding", "application_name", "TimeZone", "DateStyle"]
    names += ["is_superuser", "in_hot_standby", "session_authorization", "standard_conforming_strings"]
    async with connect() as conn:
        step("no name", conn.get_settings().application_name)
    settings = {"application_name": "check", "search_path": "tide, public", "work_mem": "5MB", "TimeZone": "Asia/Tokyo"}
    async with connect(server_settings=settings) as conn:
        step("parameters", {name: getattr(conn.get_settings(), name) for name in names})
        step("version", conn.get_server_version())
        for name in settings:
            step(f"settings: {name}", await conn.fetchval("SELECT current_setting($1)", name))
        await conn.execute("SET work_mem = '7MB'")
        step("changed", await conn.fetchval("SHOW work_mem"))
        await conn.reset()
        step("reset", [await conn.fetchval(f"SHOW {name}") for name in settings])
    for name, options in {
        "wrong password": {"password": "wrong"},
        "unknown user": {"user": "nobody"},
        "unknown database": {"database": "nowhere"},
        "unknown setting": {"server_settings": {"no_such_setting": "1"}},
        "bad setting": {"server_settings": {"work_mem": "lots"}},
    }.items():
        try:
            async with connect(**options):
                step(name, "connected")
        except asyncpg.PostgresError as error:
            step(name, [type(error).__name__, error.sqlstate, error.message, error.severity])


TYPES = [
    ("int2", -32768),
    ("int4", 2147483647),
    ("int8", -(2**63)),
    ("float8", 0.1),
    ("bool", True),
    ("text", "snow ☃, quote ', back\\slash, new\nline"),
    ("text", ""),
    ("bytea", bytes(range(256))),
    ("json", '{"a": [1, null, "x"]}'),
    ("jsonb", '{"b": {"c": 1.5}, "a": "ü"}'),
    ("int4[]", [1, None, 3]),
    ("int4[]", [[1, 2], [3, 4]]),
    ("text[]", ['a"b', "c,d", "{e}", None, ""]),
    ("numeric", Decimal("12345678901234567890.0123456789")),
    ("timestamptz", datetime(2024, 2, 29, 12, 30, 15, 123456, timezone.utc)),
    ("timestamp", datetime(1999, 12, 31, 23, 59, 59)),
    ("date", date(2000, 1, 1)),
    ("time", time(1, 2, 3, 4)),
    ("interval", timedelta(days=40, seconds=5, microseconds=6)),
    ("uuid", UUID(int=2**127 + 5)),
    ("point", asyncpg.Point(1.5, -2)),
    ("int4range", asyncpg.Range(1, 10)),
    ("int4", None),
]


@section
async def types(step):
    async with connect() as conn:
        for kind, value in TYPES:
            step(kind, await outcome(conn.fetch(f"SELECT $1::{kind} AS v", value)))
        await conn.execute("CREATE TABLE types (n serial PRIMARY KEY, t text, b bytea, j jsonb, a int[], d timestamptz)")
        for row in [["text", b"\x00\xff", "[1]", [1, 2], datetime(2024, 1, 1, tzinfo=timezone.utc)], [None] * 5]:
            insert = "INSERT INTO types (t, b, j, a, d) VALUES ($1, $2, $3, $4, $5) RETURNING n"
            step("stored", await outcome(conn.fetch(insert, *row)))
        step("read", await outcome(conn.fetch("SELECT * FROM types ORDER BY n")))
        # Types of our own, which the driver asks the catalogue about.
        await conn.execute("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE spot AS (x int, m mood)")
        step("own types", await outcome(conn.fetch("SELECT $1::mood AS m, ROW(1, 'sad')::spot AS s, ARRAY['ok']::mood[] AS a", "ok")))
        await conn.execute("CREATE TABLE moods (m mood[], s spot)")
        step("own types stored", await outcome(conn.fetch("INSERT INTO moods VALUES ($1, $2) RETURNING *", ["ok"], (3, "sad"))))
        step("own types read", await outcome(conn.fetch("SELECT * FROM moods")))
        await conn.set_type_codec("jsonb", encoder=str, decoder=lambda text: f"<{text}>", schema="pg_catalog")
        step("codec", await outcome(conn.fetchval("SELECT j FROM types WHERE j IS NOT NULL")))
        step("not encodable", type(await failure(conn.fetch("SELECT $1::int", "x"))).__name__)


async def failure(call):
    try:
        await call
    except Exception as error:
        return error


@section
async def large(step):
    text, data = "tide " * (MEGABYTES_5 // 5), bytes(range(256)) * (MEGABYTES_5 // 256)
    async with connect() as conn:
        step("parameters", await outcome(conn.fetchrow("SELECT $1::text AS t, $2::bytea AS b", text, data)))
        await conn.execute("CREATE TABLE large (t text, b bytea)")
        step("stored", await outcome(conn.execute("INSERT INTO large VALUES ($1, $2)", text, data)))
        step("read", await outcome(conn.fetch("SELECT * FROM large")))
        step("in the statement", await outcome(conn.fetchval(f"SELECT length('{text}')")))
        step("rows", await outcome(conn.fetch("SELECT i, md5(i::text) FROM generate_series(1, 100000) AS i")))


@section
async def prepare(step):
    async with connect() as conn:
        await conn.execute("CREATE TABLE prepare (n int PRIMARY KEY, v text)")
        insert = await conn.prepare("INSERT INTO prepare VALUES ($1, $2) RETURNING n")
        step("insert", [await insert.fetchval(n, f"v{n}") for n in range(30)])
        read = await conn.prepare("SELECT v, $1::int AS n FROM prepare WHERE n = $1")
        step("described", [str([a.name, a.type.name]) for a in read.get_attributes()] + [p.name for p in read.get_parameters()])
        step("read", [await read.fetchval(n % 30) for n in range(100)])
        step("interleaved", [[await insert.fetchval(100 + n, "x"), await read.fetchval(100 + n)] for n in range(20)])
        step("status", [await outcome(insert.fetch(0, "again")), read.get_statusmsg(), insert.get_statusmsg()])
        step("cached", [await conn.fetchval("SELECT $1::int + 1", n) for n in range(50)])
        step("many", [await conn.fetchval(f"SELECT {n} + $1::int", n) for n in range(150)])
        step("explain", len(await read.explain(1)) > 0)
        named = await conn.prepare("SELECT $1::text", name="by_hand")
        step("named", [named.get_name(), await named.fetchval("a"), await named.fetchval("b")])
        step("name taken", await outcome(conn.prepare("SELECT 1", name="by_hand")))
        step("names", await outcome(conn.fetch("SELECT name, statement FROM pg_prepared_statements WHERE name = 'by_hand'")))
        await conn.execute("DEALLOCATE by_hand")
        step("deallocated", await outcome(named.fetchval("c")))
        await conn.execute("CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)")
        step("before", [await outcome(conn.fetch("SELECT * FROM changing")) for _ in range(20)])
        await conn.execute("ALTER TABLE changing ADD b text DEFAULT 'b'")
        # The driver prepares it anew, and once more at the most.
        step("after", await outcome(conn.fetch("SELECT * FROM changing")))
        step("syntax", await outcome(conn.prepare("SELECT FROM WHERE")))
        step("usable", await outcome(conn.fetch("SELECT count(*) FROM prepare")))
    for size in [0, 3]:
        async with connect(statement_cache_size=size) as conn:
            step(f"cache of {size}", [await conn.fetchval(f"SELECT {n % 5} + $1::int", n) for n in range(40)])
            step(f"cache of {size}: own", await outcome(conn.fetch("SELECT 'ok'::mood")))
    pool = await asyncpg.create_pool(min_size=2, max_size=4, timeout=30)
    async with pool:
        async def use(n):
            async with pool.acquire() as conn:
                return await conn.fetchval("SELECT $1::int * 2", n)
        step("pool", await asyncio.gather(*[use(n) for n in range(60)]))


@section
async def pipeline(step):
    async with connect() as conn:
        await conn.execute("CREATE TABLE pipeline (n int PRIMARY KEY, v text)")
        insert = "INSERT INTO pipeline VALUES ($1, $2)"
        step("executemany", await outcome(conn.executemany(insert, [(n, f"v{n}") for n in range(5000)])))
        step("count", await outcome(conn.fetchval("SELECT count(*) FROM pipeline")))
        step("fails", await outcome(conn.executemany(insert, [(n, "x") for n in (6000, 6001, 1, 6002)])))
        step("nothing of it stays", await outcome(conn.fetchval("SELECT count(*) FROM pipeline")))
        step("large", await outcome(conn.executemany(insert, [(n, "x" * 500_000) for n in range(7000, 7020)])))
        step("fetchmany", await outcome(conn.fetchmany("SELECT v FROM pipeline WHERE n = $1", [(n,) for n in range(100)])))
        returning = "INSERT INTO pipeline VALUES ($1, 'r') RETURNING n"
        step("fetchmany of writes", await outcome(conn.fetchmany(returning, [(n,) for n in range(8000, 8050)])))
        step("count again", await outcome(conn.fetchval("SELECT sum(length(v)) FROM pipeline")))


@section
async def transactions(step):
    async with connect() as conn:
        count = lambda: conn.fetchval("SELECT count(*) FROM transactions")
        insert = lambda n: conn.execute("INSERT INTO transactions VALUES ($1)", n)
        await conn.execute("CREATE TABLE transactions (n int PRIMARY KEY)")
        async with conn.transaction():
            await insert(1)
            step("inside", [await count(), conn.is_in_transaction()])
        step("committed", [await count(), conn.is_in_transaction()])
        undone = conn.transaction()
        await undone.start()
        await insert(2)
        await undone.rollback()
        step("rolled back", await count())
        async with conn.transaction():
            await insert(3)
            try:
                async with conn.transaction():
                    await insert(4)
                    await insert(1)
            except asyncpg.UniqueViolationError as error:
                step("savepoint's error", fields(error))
            step("after the savepoint", await count())
        step("kept", await outcome(conn.fetch("SELECT n FROM transactions ORDER BY n")))
        failed = conn.transaction()
        await failed.start()
        step("error", await outcome(conn.fetch("SELECT * FROM no_such_table")))
        step("failed", await outcome(conn.fetch("SELECT 1")))
        await failed.rollback()
        for options in [{"isolation": "serializable"}, {"isolation": "repeatable_read"}, {"readonly": True}]:
            tried = conn.transaction(**options)
            await tried.start()
            step(f"{options}", [await conn.fetchval("SHOW transaction_isolation"), await conn.fetchval("SHOW transaction_read_only")])
            step(f"{options}: read", await outcome(count()))
            step(f"{options}: write", await outcome(insert(9)))
            await tried.rollback()
        step("in one text", await outcome(conn.execute("BEGIN; INSERT INTO transactions VALUES (10); COMMIT; SELECT 1")))
        step("implicit", await outcome(conn.execute("INSERT INTO transactions VALUES (11); SELECT 1/0")))
        step("afterwards", await outcome(conn.fetch("SELECT n FROM transactions ORDER BY n")))


@section
async def copy(step):
    records = [(n, f"row\t{n}\\" if n % 3 else None) for n in range(2000)]
    async with connect() as conn:
        await conn.execute("CREATE TABLE copy (n int, v text)")
        step("in", await outcome(conn.copy_records_to_table("copy", records=records)))
        step("count", await outcome(conn.fetchval("SELECT count(*) FROM copy")))
        for form in ["text", "csv", "binary"]:
            out = io.BytesIO()
            tag = await outcome(conn.copy_from_query("SELECT * FROM copy WHERE n >= $1 ORDER BY n", 5, output=out, format=form))
            step(f"out, {form}", [tag, out.getvalue()])
        out.seek(0)
        step("in, binary", await outcome(conn.copy_to_table("copy", source=out, format="binary")))
        many = [(n, "x" * 500_000) for n in range(3000, 3010)]
        step("in, large", await outcome(conn.copy_records_to_table("copy", records=many)))
        out = io.BytesIO()
        step("out, large", await outcome(conn.copy_from_table("copy", output=out)))
        step("out, large: data", out.getvalue())
        step("bad data", await outcome(conn.copy_to_table("copy", source=io.BytesIO(b"1\ta\nx\tb\n"))))
        step("no table", await outcome(conn.copy_to_table("no_such_table", source=io.BytesIO(b"1\n"))))

        async def giving_up():
            yield b"77\tgiven up\n"
            raise ValueError("given up")

        step("given up", str(await failure(conn.copy_to_table("copy", source=giving_up()))))
        step("out, error", await outcome(conn.copy_from_query("SELECT 1 / (3 - n) FROM copy WHERE n < 9 ORDER BY n", output=io.BytesIO())))
        step("afterwards", await outcome(conn.fetchrow("SELECT count(*), count(v) FROM copy")))


@section
async def cursors(step):
    async with connect() as conn:
        await conn.execute("CREATE TABLE cursors AS SELECT generate_series(1, 1000) AS n")
        for read_only in [False, True]:
            async with conn.transaction(readonly=read_only):
                query = "SELECT n FROM cursors WHERE n > $1 ORDER BY n"
                step("iterated", [row["n"] async for row in conn.cursor(query, 5, prefetch=70)])
                one = await conn.cursor(query, 0)
                two = await conn.cursor(query, 500)
                pages = [await one.fetch(10), await two.fetchrow(), await one.forward(100), await one.fetch(3), await two.fetch(9999)]
                step("by hand", rows(pages))
        step("outside", await outcome(conn.fetch("FETCH 1 FROM nothing")))
        # The driver prepares it anew, and once more at the most.
        step("after", await outcome(conn.fetchval("SELECT count(*) FROM cursors")))


@section
async def cancel(step):
    async with connect() as conn:
        await conn.execute("CREATE TABLE cancel (n int)")
        # The driver waits until what it has cancelled has ended: without a cancel, ten minutes.
        for query in ["SELECT pg_sleep(600)", "INSERT INTO cancel SELECT 1 FROM pg_sleep(600)"]:
            step(query, type(await failure(conn.execute(query, timeout=0.5))).__name__)
            step("usable", await outcome(conn.fetchval("SELECT count(*) FROM cancel")))
            task = asyncio.ensure_future(conn.fetch(query))
            await asyncio.sleep(0.5)
            task.cancel()
            step(f"{query}: task", type((await asyncio.gather(task, return_exceptions=True))[0]).__name__)
            step("usable again", await outcome(conn.fetchval("SELECT count(*) FROM cancel")))
        tried = conn.transaction()
        await tried.start()
        step("in a transaction", type(await failure(conn.fetch("SELECT pg_sleep(600)", timeout=0.5))).__name__)
        step("failed", await outcome(conn.fetch("SELECT 1")))
        await tried.rollback()
        step("rolled back", await outcome(conn.fetch("SELECT 1 AS one")))
        await conn.execute("SET statement_timeout = '50ms'")
        step("by timeout", await outcome(conn.fetch("SELECT pg_sleep(600)")))


@section
async def notices(step):
    async with connect() as conn:
        heard = []
        conn.add_log_listener(lambda _, message: heard.append(fields(message)))
        await conn.execute("DO $$ BEGIN RAISE NOTICE 'one' USING DETAIL = 'd', HINT = 'h'; RAISE WARNING 'two'; END $$")
        await conn.execute("DROP TABLE IF EXISTS never_was")
        await asyncio.sleep(0)
        step("heard", heard)
        notified = asyncio.Queue()
        listener = lambda _conn, _pid, channel, payload: notified.put_nowait([channel, payload])
        await conn.add_listener("tide", listener)
        await conn.execute("NOTIFY tide, 'own'")
        async with connect() as other:
            await other.fetchval("SELECT pg_notify('tide', $1)", "other")
        step("notified", [await asyncio.wait_for(notified.get(), 30) for _ in range(2)])
        step("read while listening", [await conn.fetchval("SELECT $1::int", n) for n in range(5)])
        await conn.remove_listener("tide", listener)
        step("channels", await outcome(conn.fetch("SELECT pg_listening_channels()")))


@section
async def settings(step):
    async with connect() as conn:
        await conn.execute("CREATE SCHEMA tide; CREATE TABLE tide.place AS SELECT 'tide' AS name")
        await conn.execute("CREATE TABLE public.place AS SELECT 'public' AS name")
        read = lambda: conn.fetchval("SELECT name FROM place")
        await conn.execute("SET search_path TO tide, public")
        step("search_path", [await read() for _ in range(30)])
        await conn.execute("SET TimeZone = 'Asia/Tokyo'")
        step("TimeZone", [await conn.fetchval("SELECT '2024-01-01 00:00+00'::timestamptz::text") for _ in range(10)])
        await conn.execute("SET application_name = 'renamed'")
        step("reported", [conn.get_settings().TimeZone, conn.get_settings().application_name])
        step("set_config", [await conn.fetchval("SELECT set_config('work_mem', $1, false)", "3MB"), await conn.fetchval("SHOW work_mem")])
        async with conn.transaction():
            await conn.execute("SET LOCAL search_path TO public")
            step("SET LOCAL", await read())
        step("after SET LOCAL", await read())
        undone = conn.transaction()
        await undone.start()
        await conn.execute("SET search_path TO public")
        await undone.rollback()
        step("rolled back", await read())
        await conn.reset()
        step("reset", [await conn.fetchval(f"SHOW {n}") for n in ("search_path", "TimeZone", "work_mem", "application_name")])
        step("public", await outcome(read()))


@section
async def own_writes(step):
    async with connect() as conn:
        await conn.execute("CREATE TABLE own_writes (n int)")
        seen = []
        for n in range(100):
            await conn.execute("INSERT INTO own_writes VALUES ($1)", n)
            seen.append(await conn.fetchval("SELECT count(*) FROM own_writes"))
        step("in order", seen)
        step("many reads", [await conn.fetchval("SELECT count(*) + $1 FROM own_writes", n) for n in range(100)])
        await conn.execute("CREATE TEMP TABLE scratch (n int)")
        seen = []
        for n in range(20):
            await conn.execute("INSERT INTO scratch VALUES ($1)", n)
            seen.append(await conn.fetchval("SELECT count(*) FROM scratch"))
        step("temporary", seen)


@section
async def errors(step):
    async with connect() as conn:
        await conn.execute("CREATE TABLE errors (n int PRIMARY KEY, v varchar(3) NOT NULL)")
        await conn.execute("INSERT INTO errors VALUES (1, 'a')")
        for query in [
            "SELECT 1/0",
            "INSERT INTO errors VALUES (1, 'b')",
            "INSERT INTO errors VALUES (2, NULL)",
            "INSERT INTO errors VALUES (3, 'abcd')",
            "SELEC 1",
            "SELECT ☃☃, FROM errors WHERE (",
            "SELECT * FROM no_such_table",
            "SELECT no_such_function(1)",
            "SELECT 'x'::int",
            "SELECT * FROM pg_authid",
        ]:
            step(query, await outcome(conn.execute(query)))
            step(f"{query} prepared", await outcome(conn.fetch(query)))
        step("usable", await outcome(conn.fetchval("SELECT count(*) FROM errors")))
        step("arguments", await outcome(conn.fetch("SELECT $1::int", 1, 2)))


async def main():
    async with connect() as conn:
        await conn.execute("DROP SCHEMA IF EXISTS public, tide CASCADE")
        await conn.execute("CREATE SCHEMA public")
    for run in SECTIONS:
        name = run.__name__
        try:
            await run(lambda step, value: record(f"{name}/{step}", value))
        except Exception as error:
            failed(name, error)
    record("END", len(SECTIONS))


asyncio.run(main())
