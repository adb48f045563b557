"""SQLAlchemy 2 over psycopg 3 and over asyncpg: prints what it sees of the server that PGHOST and
PGPORT name.

Owns: the steps, the same for both engines; asyncpg's run below SQLAlchemy's synchronous face.
Never: decides whether they are right; the transcript of a direct connection does.
"""

import asyncio
import re
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import ForeignKey, create_engine, event, func, inspect, select, text
from sqlalchemy.dialects.postgresql import ARRAY, INT4RANGE, JSONB, Range, insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
)
from sqlalchemy.util import greenlet_spawn

from transcript import failed, record

SECTIONS = []
MEGABYTE = 1024 * 1024


def section(run):
    SECTIONS.append(run)
    return run


def outcome(run):
    """What a call returns, or the error it raises, and what that made of the connection."""
    try:
        return run()
    except DBAPIError as error:
        said = re.sub(r"0x[0-9a-f]+", "0x", str(error.orig))
        return {
            "class": type(error).__name__,
            "sqlstate": getattr(error.orig, "sqlstate", None),
            "text": said,
            "invalidated": error.connection_invalidated,
        }
    except (SQLAlchemyError, NotImplementedError) as error:
        return {"class": type(error).__name__, "text": re.sub(r"0x[0-9a-f]+", "0x", str(error))}


def rows(result):
    return [list(row) for row in result] if result.returns_rows else result.rowcount


def attempt(conn, statement, params=None, **options):
    return outcome(lambda: rows(conn.execute(sql(statement), params, execution_options=options)))


def sql(statement):
    return text(statement) if isinstance(statement, str) else statement


class Mood(Enum):
    SAD = "sad"
    OK = "ok"


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    mood: Mapped[Mood]
    version: Mapped[int] = mapped_column()
    books: Mapped[list["Book"]] = relationship(back_populates="author", order_by="Book.id", cascade="all, delete-orphan")
    __mapper_args__ = {"version_id_col": version}


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    made: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=text("'2024-01-01 00:00+00'"))
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"), index=True)
    author: Mapped[Author] = relationship(back_populates="books")


THINGS = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
    sa.Column("price", sa.Numeric(20, 5)),
    sa.Column("tags", ARRAY(sa.Text)),
    sa.Column("data", JSONB),
    sa.Column("blob", sa.LargeBinary),
    sa.Column("uuid", sa.Uuid),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("day", sa.Date),
    sa.Column("took", sa.Interval),
    sa.Column("within", INT4RANGE),
    sa.Column("real", sa.Double),
    sa.Column("good", sa.Boolean),
    sa.Column("name", sa.String(20), unique=True),
)

COUNTED = sa.Table("counted", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True), sa.Column("v", sa.Text))


@section
def connecting(step, make):
    engine = make()
    with engine.connect() as conn:
        dialect = conn.dialect
        step("dialect", [dialect.server_version_info, dialect.default_schema_name, dialect.default_isolation_level])
        step("user", attempt(conn, "SELECT current_user, session_user, current_database()"))
        step("levels", sorted(dialect.get_isolation_level_values(conn.connection.dbapi_connection)))
    named = {"TimeZone": "Asia/Tokyo", "application_name": "check"}
    if engine.driver == "psycopg":
        named = {"options": "-c TimeZone=Asia/Tokyo", "application_name": "check"}
        engine = make(connect_args=named)
    else:
        engine = make(connect_args={"server_settings": named})
    with engine.connect() as conn:
        step("settings", [attempt(conn, f"SHOW {name}") for name in ("TimeZone", "application_name")])
    for name, options in {"password": {"password": "wrong"}, "database": {"database": "nowhere"}}.items():
        refused = outcome(lambda: make(**options).connect().close())
        refused["text"] = re.sub(r'connection to server at "[^"]*", port \d+', "connection", refused["text"])
        step(f"wrong {name}", refused)


@section
def core(step, make):
    engine = make()
    row = {
        "price": Decimal("12345678901234.56789"),
        "tags": ['a"b', "c,d", None, ""],
        "data": {"b": {"c": 1.5}, "a": "ü☃"},
        "blob": bytes(range(256)),
        "uuid": UUID(int=2**127 + 5),
        "at": datetime(2024, 2, 29, 12, 30, 15, 123456, timezone.utc),
        "day": date(2000, 1, 1),
        "took": timedelta(days=40, seconds=5, microseconds=6),
        "within": Range(1, 10),
        "real": 0.1,
        "good": True,
        "name": "first",
    }
    with engine.begin() as conn:
        THINGS.metadata.drop_all(conn)
        THINGS.metadata.create_all(conn)
        step("insert", rows(conn.execute(THINGS.insert().returning(*THINGS.c), row)))
        step("insert of nothing", conn.execute(THINGS.insert(), {}).inserted_primary_key)
    with engine.connect() as conn:
        step("select", attempt(conn, select(THINGS).order_by(THINGS.c.id)))
        conn.rollback()
        many = [{"name": f"n{n}", "price": n} for n in range(2500)]
        result = conn.execute(THINGS.insert().returning(THINGS.c.id, THINGS.c.name, sort_by_parameter_order=True), many)
        step("insertmanyvalues", rows(result))
        conn.commit()
        step("executemany", conn.execute(THINGS.update().where(THINGS.c.name == sa.bindparam("key")).values(real=2),
                                         [{"key": f"n{n}"} for n in range(50)]).rowcount)
        conn.commit()
        upsert = insert(THINGS).values(name="n1", price=-1)
        upsert = upsert.on_conflict_do_update(index_elements=["name"], set_={"price": upsert.excluded.price})
        step("upsert", rows(conn.execute(upsert.returning(THINGS.c.name, THINGS.c.price))))
        conn.commit()
        changed = THINGS.update().where(THINGS.c.price < 10).values(good=False).returning(THINGS.c.id)
        step("update", sorted(rows(conn.execute(changed))))
        gone = THINGS.delete().where(THINGS.c.price.between(2000, 3000)).returning(THINGS.c.id).cte("gone")
        step("delete in a CTE", rows(conn.execute(select(func.count()).select_from(gone))))
        conn.commit()
        windowed = select(THINGS.c.id, func.row_number().over(order_by=THINGS.c.id.desc())).order_by(THINGS.c.id).limit(5)
        step("window", attempt(conn, windowed))
        listed = sa.values(sa.column("a", sa.Integer), sa.column("b", sa.Text), name="v").data([(1, "x"), (2, "y")])
        step("values", attempt(conn, select(listed)))
        step("in a list", [attempt(conn, select(THINGS.c.name).where(THINGS.c.id.in_(range(1, n))).order_by(THINGS.c.id)) for n in range(5)])
        step("json", attempt(conn, select(THINGS.c.data["b"]["c"].as_float()).where(THINGS.c.data.has_key("a"))))
        step("for update", attempt(conn, select(THINGS.c.id).where(THINGS.c.id == 1).with_for_update(skip_locked=True)))
        conn.rollback()
        big = {"data": {"x": "tide " * MEGABYTE}, "blob": bytes(range(256)) * 4 * 1024, "name": "big"}
        step("large", rows(conn.execute(THINGS.insert().returning(THINGS.c.data, THINGS.c.blob), big)))
        conn.rollback()


@section
def reflection(step, make):
    engine = make()
    with engine.begin() as conn:
        Base.metadata.drop_all(conn)
        Base.metadata.create_all(conn)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        inspector = inspect(conn)
        step("tables", [sorted(inspector.get_table_names()), inspector.get_schema_names(), inspector.get_view_names()])
        for table in ["authors", "books"]:
            columns = [[c["name"], str(c["type"]), c["nullable"], c["default"]] for c in inspector.get_columns(table)]
            step(table, columns)
            step(f"{table}: keys", [inspector.get_pk_constraint(table), inspector.get_foreign_keys(table)])
            step(f"{table}: indexes", [inspector.get_indexes(table), inspector.get_unique_constraints(table)])
        step("enums", inspector.get_enums())
        reflected = sa.MetaData()
        reflected.reflect(conn)
        step("reflected", sorted(str(c) for table in reflected.tables.values() for c in table.columns))
        Base.metadata.create_all(conn)
        step("no such table", outcome(lambda: inspector.get_columns("nothing")))


@section
def orm(step, make):
    engine = make()
    with engine.begin() as conn:
        Base.metadata.drop_all(conn)
        Base.metadata.create_all(conn)
    with Session(engine) as session:
        for n in range(10):
            books = [Book(title=f"book {n}.{i}") for i in range(n % 4)]
            session.add(Author(name=f"author {n}", mood=Mood.OK, books=books))
        session.commit()
        listed = lambda: [[a.name, a.mood.name, a.version, [[b.title, b.made] for b in a.books]] for a in session.scalars(query)]
        for name, option in {"lazy": (), "selectin": (selectinload(Author.books),)}.items():
            query = select(Author).options(*option).order_by(Author.id)
            step(name, listed())
            session.expire_all()
        joined = session.scalars(select(Author).options(joinedload(Author.books)).order_by(Author.id)).unique()
        step("joined", [[a.name, len(a.books)] for a in joined])
        session.rollback()
        first = session.get(Author, 1)
        first.mood = Mood.SAD
        first.books.append(Book(title="added"))
        step("flushed by a query", session.scalar(select(func.count()).select_from(Book).where(Book.title == "added")))
        session.commit()
        step("refreshed", [first.mood.name, first.version, [b.title for b in first.books]])
        session.rollback()
        with session.begin():
            session.add(Author(id=100, name="kept", mood=Mood.OK))
            def nested():
                with session.begin_nested():
                    session.add(Author(name="author 1", mood=Mood.OK))
            step("savepoint fails", outcome(nested))
            with session.begin_nested() as savepoint:
                session.add(Author(id=101, name="undone", mood=Mood.OK))
                session.flush()
                savepoint.rollback()
        step("kept", [session.get(Author, n) is not None for n in (100, 101)])
        session.rollback()
        with Session(engine) as other:
            mine = session.get(Author, 2)
            with other.begin():
                other.get(Author, 2).name = "renamed elsewhere"
            mine.name = "renamed here"
            stale = outcome(session.commit)
            step("stale", stale["class"])
            session.rollback()
            step("after that", mine.name)
        locked = session.scalars(select(Author).where(Author.id < 4).with_for_update(of=Author).order_by(Author.id))
        step("locked", [a.name for a in locked])
        session.rollback()
        session.delete(session.get(Author, 3))
        session.commit()
        step("deleted", session.scalar(select(func.count()).select_from(Book)))
        session.execute(sa.insert(Book), [{"title": f"bulk {n}", "author_id": 1} for n in range(300)])
        session.execute(sa.update(Book).where(Book.title.like("bulk 1%")).values(title="changed"))
        session.commit()
        step("bulk", [list(r) for r in session.execute(select(Book.title, func.count()).group_by(Book.title).order_by(Book.title))])
        session.rollback()
        paged = session.scalars(select(Book).order_by(Book.id).execution_options(yield_per=50))
        step("yield_per", [[b.id for b in page] for page in paged.partitions()])


@section
def prepare(step, make):
    """Both drivers prepare behind SQLAlchemy's back, each in its own way."""
    engine = make(pool_size=1, max_overflow=0).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        COUNTED.drop(conn, checkfirst=True)
        COUNTED.create(conn)
        get = select(COUNTED.c.v).where(COUNTED.c.n == sa.bindparam("key"))
        put = COUNTED.insert().returning(COUNTED.c.n)
        step("by turns", [[rows(conn.execute(put, {"n": n, "v": f"v{n}"})), attempt(conn, get, {"key": n})] for n in range(20)])
        step("many reads", [attempt(conn, get, {"key": n}) for n in range(60)])
        step("errors", [attempt(conn, "SELECT 1 / CAST(:n AS int)", {"n": n % 2}) for n in range(12)])
        step("fails to prepare", [attempt(conn, "SELECT nothing + :n", {"n": 1}) for _ in range(2)])
        whole = text("SELECT * FROM counted ORDER BY n LIMIT 2")
        step("before", [attempt(conn, whole) for _ in range(7)])
        conn.execute(text("ALTER TABLE counted ADD w text DEFAULT 'w'"))
        step("after", [attempt(conn, whole) for _ in range(3)])
    with engine.connect() as conn:
        step("another column", attempt(conn, "SELECT w FROM counted WHERE n < :n ORDER BY n", {"n": 3}))


@section
def transactions(step, make):
    engine = make()
    with engine.begin() as conn:
        COUNTED.drop(conn, checkfirst=True)
        COUNTED.create(conn)
    count = select(func.count()).select_from(COUNTED)
    put = lambda conn, n: conn.execute(COUNTED.insert(), {"n": n})
    shown = ["SHOW transaction_isolation", "SHOW transaction_read_only", "SHOW transaction_deferrable"]
    with engine.connect() as conn:
        put(conn, 1)
        step("inside", conn.scalar(count))
        conn.rollback()
        step("rolled back", conn.scalar(count))
        conn.rollback()
        with conn.begin():
            put(conn, 2)
            with conn.begin_nested():
                put(conn, 3)
            nested = conn.begin_nested()
            put(conn, 4)
            step("savepoint fails", attempt(conn, COUNTED.insert(), {"n": 2}))
            nested.rollback()
            step("after it", attempt(conn, select(COUNTED.c.n).order_by(COUNTED.c.n)))
        step("committed", conn.scalar(count))
        step("failed", [attempt(conn, "SELECT nothing"), attempt(conn, "SELECT 1")])
        conn.rollback()
        step("usable", conn.scalar(count))
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "AUTOCOMMIT"]:
        for read_only in [False, True]:
            options = {"isolation_level": level, "postgresql_readonly": read_only, "postgresql_deferrable": read_only}
            with engine.connect().execution_options(**options) as conn:
                seen = [conn.get_isolation_level(), *[attempt(conn, s) for s in shown]]
                seen += [conn.scalar(count) for _ in range(3)]
                seen.append(attempt(conn, COUNTED.insert(), {"n": 50}))
                step(f"{level}{', read only' if read_only else ''}", seen)
    with engine.connect() as conn:
        # The pool has reset what the others had set.
        step("default again", [conn.get_isolation_level(), *[attempt(conn, s) for s in shown], conn.scalar(count)])
    chosen = make(isolation_level="REPEATABLE READ", pool_size=1)
    with chosen.connect() as conn:
        step("of the engine", [conn.get_isolation_level(), attempt(conn, shown[0]), conn.scalar(count)])
    serial = [engine.connect().execution_options(isolation_level="SERIALIZABLE") for _ in range(2)]
    for number, conn in enumerate(serial):
        conn.scalar(count)
        put(conn, 60 + number)
    serial[0].commit()
    step("serialization", outcome(serial[1].commit))
    for conn in serial:
        conn.close()


@section
def two_phases(step, make):
    engine = make()
    with engine.begin() as conn:
        COUNTED.drop(conn, checkfirst=True)
        COUNTED.create(conn)
    def run(name, end):
        with engine.connect() as conn:
            branch = conn.begin_twophase(f"sqlalchemy {name}")
            conn.execute(COUNTED.insert(), {"n": len(name)})
            branch.prepare()
            end(branch)
            return name
    step("commit", outcome(lambda: run("commit", lambda branch: branch.commit())))
    step("rollback", outcome(lambda: run("rollback", lambda branch: branch.rollback())))
    def left():
        with engine.connect() as conn:
            branch = conn.begin_twophase("sqlalchemy left")
            conn.execute(COUNTED.insert(), {"n": 20})
            branch.prepare()
            conn.invalidate()
        with engine.connect() as conn:
            pending = conn.recover_twophase()
            conn.rollback()
            conn.commit_prepared("sqlalchemy left", recover=True)
            return pending
    step("recovered", outcome(left))
    with engine.connect() as conn:
        step("rows", attempt(conn, select(COUNTED.c.n).order_by(COUNTED.c.n)))


@section
def pool(step, make):
    engine = make(pool_size=1, max_overflow=0, pool_pre_ping=True)
    opened = []
    event.listen(engine, "connect", lambda *_: opened.append(1))
    for n in range(30):
        with engine.connect() as conn:
            conn.execute(text("SELECT CAST(:n AS int)"), {"n": n})
    step("one connection", len(opened))
    with engine.connect() as conn:
        conn.execute(text("SET work_mem = '3MB'"))
        conn.execute(text("CREATE TEMP TABLE scratch (n int)"))
        conn.commit()
    with engine.connect() as conn:
        # The pool rolls back, no more.
        step("kept", [attempt(conn, "SHOW work_mem"), attempt(conn, "SELECT count(*) FROM scratch")])
        conn.rollback()
    with make().execution_options(isolation_level="AUTOCOMMIT").connect() as other:
        killed = text("SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity"
                      " WHERE application_name = 'doomed' AND pid <> pg_backend_pid()")
        name = {"application_name": "doomed"}
        arguments = name if engine.driver == "psycopg" else {"server_settings": name}
        doomed = make(pool_size=1, max_overflow=0, pool_pre_ping=True, connect_args=arguments)
        with doomed.connect() as conn:
            conn.execute(text("CREATE TABLE IF NOT EXISTS doomed (n int)"))
            conn.commit()
            # It keeps its server while it is in a transaction, and tells of the end.
            conn.execute(text("INSERT INTO doomed VALUES (1)"))
            step("killed", other.scalar(killed))
            lost = outcome(lambda: rows(conn.execute(text("INSERT INTO doomed VALUES (2)"))))
            # asyncpg finds out by chance in one way or another.
            step("lost", lost["sqlstate"] if engine.driver == "psycopg" else "class" in lost)
            step("lost: connection", lost["invalidated"])
        with doomed.connect() as conn:
            step("pinged", attempt(conn, "SELECT count(*) FROM doomed"))


@section
def streaming(step, make):
    engine = make()
    with engine.begin() as conn:
        COUNTED.drop(conn, checkfirst=True)
        COUNTED.create(conn)
        conn.execute(text("INSERT INTO counted SELECT n, 'v' || n FROM generate_series(1, 1000) AS n"))
    query = select(COUNTED).order_by(COUNTED.c.n)
    for name, options in {"in a transaction": {}, "AUTOCOMMIT": {"isolation_level": "AUTOCOMMIT"}}.items():
        with engine.connect().execution_options(**options) as conn:
            def streamed(size):
                result = conn.execution_options(stream_results=True, max_row_buffer=size).execute(query)
                return [row.n for row in result]
            step(f"{name}: all", outcome(lambda: streamed(100)))
        with engine.connect().execution_options(**options) as conn:
            def paged():
                result = conn.execution_options(yield_per=70).execute(query)
                pages = [[row.n for row in next(result.partitions())]]
                conn.execute(text("SELECT 1"))
                pages += [[row.n for row in page] for page in result.partitions(200)]
                return pages
            step(f"{name}: pages, and others in between", outcome(paged))
        with engine.connect().execution_options(**options) as conn:
            def left_early():
                result = conn.execution_options(stream_results=True).execute(query)
                first = list(result.fetchone())
                result.close()
                return [first, attempt(conn, "SELECT 1")]
            step(f"{name}: left early", outcome(left_early))


@section
def settings(step, make):
    engine = make(pool_size=1, max_overflow=0)
    @event.listens_for(engine, "connect", insert=True)
    def prepare_connection(connection, _):
        before, connection.autocommit = connection.autocommit, True
        cursor = connection.cursor()
        cursor.execute("SET SESSION search_path = 'tide'")
        cursor.execute("SET TimeZone = 'Asia/Tokyo'")
        cursor.close()
        connection.autocommit = before
    with make().begin() as conn:
        conn.execute(text("DROP SCHEMA IF EXISTS tide CASCADE"))
        conn.execute(text("CREATE SCHEMA tide"))
        conn.execute(text("CREATE TABLE tide.place AS SELECT 'tide' AS name"))
    auto = engine.execution_options(isolation_level="AUTOCOMMIT")
    with auto.connect() as conn:
        step("on connect", [attempt(conn, "SELECT name, now()::timestamptz::text LIKE '%+09' FROM place") for _ in range(30)])
        conn.execute(text("SELECT set_config('work_mem', '5MB', false)"))
        step("set_config", [attempt(conn, "SHOW work_mem"), attempt(conn, "SELECT current_setting('work_mem')")])
    with engine.connect() as conn:
        conn.execute(text("SET LOCAL TimeZone = 'UTC'"))
        step("local", attempt(conn, "SHOW TimeZone"))
        conn.rollback()
        step("rolled back", attempt(conn, "SHOW TimeZone"))
    with make().execution_options(schema_translate_map={None: "tide"}).begin() as conn:
        COUNTED.create(conn)
        conn.execute(COUNTED.insert(), {"n": 1, "v": "translated"})
        step("translated", attempt(conn, select(COUNTED)))


@section
def own_writes(step, make):
    engine = make(pool_size=1, max_overflow=0)
    with engine.begin() as conn:
        COUNTED.drop(conn, checkfirst=True)
        COUNTED.create(conn)
    count = select(func.count(), func.max(COUNTED.c.n)).select_from(COUNTED)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        seen = []
        for n in range(50):
            conn.execute(COUNTED.insert(), {"n": n, "v": "x"})
            seen.append(attempt(conn, count))
        step("in turns", seen)
        step("many reads", [attempt(conn, count) for _ in range(150)])
    # One pooled connection, a transaction that writes and one that reads, as a web application does.
    seen = []
    reading = engine.execution_options(isolation_level="AUTOCOMMIT")
    for n in range(50, 80):
        with engine.begin() as conn:
            conn.execute(COUNTED.insert(), {"n": n, "v": "y"})
        with reading.connect() as conn:
            seen.append(attempt(conn, count))
    step("by transactions", seen)


@section
def default_transactions(step, make):
    engine = make(pool_size=1, max_overflow=0)
    count = select(func.count()).select_from(COUNTED)
    seen = set()
    for _ in range(300):
        with Session(engine) as session:
            seen.add((session.scalar(count), session.scalar(select(func.max(COUNTED.c.n)))))
    step("seen", sorted(seen))
    with Session(engine) as session:
        before = session.scalar(count)
        session.execute(COUNTED.insert(), {"n": 1000, "v": "z"})
        step("its own", session.scalar(count) - before)
        session.rollback()
        step("undone", session.scalar(count) - before)


@section
def errors(step, make):
    engine = make()
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        conn.execute(text("DROP TABLE IF EXISTS errors"))
        conn.execute(text("CREATE TABLE errors (n int PRIMARY KEY, v varchar(3) NOT NULL, CHECK (n < 100))"))
        conn.execute(text("INSERT INTO errors VALUES (1, 'a')"))
        for query in [
            "SELECT 1/0",
            "INSERT INTO errors VALUES (1, 'b')",
            "INSERT INTO errors VALUES (2, NULL)",
            "INSERT INTO errors VALUES (200, 'c')",
            "INSERT INTO errors VALUES (3, 'abcd')",
            "SELEC 1",
            "SELECT * FROM no_such_table",
            "SELECT no_such_function(1)",
            "SELECT * FROM pg_authid",
            "SELECT 'x'::int",
            "SELECT 1; SELECT 2",
        ]:
            step(query, [attempt(conn, query) for _ in range(2)])
        step("timeout", [attempt(conn, "SET statement_timeout = 50"), attempt(conn, "SELECT pg_sleep(600)")])
        step("usable", attempt(conn, "SELECT count(*) FROM errors"))


def main():
    url = sa.URL.create("postgresql+psycopg")
    made = []
    def make(password=None, database=None, **options):
        made.append(create_engine(url.set(password=password, database=database), **options))
        return made[-1]
    with make().begin() as conn:
        conn.execute(text("DROP SCHEMA IF EXISTS public, tide CASCADE"))
        conn.execute(text("CREATE SCHEMA public"))
    run_all("psycopg", make)
    for engine in made:
        engine.dispose()
    asyncio.run(main_async(url.set(drivername="postgresql+asyncpg")))
    record("END", len(SECTIONS))


async def main_async(url):
    made = []
    def make(password=None, database=None, **options):
        made.append(create_async_engine(url.set(password=password, database=database), **options))
        return made[-1].sync_engine
    await greenlet_spawn(run_all, "asyncpg", make)
    try:
        await asynchronous(lambda step, value: record(f"asynchronous/{step}", value), url)
    except Exception as error:
        failed("asynchronous", error)
    for engine in made:
        await engine.dispose()


async def asynchronous(step, url):
    """The asynchronous face itself, with several sessions at once."""
    engine = create_async_engine(url, pool_size=4)
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.drop_all)
        await conn.run_sync(Base.metadata.create_all)
    async def write_and_read(number):
        seen = []
        for n in range(10):
            async with AsyncSession(engine, expire_on_commit=False) as session:
                name = f"author {number}.{n}"
                session.add(Author(name=name, mood=Mood.OK, books=[Book(title="b")]))
                await session.commit()
                found = await session.scalars(select(Author).where(Author.name == name).options(selectinload(Author.books)))
                seen.append([[a.name, len(a.books)] for a in found])
        return seen
    step("at once", await asyncio.gather(*[write_and_read(n) for n in range(4)]))
    async with engine.connect() as conn:
        streamed = await conn.stream(select(Author.name).order_by(Author.name))
        step("stream", [list(row) async for row in streamed])
        await conn.rollback()
        task = asyncio.create_task(conn.execute(text("SELECT pg_sleep(600)")))
        step("cancelled", await cancelled(task))
    async with engine.connect() as conn:
        step("afterwards", rows(await conn.execute(select(func.count()).select_from(Author))))
    await engine.dispose()


async def cancelled(task):
    """asyncpg asks the server to cancel what a cancelled task waits for."""
    await asyncio.sleep(0.2)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return "cancelled"
    return "ended"


def run_all(driver, make):
    for run in SECTIONS:
        name = run.__name__
        try:
            run(lambda step, value: record(f"{name}/{driver}: {step}", value), make)
        except Exception as error:
            failed(f"{name}/{driver}", error)


main()
