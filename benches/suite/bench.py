"""Owns: the order of things: what is started, the interleaved rounds, and what comes of them.

Never: knows what a workload does, or prints.
"""

import os

from . import counting
from .pgbench import Pgbench
from .processes import Processes, note, output_of
from .report import medians, ratios, spreads
from .servers import Cluster
from .targets import SERVERS_MAX, Place


class Bench:
    def __init__(self, options, directory, targets):
        self.options = options
        self.directory = directory
        self.targets = targets
        self.processes = Processes(directory)
        # What a proxy is started by: nothing, or valgrind.
        self.prefix = []
        self.remarks = []
        self._cluster = None

    @property
    def cluster(self):
        """Started by the first workload that needs it."""
        if not self._cluster:
            self._cluster = Cluster(self.options, self.options.replicas)
            self._cluster.fill(self.options.scale)
        return self._cluster

    @property
    def pgbench(self):
        return Pgbench(self.cluster, self.directory, self.options.scale)

    def place(self, clients, auth=None, prepares=False, nodes=None, **further):
        """In front of the cluster, or of other nodes, as the command line has it."""
        nodes = tuple(nodes or self.cluster.ports)
        forgetful = any(target.forgets_statements for target in self.targets)
        # In session mode every client keeps a server. The pools stay equal.
        keeps_one_each = prepares and forgetful and clients <= SERVERS_MAX
        pool = max(self.options.pool, clients) if keeps_one_each else self.options.pool
        return Place(primary=nodes[0], nodes=nodes, pool=pool, clients=clients,
                     auth=auth or self.options.auth, prepares=prepares, **further)

    def remark(self, text):
        if text not in self.remarks:
            self.remarks.append(text)

    def setup(self):
        options = self.options
        return {
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "kernel": os.uname().release,
            "targets": {target.name: target.version() for target in self.targets},
            "commit": output_of(["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty"]),
            **{key: getattr(options, key) for key in ["rounds", "seconds", "scale", "replicas", "pool", "auth", "workers"]},
        }

    def measure(self, workload, clients):
        """Every target in turn, in rounds."""
        options = self.options
        self.remarks = []
        try:
            running, skipped = workload.start(self, clients)
            labels = list(running)
            workload.prepare(self, running, clients)
            runs = {label: [] for label in labels}
            for number in range(options.rounds):
                workload.begin_round(self, running, clients)
                # A different one first each time: who runs first finds other caches.
                shift = number % max(1, len(labels))
                for label in labels[shift:] + labels[:shift]:
                    note(f"{workload.name}, {clients} clients, round {number + 1}: {label}")
                    runs[label].append(workload.run(self, running[label], clients))
            for label in labels:
                if running[label].remark:
                    self.remark(f"{label} {running[label].remark}")
            counts = self.counts(workload, running, clients)
        finally:
            self.processes.stop()
            workload.finish(self)
        return {
            "workload": workload.name,
            "about": workload.about,
            "clients": clients,
            "medians": {label: medians(of) | counts.get(label, {}) for label, of in runs.items()},
            "spreads": {label: spreads(of) for label, of in runs.items()},
            "ratios": ratios(runs, counts, workload.pairs(labels)),
            "skipped": skipped,
            "remarks": self.remarks,
            "runs": runs,
        }

    def counts(self, workload, running, clients):
        """What is counted beside the rounds, if that was asked for."""
        found = {label: {} for label in running}
        if not workload.is_countable:
            return found
        if self.options.syscalls:
            for label in running:
                if running[label].pid:
                    note(f"{workload.name}, {clients} clients, system calls: {label}")
                    found[label] |= counting.syscalls(self, workload, running[label], clients)
        if self.options.instructions:
            self.processes.stop()
            for target in self.targets:
                if target.name in running and running[target.name].pid and target.program != "external":
                    note(f"{workload.name}, {clients} clients, instructions: {target.name}")
                    found[target.name] |= counting.instructions(self, workload, target, clients)
        return found

    def stop(self):
        self.processes.stop()
        if self._cluster:
            self._cluster.stop()
