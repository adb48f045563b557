"""Django's ORM over psycopg 3: prints what it sees of the server that PGHOST and PGPORT name.

Owns: the steps; the application they use is in tides/. Never: decides whether they are right; the
transcript of a direct connection does.
"""

import io
import os
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import django
from django.conf import settings

from transcript import failed, record

SCRATCH = "django_scratch"
UTC = timezone.utc
TOKYO = ZoneInfo("Asia/Tokyo")
SECTIONS = []

def database(**changes):
    """As in a settings file, but that host, port and user are libpq's own variables."""
    given = {"ENGINE": "django.db.backends.postgresql", "NAME": SCRATCH, **changes}
    given["OPTIONS"] = {"connect_timeout": 30, **changes.get("OPTIONS", {})}
    return given

settings.configure(
    DATABASES={
        # Commands work on this one. It is kept from request to request.
        "default": database(CONN_MAX_AGE=None),
        "outside": database(NAME=os.environ["PGDATABASE"]),
        "each_request": database(CONN_MAX_AGE=0),
        "checked": database(CONN_MAX_AGE=600, CONN_HEALTH_CHECKS=True),
        "bound": database(OPTIONS={"server_side_binding": True}),
        "tokyo": database(TIME_ZONE="Asia/Tokyo"),
        "optioned": database(OPTIONS={"options": "-c search_path=elsewhere,public -c statement_timeout=50ms"}),
        "serial": database(OPTIONS={"isolation_level": 4}),
        "other": database(),
        "role": database(OPTIONS={"assume_role": "app"}),
        "plain": database(DISABLE_SERVER_SIDE_CURSORS=True),
    },
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django.contrib.sessions",
        "django.contrib.postgres",
        "tides",
    ],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    TIME_ZONE="Europe/Berlin",
    SECRET_KEY="not one",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
)
django.setup()

from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.contrib.postgres.search import SearchQuery, SearchRank, SearchVector
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
from django.db import Error, connections, transaction
from django.db.models import Avg, Count, Exists, F, Max, OuterRef, Q, Subquery, Sum, Value, Window
from django.db.models.functions import Concat, Now, RowNumber, TruncDay, TruncMonth, Upper
from django.db.transaction import TransactionManagementError, atomic
from django.core.signals import request_finished, request_started

from tides.models import Boat, Harbour, Sailor

def section(run):
    SECTIONS.append(run)
    return run

def outcome(run):
    """What a call returns, or the error it raises, with the server's own words."""
    try:
        return run()
    except (Error, TransactionManagementError) as error:
        cause = error.__cause__
        return [type(error).__name__, getattr(cause, "sqlstate", None), str(error)]

def run_sql(alias, query, params=None):
    with connections[alias].cursor() as cur:
        cur.execute(query, params)
        return cur.fetchall() if cur.description else cur.rowcount

def attempt(alias, query, params=None):
    return outcome(lambda: run_sql(alias, query, params))

def catch_up(alias):
    """A session is promised its own writes and what it has seen. This one writes, if nothing, after
    what others have written; so its reads from here on are bound to show theirs."""
    run_sql(alias, "DELETE FROM django_session WHERE false")


def said_by(command, *arguments, **options):
    out = io.StringIO()
    call_command(command, *arguments, stdout=out, stderr=out, no_color=True, **options)
    return out.getvalue()

def request(work):
    """One request as the handlers frame it: what is due is closed before and after."""
    request_started.send(sender=None, environ={})
    try:
        return work()
    finally:
        request_finished.send(sender=None)

@section
def connecting(step):
    for alias in ["default", "tokyo", "bound", "serial", "role"]:
        connection = connections[alias]
        connection.ensure_connection()
        step(alias, [connection.pg_version // 10000, connection.is_usable(), connection.timezone_name,
                     attempt(alias, "SHOW TimeZone"), attempt(alias, "SHOW default_transaction_isolation"),
                     attempt(alias, "SELECT current_user, current_database()")])
    step("features", [connections["default"].features.supports_transactions, connections["default"].get_autocommit()])

@section
def migrations(step):
    step("plan", said_by("migrate", plan=True, interactive=False))
    step("migrate", said_by("migrate", interactive=False))
    applied = lambda: run_sql("default", "SELECT app, name FROM django_migrations ORDER BY id")
    step("applied", applied())
    step("shown", said_by("showmigrations"))
    step("nothing to do", said_by("migrate", interactive=False))
    step("in step with the models", said_by("makemigrations", check_changes=True, dry_run=True))
    step("back", said_by("migrate", "tides", "0001", interactive=False))
    step("forward", [said_by("migrate", "tides", interactive=False), len(applied())])
    step("inspected", said_by("inspectdb"))
    introspection = connections["default"].introspection
    with connections["default"].cursor() as cur:
        step("tables", sorted(introspection.table_names(cur)))
        for table in ["tides_boat", "tides_harbour", "tides_sailor"]:
            constraints = introspection.get_constraints(cur, table)
            step(f"constraints of {table}", sorted((sorted(c["columns"] or []), c["primary_key"], c["unique"], c["index"]) for c in constraints.values()))

def fill():
    Harbour.objects.all().delete()
    Sailor.objects.all().delete()
    harbours = Harbour.objects.bulk_create(
        Harbour(name=f"harbour {n}", depth=Decimal(n) / 4, opened=date(2000 + n, 1, 1)) for n in range(5)
    )
    sailors = Sailor.objects.bulk_create(Sailor(name=f"sailor {n}", age=20 + n) for n in range(10))
    boats = Boat.objects.bulk_create(
        [
            Boat(
                id=UUID(int=n + 1),
                name=f"boat {n}",
                harbour=harbours[n % 5],
                tags=["odd" if n % 2 else "even", f'quoted "{n}"'],
                log={"n": n, "deep": {"list": [n, None, "ü☃"]}},
                draught=(n, n + 2),
                seen=datetime(2024, 3, 30, 22, 0, 0, n, UTC) + timedelta(hours=n),
                chart=bytes([n]) * 10,
                trip=timedelta(hours=n, microseconds=n),
            )
            for n in range(40)
        ],
        batch_size=15,
    )
    for n, boat in enumerate(boats[:20]):
        boat.crew.set(sailors[n % 5 : n % 5 + 3])
    return harbours, sailors, boats

@section
def orm(step):
    fill()
    boats = Boat.objects.order_by("id")
    step("all", list(boats.values_list()))
    step("one", [(b.pk, b.harbour.name, b.tags, b.log, bytes(b.chart), b.trip) for b in [boats.get(name="boat 7")]])
    step("joined", [(b.name, b.harbour.name) for b in boats.select_related("harbour")[:5]])
    step("prefetched", [(b.name, sorted(s.name for s in b.crew.all())) for b in boats.prefetch_related("crew")])
    step("backwards", [(h.name, [b.name for b in h.boats.order_by("name")]) for h in Harbour.objects.order_by("id")])
    step("counted", list(Harbour.objects.annotate(n=Count("boats"), latest=Max("boats__seen")).order_by("id").values_list("name", "n", "latest")))
    step("aggregate", Sailor.objects.aggregate(Avg("age"), Sum("age")))
    step("filtered", list(boats.filter(Q(tags__contains=["odd"]) & ~Q(log__n__lt=20), log__deep__list__contains=[None]).values_list("name", flat=True)))
    step("ranges", list(boats.filter(draught__contains=5).values_list("name", "draught")))
    latest = Boat.objects.filter(harbour=OuterRef("pk")).order_by("-seen")
    step("subquery", list(Harbour.objects.order_by("id").annotate(latest=Subquery(latest.values("name")[:1]), any=Exists(latest.filter(log__n=3))).values_list("name", "latest", "any")))
    step("window", list(boats.annotate(nth=Window(RowNumber(), partition_by=F("harbour"), order_by="seen")).values_list("name", "nth")))
    step("distinct on", list(Boat.objects.order_by("harbour_id", "name").distinct("harbour_id").values_list("name", flat=True)))
    step("union", sorted(boats.filter(log__n=1).values_list("name", flat=True).order_by().union(boats.filter(log__n=2).values_list("name", flat=True).order_by())))
    ranked = boats.annotate(rank=SearchRank(SearchVector("name"), SearchQuery("boat")))
    step("search", [(b.name, round(b.rank, 6)) for b in ranked.filter(rank__gt=0)[:3]])
    step("raw", [(b.name, b.twice) for b in Boat.objects.raw("SELECT *, 2 * (log->>'n')::int AS twice FROM tides_boat ORDER BY id LIMIT %s", [3])])
    step("in_bulk", sorted(str(key) for key in boats.in_bulk([UUID(int=1), UUID(int=2)])))
    step("explained", "Seq Scan" in boats.filter(trip=None).explain(analyze=True))
    harbour, made = Harbour.objects.get_or_create(name="new", defaults={"depth": 1})
    step("get_or_create", [made, Harbour.objects.get_or_create(name="new")[1]])
    step("update_or_create", [Harbour.objects.update_or_create(name="new", defaults={"depth": n})[1] for n in (2, 3)])
    harbour.refresh_from_db()
    step("refreshed", harbour.depth)
    step("update", [Harbour.objects.filter(depth__lt=1).update(depth=F("depth") * 2 + 1), list(Harbour.objects.order_by("id").values_list("depth", flat=True))])
    sailors = list(Sailor.objects.order_by("id"))
    for sailor in sailors:
        sailor.name = sailor.name.upper()
    step("bulk_update", [Sailor.objects.bulk_update(sailors, ["name"]), Sailor.objects.filter(name__startswith="SAILOR").count()])
    again = [Harbour(name="new", depth=7), Harbour(name="newer", depth=8)]
    Harbour.objects.bulk_create(again, ignore_conflicts=True)
    step("ignored", list(Harbour.objects.filter(name__startswith="new").order_by("name").values_list("name", "depth")))
    Harbour.objects.bulk_create(again, update_conflicts=True, update_fields=["depth"], unique_fields=["name"])
    step("upserted", list(Harbour.objects.filter(name__startswith="new").order_by("name").values_list("name", "depth")))
    step("deleted", [Harbour.objects.filter(name="harbour 0").delete(), Boat.objects.count()])
    step("composed", list(Sailor.objects.order_by("id").annotate(s=Concat(Upper("name"), Value("!"))).values_list("s", flat=True)[:2]))

@section
def accounts(step):
    """Applications that come with Django."""
    user = User.objects.create_user("ann", password="secret")
    found = [authenticate(username="ann", password=p) for p in ("secret", "wrong")]
    step("authenticate", [u is not None for u in found])
    seen = []
    for n in range(20):
        store = SessionStore()
        store["n"] = n
        store.create()
        again = SessionStore(store.session_key)
        again["n"] += 100
        again.save()
        seen.append([SessionStore(store.session_key)["n"], store.exists(store.session_key)])
    step("sessions", seen)
    user.delete()
    step("deleted", User.objects.count())

@section
def transactions(step):
    Sailor.objects.all().delete()
    count = Sailor.objects.count
    make = lambda name, age=30: Sailor.objects.create(name=name, age=age)
    hooks = []
    with atomic():
        make("one")
        transaction.on_commit(lambda: hooks.append(count()))
        step("inside", [count(), connections["default"].in_atomic_block, hooks])
    step("committed", [count(), hooks])
    def fails():
        with atomic():
            make("two")
            make("too old", age=130)
    step("fails", [outcome(fails), count()])
    with atomic():
        make("three")
        try:
            with atomic():
                make("four")
                raise ValueError
        except ValueError:
            step("savepoint", count())
        with atomic():
            make("five")
        point = transaction.savepoint()
        make("six")
        transaction.savepoint_rollback(point)
        point = transaction.savepoint()
        make("seven")
        transaction.savepoint_commit(point)
    step("kept", list(Sailor.objects.order_by("id").values_list("name", flat=True)))
    def broken():
        with atomic():
            outcome(lambda: make("too old", age=130))
            return outcome(count)
    step("broken", broken())
    with atomic():
        make("undone")
        transaction.set_rollback(True)
    step("set_rollback", count())
    def durable():
        with atomic(durable=True), atomic(durable=True):
            pass
    try:
        durable()
    except RuntimeError as error:
        step("durable", str(error))
    transaction.set_autocommit(False)
    make("by hand")
    seen = [count()]
    transaction.rollback()
    seen.append(count())
    transaction.rollback()
    transaction.set_autocommit(True)
    step("by hand", seen)
    step("rows locked", locked())
    serial = Sailor.objects.using("serial")
    with atomic("serial"):
        serial.count()
        with atomic():
            Sailor.objects.using("default").update(age=F("age") + 1)
        step("serializable", [attempt("serial", "SHOW transaction_isolation"), outcome(lambda: serial.update(age=1))])
        transaction.set_rollback(True, "serial")
    with atomic():
        run_sql("default", "SET TRANSACTION READ ONLY")
        step("read only", [count(), outcome(lambda: make("never"))])
        transaction.set_rollback(True)
    run_sql("default", "SET CONSTRAINTS ALL IMMEDIATE")
    with atomic():
        boat = Boat.objects.create(name="lost", harbour_id=10**6)
        step("deferred constraint", outcome(connections["default"].check_constraints))
        transaction.set_rollback(True)

def locked():
    """What a second connection sees of rows that the first has locked."""
    mine, others = Sailor.objects.order_by("id"), Sailor.objects.using("other").order_by("id")
    seen = []
    with atomic():
        first = mine.select_for_update().first()
        with atomic("other"):
            seen.append([s.name for s in others.select_for_update(skip_locked=True)])
        with atomic("other"):
            seen.append(outcome(lambda: list(others.select_for_update(nowait=True))))
            transaction.set_rollback(True, "other")
        with atomic("other"):
            seen.append([s.name for s in others.select_for_update(of=("self",), no_key=True).filter(pk__gt=first.pk)])
    return [*seen, outcome(lambda: list(mine.select_for_update()))]

@section
def cursors(step):
    """.iterator() is a cursor on the server, WITH HOLD outside of a transaction."""
    fill()
    boats = lambda alias="default": Boat.objects.using(alias).order_by("id")
    with atomic():
        step("in a transaction", [b.name for b in boats().iterator(chunk_size=7)])
    step("held", [b.name for b in boats().iterator(chunk_size=7)])
    rows = boats().values_list("name", flat=True).iterator(chunk_size=7)
    mixed = [next(rows) for _ in range(10)]
    Boat.objects.filter(pk=UUID(int=40)).delete()
    mixed.append(Boat.objects.count())
    step("held, with a write in between", mixed + list(rows))
    rows = boats().values_list("name", flat=True).iterator(chunk_size=3)
    step("left early", next(rows))
    rows.close()
    step("two at once", [pair for pair in zip(boats().values_list("name", flat=True).iterator(chunk_size=4),
                                              Sailor.objects.order_by("id").values_list("name", flat=True).iterator(chunk_size=3))])
    step("prefetched", [(b.name, b.crew.count()) for b in boats().prefetch_related("crew").iterator(chunk_size=20)])
    step("without", [b.name for b in boats("plain").iterator(chunk_size=7)])
    step("afterwards", [Boat.objects.count() for _ in range(30)])

@section
def settings_of_connections(step):
    run_sql("default", "CREATE SCHEMA IF NOT EXISTS elsewhere")
    run_sql("default", "CREATE TABLE IF NOT EXISTS elsewhere.place AS SELECT 'elsewhere' AS name")
    step("search_path", [attempt("optioned", "SELECT name FROM place") for _ in range(20)])
    step("timeout", [attempt("optioned", "SELECT pg_sleep(600)"), attempt("optioned", "SELECT 1")])
    run_sql("default", "SET search_path TO elsewhere, public")
    step("SET", [attempt("default", "SELECT name FROM place") for _ in range(20)])
    with atomic():
        run_sql("default", "SET LOCAL work_mem = '5MB'")
        inside = attempt("default", "SHOW work_mem")
    step("SET LOCAL", [inside, attempt("default", "SHOW work_mem")])
    run_sql("default", "RESET search_path")
    step("RESET", attempt("default", "SELECT name FROM place"))

@section
def time_zones(step):
    Boat.objects.all().delete()
    harbour = Harbour.objects.first() or Harbour.objects.create(name="zoned")
    # Around the night in which clocks in Berlin go forward.
    for n in range(6):
        seen = datetime(2024, 3, 30, 21, 30, tzinfo=UTC) + timedelta(hours=n)
        Boat.objects.create(name=f"zoned {n}", harbour=harbour, seen=seen)
    boats = lambda alias: Boat.objects.using(alias).order_by("seen")
    catch_up("tokyo")
    for alias in ["default", "tokyo"]:
        step(f"{alias}: read", [b.seen.isoformat() for b in boats(alias)])
        step(f"{alias}: days", list(boats(alias).annotate(day=TruncDay("seen")).values_list("day", flat=True)))
        step(f"{alias}: by day", [list(boats(alias).filter(seen__date=date(2024, 3, d)).values_list("name", flat=True)) for d in (30, 31)])
        step(f"{alias}: texts", run_sql(alias, "SELECT seen::text FROM tides_boat ORDER BY seen"))
        step(f"{alias}: datetimes", [d.isoformat() for d in boats(alias).datetimes("seen", "hour")])
    with django.utils.timezone.override(TOKYO):
        step("overridden", list(boats("default").annotate(month=TruncMonth("seen", tzinfo=TOKYO)).values_list("month", flat=True)))
    step("now", Boat.objects.filter(seen__lt=Now()).count())

@section
def persistence(step):
    """Connections from request to request: kept, closed, and checked before use."""
    for alias in ["default", "each_request", "checked", "bound"]:
        kept, seen = set(), []
        for n in range(15):
            def work():
                Sailor.objects.using(alias).create(name=f"{alias} {n}", age=n)
                found = Sailor.objects.using(alias).filter(name__startswith=alias).count()
                kept.add(connections[alias].connection)
                return [found, *(Sailor.objects.using(alias).filter(age=n, name__startswith=alias).count() for _ in range(3))]
            seen.append(request(work))
        step(alias, [seen, len(kept)])
    step("bound: values", [attempt("bound", "SELECT %s::int + n FROM generate_series(1, 2) AS n", [n]) for n in range(10)])
    step("bound: errors", [attempt("bound", "SELECT 1 / %s::int", [n % 2]) for n in range(4)])

@section
def own_writes(step):
    Sailor.objects.all().delete()
    seen = []
    for n in range(40):
        sailor = Sailor.objects.create(name=f"own {n}", age=n)
        seen.append([Sailor.objects.count(), Sailor.objects.get(pk=sailor.pk).name])
    step("in turns", seen)
    step("many reads", [Sailor.objects.filter(age__lt=n).count() for n in range(100)])
    for n in range(20):
        with atomic():
            Sailor.objects.filter(age=n).update(name="changed")
        seen.append(Sailor.objects.filter(name="changed").count())
    step("by transactions", seen)
    step("deleted", [Sailor.objects.filter(name="changed").delete()[0], Sailor.objects.count()])

@section
def default_transactions(step):
    seen = set()
    for _ in range(300):
        with atomic():
            with atomic():
                seen.add((Sailor.objects.count(), Sailor.objects.filter(name="changed").exists()))
    step("seen", sorted(seen))
    with atomic():
        before = Sailor.objects.count()
        Sailor.objects.create(name="late", age=1)
        step("its own", Sailor.objects.count() - before)
        transaction.set_rollback(True)
    step("undone", Sailor.objects.count() - before)

@section
def errors(step):
    Harbour.objects.get_or_create(name="taken")
    calls = {
        "unique": lambda: Harbour.objects.create(name="taken"),
        "null": lambda: Harbour.objects.create(name=None),
        "too long": lambda: Harbour.objects.create(name="x" * 50),
        "check": lambda: Sailor.objects.create(name="old", age=120),
        "out of range": lambda: Sailor.objects.create(name="old", age=10**6),
        "numeric": lambda: Harbour.objects.create(name="deep", depth=Decimal(10**6)),
        "no table": lambda: run_sql("default", "SELECT * FROM no_such_table"),
        "syntax": lambda: run_sql("default", "SELEC 1"),
        "division": lambda: run_sql("default", "SELECT 1 / %s", [0]),
        "forbidden": lambda: run_sql("default", "SELECT * FROM pg_authid"),
    }
    for name, call in calls.items():
        said = outcome(call)
        # Numbers from sequences, which errors that went before have used up.
        step(name, said[:2] + [said[2].split("\n")[0]])
    step("usable", [Harbour.objects.filter(name="taken").count(), connections["default"].is_usable()])

@section
def test_database(step):
    """What `manage.py test` does first and last."""
    connection = connections["other"]
    connection.close()
    connection.settings_dict["TEST"]["NAME"] = f"test_{SCRATCH}"
    name = connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=True)
    step("made", [name, attempt("other", "SELECT current_database()"), Sailor.objects.using("other").count()])
    with atomic("other"):
        Sailor.objects.using("other").create(name="tested", age=1)
        step("used", Sailor.objects.using("other").count())
        transaction.set_rollback(True, "other")
    call_command("flush", database="other", verbosity=0, interactive=False)
    step("flushed", [Sailor.objects.using("other").count() for _ in range(10)])
    step("destroyed", outcome(lambda: connection.creation.destroy_test_db(SCRATCH, verbosity=0)))

def main():
    run_sql("outside", f"DROP DATABASE IF EXISTS test_{SCRATCH} WITH (FORCE)")
    run_sql("outside", f"DROP DATABASE IF EXISTS {SCRATCH} WITH (FORCE)")
    run_sql("outside", f"CREATE DATABASE {SCRATCH}")
    for run in SECTIONS:
        name = run.__name__
        try:
            run(lambda step, value: record(f"{name}/{step}", value))
        except (Exception, SystemExit) as error:
            failed(name, error)
    connections.close_all()
    record("END", len(SECTIONS))

main()
