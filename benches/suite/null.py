"""Owns: workloads in front of a server that does nothing, so that the proxy is what is measured.

Never: pins or slows anything but the processes of these workloads.
"""

import json
import os
import subprocess

from . import cgroup
from .load import connected, latencies
from .processes import cpu_seconds, fail, pin, resident_mb, threads
from .workloads import Workload


class NullServer:
    """The example null_server."""

    def __init__(self, options):
        self.process = subprocess.Popen([str(options.null_server)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, start_new_session=True)
        line = self.process.stdout.readline()
        if not line:
            fail("the null server did not start")
        self.port, self.pid = json.loads(line)["port"], self.process.pid

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


class Null(Workload):
    """One core for the load and the null server, the other for the proxy."""

    is_countable = True
    # In seconds: a proxy may see only by and by how much there is to do.
    warm_up = 0.5
    # Beside --workers: the proxy has one core.
    workers = 1

    def __init__(self, protocol):
        self.name = f"null-{protocol}"
        self.about = f"a server that answers at once, {protocol} statements; one core for the proxy"
        self.protocol = protocol
        self.prepares = protocol == "prepared"
        self.server = None

    def place(self, bench, clients):
        if not self.server:
            self.server = NullServer(bench.options)
        return bench.place(clients, prepares=self.prepares, nodes=(self.server.port,), workers=self.workers)

    def refuses(self, target, _place):
        # Pgpool-II asks its nodes what a null server does not know; others run elsewhere.
        return "it needs real servers" if target.name.startswith("pgpool") or target.program == "external" else ""

    def prepare(self, bench, running, clients):
        self.cores = sorted(os.sched_getaffinity(0))
        if len(self.cores) < 2:
            bench.remark("there is one core: nothing is pinned, and the proxy shares it")
            return
        self.pin([self.cores[0]], self.server.pid)
        for proxy in running.values():
            if proxy.pid:
                self.pin([self.cores[1]], proxy.pid)

    def pin(self, cores, pid):
        pin(pid, cores)

    def arguments(self, clients):
        return ["run", "--clients", clients, "--protocol", self.protocol]

    def run(self, bench, running, clients):
        cores = self.cores[:1] if len(self.cores) > 1 else None
        pid = running.pid
        arguments = [*self.arguments(clients), "--warm-up", self.warm_up, "--seconds", bench.options.seconds]
        with connected(bench, running.port, *arguments, cores=cores) as load:
            behind = [self.server.pid, load.pid]
            began, began_behind = cpu_seconds(pid), sum(map(cpu_seconds, behind))
            result = load.go()
            used, used_behind = cpu_seconds(pid) - began, sum(map(cpu_seconds, behind)) - began_behind
            figures = latencies(result)
            figures["load_busy"] = used_behind / result["seconds"]
            if pid:
                figures["cpu_us"] = used * 1e6 / max(1, result["transactions"])
                figures["busy"] = used / result["seconds"]
                figures["resident_mb"] = resident_mb(pid)
        return figures

    def fixed(self, bench, running, clients, transactions):
        with connected(bench, running.port, *self.arguments(clients), "--transactions", transactions) as load:
            load.go()

    def finish(self, bench):
        if self.server:
            self.server.stop()
            self.server = None


class Cores(Null):
    """Throughput by the number of cores, where each is a share of one: a thread with a quota."""

    is_countable = False
    # Enough for every thread to have always something to do.
    clients = (64,)
    # Of a core. Two of them, the load and the null server together fit into two cores.
    share = 0.3
    counts = (1, 2)
    warm_up = 2

    def __init__(self):
        super().__init__("simple")
        self.name = "cores"
        self.about = f"null-simple with {self.share:.0%} of a core for each thread of the proxy: what a second one brings"
        self.groups = []

    def start(self, bench, clients):
        why = cgroup.unusable()
        if why:
            return {}, {"everybody": why}
        targets = {target.name: target for target in bench.targets}
        running, skipped = {}, {}
        place = self.place(bench, clients)
        for name, target in targets.items():
            if name.startswith("pgbouncer"):
                running[name] = self.slowed(target.start(bench, place), 1)
        if "tidegate" in targets:
            for count in self.counts:
                self.workers = count
                place = self.place(bench, clients)
                # A quota keeps a thread from ever having too much to do.
                place.tidegate["listen"] = {"workers_min": count}
                label = self.label(count)
                running[label] = self.slowed(targets["tidegate"].start(bench, place), count)
        return running, skipped

    def label(self, count):
        return f"tidegate on {count}"

    def pairs(self, labels):
        one, two = map(self.label, self.counts)
        return super().pairs(labels) + ([(two, one)] if two in labels else [])

    def slowed(self, running, count):
        """Each worker in a group of its own; whatever other threads there are with the first."""
        groups = cgroup.ThreadGroups(running.pid, self.share, count)
        self.groups.append(groups)
        for thread, name in threads(running.pid):
            _, _, index = name.partition("worker-")
            groups.add(int(index) % count if index.isdigit() else 0, thread)
        return running

    def prepare(self, bench, running, clients):
        # The quota is the limit: where a thread runs is the kernel's choice.
        self.cores = []

    def finish(self, bench):
        super().finish(bench)
        bench.processes.stop()
        for group in self.groups:
            group.remove()
        self.groups = []
