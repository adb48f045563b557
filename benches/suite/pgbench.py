"""Owns: a run of pgbench and what it says of it. Never: looks at a proxy."""

import os
import re
import subprocess
from array import array

from .processes import fail
from .servers import DATABASE, USER, environment

# For connecting, and for a given number of transactions under strace or valgrind.
RUN_SECONDS_MAX = 300

# Below so many samples there is no telling the slowest of a thousand.
SAMPLES_FOR_P999 = 5000


class Pgbench:
    def __init__(self, cluster, directory, scale):
        self.cluster = cluster
        self.directory = directory
        self.scale = scale

    def script(self, name, text):
        file = self.directory / f"{name}.sql"
        file.write_text(text)
        return file

    def run(self, port, arguments, clients, *, seconds=None, transactions=None, sampling=None):
        """One run, for so many seconds, or transactions of each client.

        With `sampling` every transaction, or that share of them, leaves its latency for percentiles.
        """
        jobs = min(clients, os.cpu_count() or 1)
        command = [self.cluster.bindir / "pgbench", "-n", "-h", "127.0.0.1", "-p", port, "-U", USER,
                   "-c", clients, "-j", jobs, "-s", self.scale, *arguments]
        command += ["-T", seconds] if seconds else ["-t", transactions]
        prefix = self.directory / "latency"
        if sampling:
            command += ["--log", "--log-prefix", prefix]
            command += ["--sampling-rate", sampling] if sampling < 1 else []
        command = [str(word) for word in [*command, DATABASE]]
        limit = RUN_SECONDS_MAX + (seconds or 0)
        try:
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            fail(f"pgbench did not end within {limit} s: {' '.join(command)}")
        failed = re.search(r"number of failed transactions: ([1-9]\d*)", done.stdout)
        if done.returncode != 0 or failed or "aborted" in done.stderr:
            fail(f"pgbench failed: {' '.join(command)}\n{done.stdout}{done.stderr[-2000:]}")
        figures = read(done.stdout)
        if sampling:
            figures |= percentiles(latencies(prefix))
        return figures


def read(output):
    transactions = re.search(r"actually processed: (\d+)", output)
    tps = re.search(r"tps = ([\d.]+) \((?:without|including)", output)
    latency = re.search(r"latency average = ([\d.]+) ms", output)
    if not (transactions and tps and latency):
        fail(f"pgbench said something that is not understood:\n{output}")
    connecting = re.search(r"initial connection time = ([\d.]+) ms", output)
    return {
        "transactions": int(transactions.group(1)),
        "connecting_s": float(connecting.group(1)) / 1000 if connecting else 0.0,
        "tps": float(tps.group(1)),
        "latency_ms": float(latency.group(1)),
    }


def latencies(prefix):
    """Microseconds: the third word of each line. The files go."""
    found = array("l")
    for file in prefix.parent.glob(prefix.name + ".*"):
        with open(file) as lines:
            found.extend(int(line.split(" ", 3)[2]) for line in lines)
        file.unlink()
    return sorted(found)


def percentiles(sorted_us):
    count = len(sorted_us)
    at = lambda share: sorted_us[min(count - 1, int(count * share))] / 1000 if count else None
    return {
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "p999_ms": at(0.999) if count >= SAMPLES_FOR_P999 else None,
    }
