"""Owns: what clients cost that do nothing. Never: measures a proxy that has served others before."""

import re
import time
from dataclasses import dataclass

from .load import connected
from .processes import resident_mb
from .targets import Place, Target
from .workloads import Workload

# For what is given back only once clients have been quiet for a while.
SETTLE_SECONDS = 2


@dataclass(frozen=True)
class Pending:
    """A target that each run starts anew: memory once used by a process is seldom given back."""

    target: Target
    place: Place
    pid: None = None
    remark: str = ""


class Idle(Workload):
    """So many clients that have logged in and run one query each."""

    has_own_clients = True

    def __init__(self, count):
        self.name = f"idle-{count}"
        self.about = f"resident memory for each of {count} idle clients that have run a query (idle-N: of N)"
        self.clients = (count,)

    @staticmethod
    def named(name):
        match = re.fullmatch(r"idle-([1-9]\d*)", name)
        return Idle(int(match.group(1))) if match else None

    def refuses(self, target, place):
        return "there is no process to look at" if target.name == "direct" or target.program == "external" else ""

    def start(self, bench, clients):
        place = self.place(bench, clients)
        skipped = {target.name: self.refuses(target, place) or target.refuses(place) for target in bench.targets}
        chosen = {target.name: Pending(target, place) for target in bench.targets if not skipped[target.name]}
        return chosen, {name: why for name, why in skipped.items() if why}

    def run(self, bench, running, clients):
        proxy = running.target.start(bench, running.place)
        # The servers of the pool are opened by these, and are no cost of a client's.
        with connected(bench, proxy.port, "idle", "--clients", running.place.pool) as load:
            load.go()
            before = resident_mb(proxy.pid)
        with connected(bench, proxy.port, "idle", "--clients", clients) as load:
            result = load.go()
            time.sleep(SETTLE_SECONDS)
            after = resident_mb(proxy.pid)
        bench.processes.end(proxy.pid)
        return {
            "kb_per_client": (after - before) * 1024 / clients,
            "resident_before_mb": before,
            "resident_mb": after,
            "open_seconds": result["seconds"],
        }
