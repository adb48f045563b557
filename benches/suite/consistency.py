"""Owns: what session consistency costs, against none, and whom. Never: checks that it is kept."""

import time

from .processes import cpu_seconds
from .scrape import series, scrape, total
from .workloads import MIXED, Scripted


class Consistency(Scripted):
    """The mixed workload at two levels: the cost to the proxy, to the primary and to each replica."""

    levels = ("session", "eventual")
    clients = (1, 100, 1000)
    is_countable = False

    def __init__(self):
        # By trust: logging in is not what is asked about, and would be most of the work.
        super().__init__("consistency", "session level against eventual, on mixed", ("-M", "simple"), MIXED, auth="trust")

    def pairs(self, labels):
        return [self.levels] if len(labels) > 1 else []

    def start(self, bench, clients):
        tidegate = next((target for target in bench.targets if target.name == "tidegate"), None)
        if not tidegate:
            return {}, {"everything": "it is Tidegate that is measured, and it is no target"}
        place = lambda level: bench.place(clients, auth=self.auth, tidegate={"consistency": {"level": level}})
        return {level: tidegate.start(bench, place(level)) for level in self.levels}, {}

    def run(self, bench, running, clients):
        cluster = bench.cluster
        nodes = {port: cluster.postmaster(port) for port in cluster.ports}
        cpu = {port: cpu_seconds(pid) for port, pid in nodes.items()}
        page, began = scrape(running.http), time.monotonic()
        figures = super().run(bench, running, clients)
        seconds, after = time.monotonic() - began, scrape(running.http)
        # With those that connecting was measured with.
        transactions = figures["transactions"] + clients
        for role, ports in [("primary", cluster.ports[:1]), ("replica", cluster.ports[1:])]:
            if ports and all(nodes[port] for port in ports):
                used = sum(cpu_seconds(nodes[port]) - cpu[port] for port in ports)
                figures[f"cpu_us_{role}"] = used * 1e6 / transactions / len(ports)
            names = [f"127.0.0.1:{port}" for port in ports]
            samples = sum(grown(page, after, "tidegate_samples_total", node=name) for name in names)
            figures[f"samples_{role}"] = samples / seconds / max(1, len(ports))
        queries = grown(page, after, "tidegate_queries_total")
        figures["on_replicas"] = grown(page, after, "tidegate_queries_total", route="replica") / max(1, queries)
        return figures | pins(page, after, seconds)


def grown(before, after, name, **labels):
    return total(after, name, **labels) - total(before, name, **labels)


def pins(before, after, seconds):
    """Between two pages of metrics: how many pins ended, and how long they had been."""
    count = grown(before, after, "tidegate_pin_seconds_count")
    figures = {"pins_per_second": count / seconds}
    if not count:
        return figures
    figures["pin_mean_ms"] = grown(before, after, "tidegate_pin_seconds_sum") * 1000 / count
    buckets = {labels["le"]: 0.0 for labels, _ in series(after, "tidegate_pin_seconds_bucket")}
    for bound in buckets:
        buckets[bound] = grown(before, after, "tidegate_pin_seconds_bucket", le=bound)
    # The bound of the bucket that the slowest hundredth begins in.
    finite = sorted((float(bound), reached) for bound, reached in buckets.items() if bound != "+Inf")
    figures["pin_p99_ms"] = next((bound * 1000 for bound, reached in finite if reached >= 0.99 * count), None)
    return figures
