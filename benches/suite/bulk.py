"""Owns: workloads of many bytes in one answer or one copy. Never: runs two of them at a time."""

from .load import connected
from .processes import cpu_seconds, forget_peak, peak_mb, resident_mb
from .workloads import Workload

# Of a row, in bytes.
ROW = 1000
SINK = "CREATE TABLE IF NOT EXISTS bench_sink (line text)"
# Parsed, and thrown away: nothing is written.
COPY_IN = "COPY bench_sink FROM STDIN WHERE false"


class Bulk(Workload):
    """One stream of --megabytes, read or sent by the example load."""

    clients = (1,)
    has_own_clients = True

    def __init__(self, name, about, sql):
        self.name, self.about, self.sql = name, about, sql

    def prepare(self, bench, running, clients):
        if self.sql == COPY_IN:
            bench.cluster.sql(SINK)

    def arguments(self, bench):
        size = bench.options.megabytes * 1_000_000
        if self.sql == COPY_IN:
            return ["copy-in", "--sql", self.sql, "--bytes", size]
        return ["stream", "--sql", self.sql.format(rows=size // ROW)]

    def run(self, bench, running, clients):
        pid = running.pid
        with connected(bench, running.port, *self.arguments(bench)) as load:
            before = resident_mb(pid) if pid else None
            if pid:
                forget_peak(pid)
            began = cpu_seconds(pid)
            result = load.go()
            used = cpu_seconds(pid) - began
            figures = {"bytes": result["bytes"], "mb_per_second": result["bytes"] / 1e6 / result["seconds"]}
            if pid:
                figures["cpu_s_per_gb"] = used * 1e9 / result["bytes"]
                figures["resident_before_mb"] = before
                figures["peak_mb"] = peak_mb(pid)
        return figures


def bulk():
    rows = f"SELECT repeat('x', {ROW}) FROM generate_series(1, {{rows}})"
    yield Bulk("result-1gb", "one result of --megabytes in rows of 1,000 bytes", rows)
    yield Bulk("copy-out", "the same by COPY TO STDOUT", f"COPY ({rows}) TO STDOUT")
    yield Bulk("copy-in", "COPY FROM STDIN of --megabytes, of which PostgreSQL keeps nothing", COPY_IN)
