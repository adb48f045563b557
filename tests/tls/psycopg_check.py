"""Uses a connection hard, over TLS: psycopg with the libpq that it brings.

Takes connection parameters, and "direct" where libpq is to begin with the handshake. Ends with
status 0 if all is as it should be.
"""

import sys
import threading

import psycopg

MEGABYTE = 1 << 20
WAIT = 60


def main():
    parameters = sys.argv[1]
    if "direct" in sys.argv[2:]:
        if psycopg.pq.version() < 170000:
            print(f"SKIPPED: libpq {psycopg.pq.version()} has no sslnegotiation=direct")
        else:
            parameters += " sslnegotiation=direct"
    connect = lambda: psycopg.connect(parameters, autocommit=True)
    with connect() as one, connect() as other:
        assert one.pgconn.ssl_in_use
        large_result(one)
        copy_out(one, other)
        copy_in(one)
        pipeline(one)
        notifications(one, other)
        cancel(one, other)


def large_result(connection):
    rows = 60_000
    with connection.cursor(binary=False) as cursor:
        cursor.execute(
            "SELECT i, md5(i::text), repeat(md5(i::text), 32) FROM generate_series(1, %s) AS i",
            [rows],
        )
        size = 0
        for expected, (i, piece, text) in enumerate(cursor, 1):
            assert i == expected and text == piece * 32, i
            size += len(text)
    assert expected == rows and size > 50 * MEGABYTE, size


def copy_out(connection, other):
    sql = "COPY (SELECT i, repeat('x', 1000) FROM generate_series(1, 60000) AS i) TO STDOUT"
    with connection.cursor() as cursor, cursor.copy(sql) as copy:
        rows = copy.rows()
        for i in range(60_000):
            if i == 100:
                # The rest waits in every buffer on the way meanwhile.
                other.execute("SELECT count(*) FROM generate_series(1, 1000000)").fetchone()
            assert next(rows) == (str(i + 1), "x" * 1000), i
        assert next(rows, None) is None


def copy_in(connection):
    connection.execute("CREATE TEMPORARY TABLE big (i int, t text)")
    with connection.cursor() as cursor, cursor.copy("COPY big FROM STDIN") as copy:
        for start in range(0, 55_000, 1000):
            copy.write("".join(f"{i}\t{'y' * 1000}\n" for i in range(start, start + 1000)))
    found = connection.execute("SELECT count(*), sum(i), sum(length(t)) FROM big").fetchone()
    assert found == (55_000, sum(range(55_000)), 55_000_000), found
    connection.execute("DROP TABLE big")


def pipeline(connection):
    """Much in both directions at once."""
    text = "z" * 100_000
    with connection.pipeline():
        cursors = [connection.execute("SELECT %s::text, %s::int", [text, i]) for i in range(200)]
    for i, cursor in enumerate(cursors):
        assert cursor.fetchone() == (text, i), i


def notifications(connection, other):
    """Comes while the client is idle, in more than one record."""
    connection.execute("LISTEN news")
    payloads = [f"{i:04}" + "n" * 7000 for i in range(300)]
    for payload in payloads:
        other.execute("SELECT pg_notify('news', %s)", [payload])
    heard = [n.payload for n in connection.notifies(timeout=WAIT, stop_after=len(payloads))]
    assert heard == payloads, len(heard)
    connection.execute("UNLISTEN *")
    assert connection.execute("SELECT 1").fetchone() == (1,)


def cancel(connection, other):
    outcome = []

    def sleep():
        try:
            connection.execute("SELECT pg_sleep(600), 'to be cancelled'")
        except psycopg.errors.QueryCanceled as error:
            outcome.append(error.sqlstate)

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    # The sleeper is wherever reads go.
    while sleeper.is_alive():
        if hasattr(connection, "cancel_safe"):
            connection.cancel_safe(timeout=WAIT)
        else:
            connection.cancel()
        sleeper.join(0.2)
    assert outcome == ["57014"], outcome
    assert connection.execute("SELECT 1").fetchone() == (1,)


main()
