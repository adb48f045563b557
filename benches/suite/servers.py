"""Owns: the PostgreSQL cluster that is measured on. Never: starts a proxy."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from .processes import fail, field, find, note, output_of, tree

# Enough for the pools of every proxy together.
CONNECTIONS_MAX = 3000

USER = DATABASE = PASSWORD = "app"


def environment():
    """Ours, without what would tell libpq to go elsewhere."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return {**clean, "PGPASSWORD": PASSWORD}


class Cluster:
    """A primary and its standbys, made by the example local_cluster, or there already."""

    def __init__(self, options, replicas, settings=()):
        self.process = None
        if options.nodes:
            self.ports = options.nodes
            self.primary = self.ports[0]
            self.directory = None
            self.bindir = Path(shutil.which("pgbench") or fail("there is no pgbench on PATH")).parent
            return
        note(f"starting a cluster of {replicas + 1}")
        self.process = subprocess.Popen(
            [str(options.cluster), str(replicas), f"max_connections={CONNECTIONS_MAX}", *settings],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        line = self.process.stdout.readline()
        if not line:
            fail("the cluster did not start")
        cluster = json.loads(line)
        self.primary, self.ports = cluster["primary"], cluster["ports"]
        self.directory, self.bindir = Path(cluster["directory"]), Path(cluster["bindir"])
        if not (self.bindir / "pgbench").exists():
            fail(f"there is no pgbench in {self.bindir}")

    def fill(self, scale):
        note("filling its tables")
        output = self.run("pgbench", "-i", "-q", "-s", scale, DATABASE)
        find(r"(done in)", output)

    def run(self, program, *arguments, port=None):
        command = [self.bindir / program, "-h", "127.0.0.1", "-p", port or self.primary, "-U", USER, *arguments]
        return output_of(command, env=environment())

    def sql(self, text, port=None):
        return self.run("psql", "-XAtqc", text, DATABASE, port=port)

    def version(self):
        return self.sql("SHOW server_version")

    def postmaster(self, port):
        """The process that all servers of a node descend from."""
        if not self.directory:
            return None
        for file in self.directory.glob("*/postmaster.pid"):
            lines = file.read_text().split("\n")
            if lines[3].strip() == str(port):
                return int(lines[0])
        return fail(f"no node of {self.directory} has the port {port}")

    def resident_mb(self):
        pids = [pid for port in self.ports if (pid := self.postmaster(port))]
        return sum(field(p, "smaps_rollup", "Pss") for pid in pids for p in tree(pid)) / 1024

    def stop(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()
