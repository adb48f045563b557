"""Owns: how read throughput grows with replicas, each slowed so that several fit on few cores.

Never: touches the cluster of the other workloads; it has one of its own.
"""

import time

from . import cgroup
from .load import connected, latencies
from .processes import cpu_seconds, fail, note, tree
from .servers import Cluster
from .targets import Place
from .workloads import Workload

CATCH_UP_SECONDS_MAX = 120
WARM_UP_SECONDS = 2


class Scaling(Workload):
    """Reads through a Tidegate that knows one, two or four of four replicas."""

    name = "scaling"
    counts = (1, 2, 4)
    # Of a core, for all processes of a replica. Four of them, the proxy and the load fit into two.
    share = 0.15
    clients = (64,)

    def __init__(self):
        self.about = f"reads with {', '.join(map(str, self.counts))} replicas that have {self.share:.0%} of a core each"
        self.cluster = None
        self.groups = []
        self.postmasters = []

    @staticmethod
    def label(count):
        return f"{count} replica{'s' if count > 1 else ''}"

    def pairs(self, labels):
        first, *others = labels or [None]
        return [(other, first) for other in others]

    def start(self, bench, clients):
        why = cgroup.unusable() or ("it makes a cluster of its own, and --nodes names another" if bench.options.nodes else "")
        tidegate = next((target for target in bench.targets if target.name == "tidegate"), None)
        if why or not tidegate:
            return {}, {"everything": why or "it is Tidegate that is measured, and it is no target"}
        self.cluster = Cluster(bench.options, max(self.counts))
        self.cluster.fill(bench.options.scale)
        primary, *replicas = self.cluster.ports
        self.wait_for_replicas(replicas)
        self.slow_down(replicas)
        running = {}
        for count in self.counts:
            place = Place(primary=primary, nodes=(primary, *replicas[:count]), pool=bench.options.pool, clients=clients,
                          auth=bench.options.auth, tidegate={"routing": {"read_primary": "never"}})
            running[self.label(count)] = tidegate.start(bench, place)
        return running, {}

    def wait_for_replicas(self, replicas):
        wanted = self.cluster.sql("SELECT pg_current_wal_insert_lsn()")
        behind = f"SELECT pg_last_wal_replay_lsn() < '{wanted}'"
        deadline = time.monotonic() + CATCH_UP_SECONDS_MAX
        note("waiting for the replicas to catch up")
        while any(self.cluster.sql(behind, port=port) != "f" for port in replicas):
            if time.monotonic() > deadline:
                fail("the replicas did not catch up")
            time.sleep(0.2)

    def slow_down(self, replicas):
        """Every process of a replica in its group, those to come included."""
        for port in replicas:
            postmaster = self.cluster.postmaster(port)
            group = cgroup.Group(f"tidegate-bench-{postmaster}", self.share)
            self.groups.append(group)
            self.postmasters.append(postmaster)
            for pid in tree(postmaster):
                group.add_process(pid)

    def prepare(self, bench, running, clients):
        # Logging in to a slow replica is slow: pools are full and tables in memory before it counts.
        for proxy in running.values():
            with self.load(bench, proxy, clients, WARM_UP_SECONDS) as load:
                load.go()

    def load(self, bench, proxy, clients, seconds):
        rows = bench.options.scale * 100_000
        return connected(bench, proxy.port, "run", "--clients", clients, "--rows", rows, "--seconds", seconds)

    def run(self, bench, running, clients):
        with self.load(bench, running, clients, bench.options.seconds) as load:
            measured = {"cpu": [running.pid], "load": [load.pid], "replicas": self.postmasters}
            before = {name: sum(map(cpu_seconds, pids)) for name, pids in measured.items()}
            result = load.go()
            used = {name: sum(map(cpu_seconds, pids)) - before[name] for name, pids in measured.items()}
        return latencies(result) | {
            "cpu_us": used["cpu"] * 1e6 / max(1, result["transactions"]),
            "busy": used["cpu"] / result["seconds"],
            "load_busy": used["load"] / result["seconds"],
            "replicas_busy": used["replicas"] / result["seconds"],
        }

    def finish(self, bench):
        if self.cluster:
            self.cluster.stop()
        for group in self.groups:
            group.remove()
        self.cluster, self.groups, self.postmasters = None, [], []
