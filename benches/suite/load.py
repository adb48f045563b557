"""Owns: talking with the example load: start, ready, go, result, end. Never: looks at a proxy."""

import json
import subprocess
from contextlib import contextmanager

from .processes import fail
from .servers import PASSWORD, USER


class Load:
    """One load generator, connected and waiting."""

    def __init__(self, program, port, *arguments, cores=None):
        prefix = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        command = [*prefix, program, "--port", port, "--name", USER, "--password", PASSWORD, *arguments]
        self.command = [str(word) for word in command]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True)
        if self.read() != "ready":
            fail("load said something else than that it is ready")
        self.pid = self.process.pid

    def read(self):
        line = self.process.stdout.readline().strip()
        if not line:
            fail(f"{' '.join(self.command)} failed: {self.process.stderr.read()}")
        return line

    def go(self):
        """Its work, up to the result. The connections stay."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.read())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def connected(bench, port, *arguments, cores=None):
    load = Load(bench.options.load, port, *arguments, cores=cores)
    try:
        yield load
    finally:
        load.end()


def latencies(result):
    """Of a run's result, in the tables' units."""
    figures = {"tps": result["tps"], "latency_ms": result["mean_us"] / 1000}
    for share in ["p50", "p99", "p999"]:
        figures[f"{share}_ms"] = result[f"{share}_us"] / 1000
    return figures
