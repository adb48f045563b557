"""psql, pgbench and pg_dump: prints what they say of the server that PGHOST and PGPORT name.

Owns: the scripts. Never: decides whether what they say is right; the transcript of a direct
connection does. The programs are those in PGBINDIR; psql of version 16 or later, which has more
commands, from PGBINDIR_NEWER if that is given.
"""

import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

from transcript import failed, record

PROGRAMS = Path(os.environ["PGBINDIR"])
NEWER = os.environ.get("PGBINDIR_NEWER")
SECTIONS = []
SECONDS_MAX = 120

# What differs from run to run: ports, process ids, object ids, and when it was.
CHANGING = [
    (re.compile(r'(port (?:or socket )?")\d+'), r"\1PORT"),
    (re.compile(r"port \d+"), "port PORT"),
    (re.compile(r"PID \d+"), "PID"),
    (re.compile(r"Backend PID +\| \d+"), "PID"),
    (re.compile(r"Server Port +\| \d+"), "PORT"),
    (re.compile(r"^.* \(every [0-9.]+s\)$", re.M), "WHEN (every)"),
    (re.compile(r"^-- (Started|Completed) on .*\n", re.M), ""),
    (re.compile(r"^\\(un)?restrict .*\n", re.M), ""),
]


def section(run):
    SECTIONS.append(run)
    return run


def changing_hidden(text):
    for pattern, instead in CHANGING:
        text = pattern.sub(instead, text)
    return text


def execute(program, *arguments, script="", programs=PROGRAMS, **environment):
    """Status, output and errors, with no terminal in reach."""
    done = subprocess.run(
        [str(Path(programs) / program), *arguments],
        input=script,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        start_new_session=True,
        env={**os.environ, "PGOPTIONS": "", "PSQL_PAGER": "", "LC_ALL": "C", **environment},
    )
    return done.returncode, changing_hidden(done.stdout), changing_hidden(done.stderr)


def psql(script, *arguments, **options):
    return execute("psql", "-X", *arguments, script=script, **options)


def lines(script, *arguments, **options):
    """Line by line, so that a difference is easy to see."""
    status, out, err = psql(script, *arguments, **options)
    return [status, *out.splitlines(), "stderr:", *err.splitlines()]


@section
def connecting(step):
    step("conninfo", lines("\\conninfo\nSELECT current_user, current_database();\n"))
    step("again", lines("\\c\n\\c - - - -\n\\c postgres\nSELECT current_database();\n\\c nowhere\nSELECT current_database();\n"))
    step("variables", lines("\\echo :SERVER_VERSION_NUM :SERVER_VERSION_NAME :DBNAME :USER :ENCODING\n"))
    step("options", lines("SHOW work_mem; SHOW application_name;", PGOPTIONS="-c work_mem=5MB"))
    step("wrong password", lines("", PGPASSWORD="wrong"))
    step("service", lines("SELECT 1", f"host={os.environ['PGHOST']} port={os.environ['PGPORT']} application_name=named connect_timeout=30"))
    step("list", lines("SELECT count(*) > 2 FROM pg_database;\n\\l app\n"))


TABLES = """
CREATE TABLE harbour (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, depth numeric(8, 2) DEFAULT 0 CHECK (depth >= 0));
CREATE TABLE boat (id serial PRIMARY KEY, harbour int REFERENCES harbour ON DELETE CASCADE, name text, tags text[], seen timestamptz);
CREATE INDEX boat_by_name ON boat (lower(name));
CREATE VIEW boats AS SELECT b.name AS boat, h.name AS harbour FROM boat b JOIN harbour h ON h.id = b.harbour;
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN small AS int CHECK (VALUE < 10);
CREATE SCHEMA tide;
CREATE FUNCTION tide.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.seen := '2024-01-01'; RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE INSERT ON boat FOR EACH ROW EXECUTE FUNCTION tide.touch();
COMMENT ON TABLE boat IS 'what floats';
GRANT SELECT ON boat TO PUBLIC;
INSERT INTO harbour (name, depth) SELECT 'harbour ' || n, n FROM generate_series(1, 5) n;
INSERT INTO boat (harbour, name, tags) SELECT 1 + n % 5, 'boat ' || n, ARRAY['a' || n % 3] FROM generate_series(1, 200) n;
"""


@section
def describe(step):
    step("tables", lines(TABLES))
    commands = (
        "\\d \\d+ \\dt \\dt+|boat \\d|boat \\d+|boat \\d|harbour \\d+|boats \\dv \\di \\ds \\df \\df+|twice \\dT \\dD \\dn \\dp \\du|app"
        " \\dx \\dd|boat \\drds \\dconfig|work_mem \\sf|twice \\sv|boats \\dC|int4 \\dO|POSIX \\db \\dy \\z|boat \\d|nothing"
    )
    for command in commands.split():
        said = lines(command.replace("|", " ") + "\n")
        # A standby keeps its own maps of free space.
        step(command, [re.sub("[-+ ]+", " ", re.sub(r"\d+ (bytes|kB)", "SIZE", str(line))) for line in said])


@section
def queries(step):
    step("shown", lines("SELECT * FROM boats ORDER BY boat LIMIT 3 \\gx\n\\x\nTABLE harbour;\n\\a\nTABLE harbour;\n\\H\nTABLE harbour;\n"))
    step("gset", lines("SELECT id AS n, name FROM harbour ORDER BY id LIMIT 1 \\gset h_\n\\echo :h_n :'h_name'\nSELECT name FROM harbour WHERE id = :h_n;\n"))
    step("gdesc", lines("SELECT h.id, h.name AS n, depth, NULL AS nothing, tags FROM harbour h JOIN boat USING (id) \\gdesc\nINSERT INTO harbour (name) VALUES ('x') RETURNING id \\gdesc\nSELECT nothing \\gdesc\nSELECT count(*) FROM harbour;\n"))
    step("gexec", lines("SELECT format('SELECT %s + count(*) FROM boat', n) FROM generate_series(1, 200) n \\gexec\n", "-At"))
    step("gexec of writes", lines("SELECT format('CREATE TABLE made_%s (n int)', n) FROM generate_series(1, 3) n \\gexec\n\\dt made_*\n"))
    step("crosstabview", lines("SELECT harbour, tags[1], count(*) FROM boat GROUP BY 1, 2 ORDER BY 1, 2 \\crosstabview\n"))
    # It ends with an error, which a version without a count needs.
    step("watch", lines("CREATE SEQUENCE left_to_go;\nSELECT 1 / (5 - nextval('left_to_go')) AS n \\watch 0.01\nSELECT last_value FROM left_to_go;\n"))
    step("in one message", lines("SELECT 1 \\; SELECT 2 \\; SELECT 3;\nINSERT INTO made_1 VALUES (1) \\; SELECT count(*) FROM made_1;\nSELECT 1 \\; SELECT 1/0 \\; SELECT 2;\n"))
    step("conditions", lines("SELECT count(*) > 100 AS many FROM boat \\gset\n\\if :many\n\\echo many\n\\else\n\\echo few\n\\endif\n"))
    step("to a file", lines("\\o /dev/stdout\nSELECT 1;\n\\o\nSELECT 2 \\g | cat\n"))
    step("variables", lines("SELECT 1 FROM boat;\n\\echo :ROW_COUNT :ERROR :SQLSTATE\nSELECT nothing;\n\\echo :ROW_COUNT :ERROR :SQLSTATE :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE\n\\errverbose\n", "-q"))
    step("timing", lines("\\timing off\nSELECT 1;\n"))
    step("single transaction", [lines("INSERT INTO made_1 VALUES (2); SELECT 1/0;", "-1"), lines("SELECT count(*) FROM made_1;", "-1", "-c", "INSERT INTO made_1 VALUES (3)", "-c", "SELECT count(*) FROM made_1")])


@section
def copy(step):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "data"
        path.write_text("".join(f"{n}\tv{n}\n" for n in range(5000)))
        step("in", lines(f"CREATE TABLE copied (n int, v text);\n\\copy copied FROM '{path}'\nSELECT count(*), sum(n) FROM copied;\n"))
        for form in ["text", "csv", "binary"]:
            step(f"out, {form}", lines(f"\\copy (SELECT * FROM copied ORDER BY n) TO '{path}' WITH (FORMAT {form})\n"))
            step(f"out, {form}: data", path.read_bytes())
            step(f"in, {form}", lines(f"\\copy copied FROM '{path}' WITH (FORMAT {form})\nSELECT count(*) FROM copied;\n"))
        path.write_text("1\ta\nx\tb\n")
        step("bad data", lines(f"\\copy copied FROM '{path}'\nSELECT count(*) FROM copied;\n"))
        step("no file", [str(line).replace(directory, "DIR") for line in lines(f"\\copy copied FROM '{directory}/nothing'\nSELECT 1;\n")])
        path.write_bytes((b"x" * 100_000 + b"\n") * 50)
        step("large", lines(f"\\copy copied (v) FROM '{path}'\nSELECT sum(length(v)) FROM copied;\n"))
    step("from the script", lines("COPY copied FROM STDIN;\n1\ta\n2\tb\n\\.\nSELECT count(*) FROM copied;\nCOPY copied FROM STDIN;\nx\ty\n\\.\nSELECT 1;\n"))
    step("to the screen", lines("COPY (SELECT 1, 2) TO STDOUT;\n\\copy (SELECT 3) TO STDOUT\nCOPY (SELECT 1/0) TO STDOUT;\nSELECT 1;\n"))
    step("deleted", lines("DELETE FROM copied WHERE n IS NULL OR n > 100;\n"))
    step("piped", lines("\\copy (SELECT generate_series(1, 5)) TO PROGRAM 'cat >&2'\n"))


@section
def cursors(step):
    for count in [7, 70]:
        step(f"FETCH_COUNT {count}", lines(f"\\set FETCH_COUNT {count}\nSELECT id, name FROM boat ORDER BY id;\nSELECT count(*) FROM boat;\nBEGIN;\nSELECT id FROM boat ORDER BY id;\nCOMMIT;\n", "-At"))
    step("FETCH_COUNT: errors", lines("\\set FETCH_COUNT 10\nSELECT 1 / (100 - id) FROM boat ORDER BY id;\nSELECT nothing;\nSELECT 1;\n"))
    step("FETCH_COUNT: a write", lines("\\set FETCH_COUNT 10\nINSERT INTO harbour (name) VALUES ('fetched') RETURNING name;\nWITH d AS (DELETE FROM harbour WHERE name = 'fetched' RETURNING name) SELECT * FROM d;\nSELECT count(*) FROM harbour;\n"))
    step("held", lines("DECLARE c CURSOR WITH HOLD FOR SELECT id FROM boat ORDER BY id;\nFETCH 3 FROM c;\nSELECT count(*) FROM boat;\nFETCH 2 FROM c;\nSELECT name FROM pg_cursors;\nCLOSE c;\nFETCH 1 FROM c;\n"))


@section
def transactions(step):
    script = "BEGIN;\nINSERT INTO made_2 VALUES (1);\nSELECT 1/0;\nINSERT INTO made_2 VALUES (2);\nSELECT count(*) FROM made_2;\nCOMMIT;\nSELECT count(*) FROM made_2;\n"
    for setting in ["off", "on", "interactive"]:
        step(f"ON_ERROR_ROLLBACK {setting}", lines(f"TRUNCATE made_2;\n\\set ON_ERROR_ROLLBACK {setting}\n{script}"))
    step("ON_ERROR_STOP", lines("\\set ON_ERROR_STOP on\nSELECT 1/0;\nSELECT 2;\n"))
    step("AUTOCOMMIT off", lines("\\set AUTOCOMMIT off\nINSERT INTO made_2 VALUES (7);\nSELECT count(*) FROM made_2;\nROLLBACK;\nSELECT count(*) FROM made_2;\n"))
    step("prompt", lines("\\set PROMPT1 '%/%x%# '\nBEGIN;\n\\echo :ERROR\nROLLBACK;\n", "-a"))
    step("prepared", lines("BEGIN;\nINSERT INTO made_2 VALUES (8);\nPREPARE TRANSACTION 'psql';\nSELECT gid FROM pg_prepared_xacts;\nCOMMIT PREPARED 'psql';\nSELECT count(*) FROM made_2 WHERE n = 8;\n"))


@section
def large_objects(step):
    with tempfile.TemporaryDirectory() as directory:
        path, back = Path(directory) / "data", Path(directory) / "back"
        path.write_bytes(bytes(range(256)) * 2000)
        script = f"""
\\lo_import '{path}' 'from a file'
\\set oid :LASTOID
\\lo_export :oid '{back}'
SELECT count(*) FROM pg_largeobject_metadata;
SELECT length(lo_get(:oid)), md5(lo_get(:oid)), lo_get(:oid, 10, 4);
BEGIN;
\\lo_unlink :oid
ROLLBACK;
\\lo_unlink :oid
SELECT count(*) FROM pg_largeobject_metadata;
\\lo_unlink :oid
\\lo_export 1 '{back}'
"""
        said = lines(script, "-q")
        step("objects", [re.sub(r"large object \d+|lo_import \d+", "large object", str(line)) for line in said])
        step("exported", back.read_bytes())


@section
def password(step):
    script = "\\password\napp\napp\nSELECT left(rolpassword, 13) FROM pg_authid WHERE rolname = 'app';\n\\password\none\nother\nSELECT 1;\n"
    step("changed", lines(script))
    step("logged in", lines("SELECT current_user;\n"))


@section
def notifications(step):
    step("own", lines("LISTEN tide;\nNOTIFY tide, 'one';\nSELECT pg_notify('tide', 'two');\nBEGIN;\nNOTIFY tide, 'three';\nCOMMIT;\nUNLISTEN *;\nNOTIFY tide;\nSELECT 1;\n"))
    step("notices", lines("DO $$ BEGIN RAISE NOTICE 'one' USING HINT = 'h'; RAISE WARNING 'two'; RAISE INFO 'three'; END $$;\n\\set VERBOSITY verbose\nDROP TABLE IF EXISTS never_was;\n\\set VERBOSITY terse\nDROP TABLE IF EXISTS never_was;\n"))


@section
def cancel(step):
    """As with Ctrl-C. It is sent until the server has been reached."""
    for query in ["SELECT pg_sleep(600)", "INSERT INTO made_3 SELECT 1 FROM pg_sleep(600)"]:
        child = subprocess.Popen([str(PROGRAMS / "psql"), "-X", "-c", query], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        said = None
        for _ in range(SECONDS_MAX):
            try:
                said = child.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGINT)
        else:
            child.kill()
        # psql itself ends by the signal when it has not asked anything yet.
        errors = sorted(set(said[1].splitlines()) - {"Cancel request sent"}) if said else "it went on"
        step(query, [child.returncode, errors])
    step("afterwards", lines("SELECT count(*) FROM made_3;\n"))


@section
def settings(step):
    step("path", lines("SET search_path TO tide;\n\\dt\n\\df\nCREATE TABLE place (n int);\n\\d place\nRESET search_path;\nSELECT to_regclass('place'), to_regclass('tide.place');\n"))
    step("encoding", lines("\\encoding LATIN1\n\\encoding\nSHOW client_encoding;\n\\encoding UTF8\nSELECT '☃';\n", PGCLIENTENCODING="UTF8"))
    step("formats", lines("SET TimeZone = 'Asia/Tokyo';\nSET DateStyle = 'German';\nSELECT seen FROM boat LIMIT 1;\nSET IntervalStyle = 'iso_8601';\nSELECT interval '1 day 2 hours';\n"))
    step("role", lines("SET ROLE app;\n\\conninfo\nSET ROLE postgres;\nSET SESSION AUTHORIZATION DEFAULT;\nSELECT current_user;\n"))
    step("timeout", lines("SET statement_timeout = 50;\nSELECT pg_sleep(600);\nSELECT 1;\n"))
    step("temporary", lines("CREATE TEMP TABLE scratch (n int);\nINSERT INTO scratch VALUES (1);\nSELECT * FROM scratch;\nDISCARD TEMP;\nSELECT * FROM scratch;\n"))


@section
def own_writes(step):
    script = "CREATE TABLE own_writes (n int);\n"
    script += "".join(f"INSERT INTO own_writes VALUES ({n});\nSELECT count(*), max(n) FROM own_writes;\n" for n in range(50))
    script += "SELECT 'SELECT count(*) FROM own_writes' FROM generate_series(1, 100) \\gexec\n"
    script += "".join(f"BEGIN;\nUPDATE own_writes SET n = n + 1;\nCOMMIT;\nSELECT min(n) FROM own_writes;\n" for n in range(20))
    step("in turns", lines(script, "-Atq"))


@section
def errors(step):
    for query in ["SELECT 1/0", "SELEC 1", "SELECT * FROM no_such_table", "INSERT INTO harbour (name) VALUES ('harbour 1')", "INSERT INTO harbour (name, depth) VALUES ('y', -1)", "SELECT 'ü☃' || nothing", "SELECT * FROM pg_authid", "\\d+ no_such_table", "\\nonsense"]:
        said = lines(f"\\set VERBOSITY verbose\n{query};\n\\echo :SQLSTATE\nSELECT 1;\n")
        # Failed inserts use up numbers, which earlier ones have used up otherwise.
        step(query, [re.sub(r"Failing row contains \(\d+", "Failing row contains (N", str(line)) for line in said])


def benched(*arguments):
    status, out, err = execute("pgbench", "--random-seed=1", *arguments)
    told = ("number of transactions actually", "number of failed", "query mode")
    return [status, [line for line in out.splitlines() if line.startswith(told)], [line for line in err.splitlines() if "error" in line]]


@section
def pgbench(step):
    totals = "SELECT count(*), sum(delta), sum(tid), sum(bid) FROM pgbench_history;\nSELECT sum(abalance) FROM pgbench_accounts;\nSELECT tbalance FROM pgbench_tellers ORDER BY tid;\n"
    status, _, err = execute("pgbench", "-i", "-s", "1", "-I", "dtgvpf", "-q")
    step("filled", [status, [line for line in err.splitlines() if "error" in line], lines("SELECT count(*), max(aid) FROM pgbench_accounts;\n\\d pgbench_history\n")])
    for mode in ["simple", "extended", "prepared"]:
        step(f"{mode}: TPC-B", [benched("-n", "-M", mode, "-c", "1", "-t", "30"), lines(totals, "-At")])
        step(f"{mode}: reads", benched("-n", "-S", "-M", mode, "-c", "4", "-j", "2", "-t", "50"))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "script"
        scripts = {
            "reads": "\\startpipeline\nSELECT abalance FROM pgbench_accounts WHERE aid = 1;\nSELECT abalance FROM pgbench_accounts WHERE aid = 2;\nSELECT count(*) FROM pgbench_tellers;\n\\endpipeline\n",
            "writes and reads": "\\startpipeline\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 7;\nSELECT abalance FROM pgbench_accounts WHERE aid = 7;\nINSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, 7, 1, now());\n\\endpipeline\nSELECT abalance FROM pgbench_accounts WHERE aid = 7 \\gset\n\\startpipeline\nSELECT 1 / (:abalance::int - :abalance::int + 1);\n\\endpipeline\n",
            "a transaction": "\\startpipeline\nBEGIN;\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 8;\nSELECT abalance FROM pgbench_accounts WHERE aid = 8;\nCOMMIT;\n\\endpipeline\n",
            "an error": "\\startpipeline\nUPDATE pgbench_accounts SET abalance = 99 WHERE aid = 9;\nSELECT 1/0;\n\\endpipeline\n",
        }
        for name, script in scripts.items():
            path.write_text(script)
            for mode in ["extended", "prepared"]:
                step(f"pipeline, {mode}: {name}", benched("-n", "-M", mode, "-c", "1", "-t", "20", "-f", str(path)))
    step("afterwards", lines(f"{totals}SELECT aid, abalance FROM pgbench_accounts WHERE aid IN (7, 8, 9) ORDER BY 1;\nDROP TABLE pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers;\n"))


@section
def dump(step):
    status, plain, err = execute("pg_dump", "--no-owner", "--no-comments")
    step("plain", [status, *plain.splitlines(), err])
    with tempfile.TemporaryDirectory() as directory:
        step("parallel", execute("pg_dump", "-Fd", "-j", "2", "-f", f"{directory}/dump"))
        step("dropped", lines("\\set QUIET on\nSET client_min_messages = error;\nDROP SCHEMA public, tide CASCADE;\nCREATE SCHEMA public;\n"))
        step("restored", execute("pg_restore", "-j", "2", "-d", os.environ["PGDATABASE"], "--no-owner", f"{directory}/dump")[0])
    step("the same", execute("pg_dump", "--no-owner", "--no-comments")[1] == plain)
    step("vacuumed", execute("vacuumdb", "-z", "-q", "-t", "boat", "-t", "harbour"))
    step("reindexed", execute("reindexdb", "-q", "-t", "boat"))


@section
def newer(step):
    """psql 16 binds and counts, 18 has pipelines."""
    if not NEWER:
        return
    say = lambda script: lines(script, programs=NEWER)
    step("bind", say("SELECT $1::int + $2 AS sum, $3 AS text \\bind 1 2 'it''s' \\g\nSELECT name FROM harbour WHERE id = $1 \\bind 2 \\gx\nSELECT $1::int \\bind x \\g\nINSERT INTO made_1 VALUES ($1) RETURNING n \\bind 40 \\g\nSELECT count(*) FROM made_1 WHERE n = $1 \\bind 40 \\g\n"))
    step("binds", say("".join(f"SELECT count(*) + $1::int FROM boat \\bind {n} \\g\n" for n in range(50))))
    step("watch", say("SELECT count(*) FROM boat \\watch i=0.01 c=5\n"))
    step("conninfo", [line for line in say("\\conninfo\n") if "Host" in str(line) or "Database" in str(line)])
    if major(NEWER) < 18:
        return
    step("named", say("SELECT $1::int * 2 \\parse double\n\\bind_named double 4 \\g\n\\bind_named double 5 \\g\nSELECT $1::int * 3 \\parse double\n\\close_prepared double\n\\bind_named double 6 \\g\nSELECT 1;\n"))
    pipelines = {
        "reads": "SELECT 1 \\bind \\sendpipeline\nSELECT count(*) FROM boat \\bind \\sendpipeline\nSELECT 3 \\bind \\sendpipeline\n",
        "flushed": "SELECT 1 \\bind \\sendpipeline\n\\flushrequest\n\\getresults\nSELECT count(*) FROM boat \\bind \\sendpipeline\n\\syncpipeline\nSELECT 2 \\bind \\sendpipeline\n\\getresults\n",
        "writes": "INSERT INTO made_1 VALUES ($1) \\bind 50 \\sendpipeline\nSELECT count(*) FROM made_1 WHERE n = $1 \\bind 50 \\sendpipeline\n\\syncpipeline\nSELECT max(n) FROM made_1 \\bind \\sendpipeline\n",
        "an error": "INSERT INTO made_1 VALUES ($1) \\bind 60 \\sendpipeline\nSELECT 1/$1 \\bind 0 \\sendpipeline\nSELECT 2 \\bind \\sendpipeline\n\\syncpipeline\nSELECT max(n) FROM made_1 \\bind \\sendpipeline\n",
    }
    for name, script in pipelines.items():
        step(f"pipeline: {name}", say(f"\\startpipeline\n{script}\\endpipeline\nSELECT max(n) FROM made_1;\n"))


def major(programs):
    said = subprocess.run([str(Path(programs) / "psql"), "--version"], capture_output=True, text=True).stdout
    return int(re.search(r"\) (\d+)", said)[1])


def main():
    psql("SET client_min_messages = error; DROP SCHEMA IF EXISTS public, tide CASCADE; CREATE SCHEMA public; SELECT lo_unlink(oid) FROM pg_largeobject_metadata;")
    for run in SECTIONS:
        name = run.__name__
        try:
            run(lambda step, value: record(f"{name}/{step}", value))
        except Exception as error:
            failed(name, error)
    record("END", len(SECTIONS))


main()
