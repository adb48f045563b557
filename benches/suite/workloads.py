"""Owns: what a workload is, those that pgbench drives, and the list of all by name.

Never: knows how a proxy is started or how a result is printed.
"""

import math
from pathlib import Path

from .processes import cpu_seconds, resident_mb
from .targets import Place

# What connecting may take off a run, in seconds.
SHORT_CONNECTING = 0.1

SELECT = "SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
RANDOM_AID = r"\set aid random(1, 100000 * :scale)" + "\n"

PROTOCOLS = ["simple", "extended", "prepared"]

# Each statement is a transaction of its own, as an application without BEGIN has it.
MIXED = (
    RANDOM_AID + r"\set delta random(-5000, 5000)" + "\n"
    "UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;\n"
    + 9 * (RANDOM_AID + SELECT)
)
PIPELINED = RANDOM_AID + "\\startpipeline\n" + 10 * SELECT + "\\endpipeline\n"
HUNDRED_ROWS = RANDOM_AID + "SELECT aid, bid, abalance, filler FROM pgbench_accounts WHERE aid BETWEEN :aid - 99 AND :aid LIMIT 100;\n"
ALWAYS_THE_SAME = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;\n"


class Workload:
    """What is run through every target in turn. `run` is one run; it gives figures by name."""

    name = about = ""
    # The numbers of clients, where they are the workload's own and not the command line's.
    clients = None
    # Whatever the command line says.
    has_own_clients = False
    # How clients log in, where that is the workload's own.
    auth = None
    prepares = False
    is_default = False
    # Whether `fixed` can run a given number of transactions, which counting needs.
    is_countable = False

    def place(self, bench, clients):
        """What the proxies are put in front of."""
        return bench.place(clients, auth=self.auth, prepares=self.prepares)

    def start(self, bench, clients):
        """What is measured, by its name in the tables; and why others are not."""
        place = self.place(bench, clients)
        running, skipped = {}, {}
        for target in bench.targets:
            why = self.refuses(target, place) or target.refuses(place)
            if why:
                skipped[target.name] = why
            else:
                running[target.name] = target.start(bench, place)
        return running, skipped

    def refuses(self, _target, _place):
        return ""

    def pairs(self, labels):
        """Those whose figures are divided, the first's by the second's."""
        of = lambda start: [label for label in labels if label.startswith(start)]
        return [(ours, theirs) for ours in of("tidegate") for theirs in of("pgbouncer")]

    def prepare(self, bench, running, clients):
        """Once, before the first round."""

    def begin_round(self, bench, running, clients):
        """Before the first target's run of each round."""

    def run(self, bench, running, clients):
        raise NotImplementedError

    def fixed(self, bench, running, clients, transactions):
        """So many transactions of each client, unmeasured."""
        raise NotImplementedError

    def finish(self, bench):
        """Whatever `start` has set up beside the proxies is taken down."""


class Scripted(Workload):
    """Run by pgbench: a built-in or a script, by one protocol."""

    is_countable = True

    def __init__(self, name, about, arguments, script="", *, prepares=False, is_default=False, reconnects=False,
                 auth=None, sampling=1.0):
        self.name, self.about = name, about
        self.arguments, self.script = arguments, script
        self.prepares, self.is_default, self.auth = prepares, is_default, auth
        # Every transaction connects anew.
        self.reconnects = reconnects
        # The share of transactions that leave their latency; all of them where they are few.
        self.sampling = sampling

    def command(self, bench):
        arguments = list(self.arguments)
        if self.script:
            arguments += ["-f", bench.pgbench.script(self.name, self.script)]
        return arguments + (["-C"] if self.reconnects else [])

    def prepare(self, bench, running, clients):
        # Pools are filled once; what that costs is in no run.
        for proxy in running.values():
            bench.pgbench.run(proxy.port, self.command(bench), clients, transactions=1)

    def run(self, bench, running, clients):
        command, pid = self.command(bench), running.pid
        began = cpu_seconds(pid)
        seconds, connecting = bench.options.seconds, 0.0
        if not self.reconnects:
            first = bench.pgbench.run(running.port, command, clients, transactions=1)
            connecting = cpu_seconds(pid) - began
            # pgbench's clock runs from before it connects, which of many clients may take longer.
            seconds += math.ceil(max(0.0, first["connecting_s"] - SHORT_CONNECTING))
        before = resident_mb(pid) if pid else None
        connected = cpu_seconds(pid)
        figures = bench.pgbench.run(running.port, command, clients, seconds=seconds,
                                    sampling=None if self.reconnects else self.sampling)
        used = cpu_seconds(pid) - connected - connecting
        # Those that connecting was measured with.
        counted = figures["transactions"] - (0 if self.reconnects else clients)
        return figures | {
            "cpu_us": used * 1e6 / max(1, counted) if pid else None,
            "resident_before_mb": before,
            "resident_mb": resident_mb(pid) if pid else None,
        }

    def fixed(self, bench, running, clients, transactions):
        bench.pgbench.run(running.port, self.command(bench), clients, transactions=transactions)


class Literals(Workload):
    """One statement with a literal that is new each time, and with one that never changes."""

    name = "literals"
    about = "CPU of texts that are all different against one text again and again"

    def __init__(self, unique, same):
        self.unique, self.same = unique, same

    def run(self, bench, running, clients):
        unique, same = (twin.run(bench, running, clients) for twin in (self.unique, self.same))
        ratio = unique["cpu_us"] / same["cpu_us"] if same["cpu_us"] else None
        return {"cpu_us_unique": unique["cpu_us"], "cpu_us_same": same["cpu_us"], "unique_to_same": ratio}


class OfPeak(Scripted):
    """A script at a rate that is the same for everybody: a share of what pgbouncer does at most."""

    is_countable = False

    def __init__(self, *arguments, share):
        super().__init__(*arguments)
        self.share = share
        # Transactions per second; as fast as it goes while there is none.
        self.rate = None

    def prepare(self, bench, running, clients):
        super().prepare(bench, running, clients)
        if "pgbouncer" not in running:
            bench.remark(f"{self.name}: a share of the first target's peak: no pgbouncer is measured")

    def begin_round(self, bench, running, clients):
        # Afresh each time: a rate from when the machine had more time may be more than it can do now.
        reference = running.get("pgbouncer") or next(iter(running.values()))
        self.rate = None
        self.rate = self.share * self.run(bench, reference, clients)["tps"]

    def command(self, bench):
        # With a rate the latency begins when the transaction is due, not when a client gets to it.
        return super().command(bench) + (["--rate", f"{self.rate:.1f}"] if self.rate else [])


def scripted():
    yield Scripted("select-simple", "one SELECT by key, simple protocol", ("-S", "-M", "simple"), is_default=True, sampling=0.25)
    yield Scripted("select-extended", "the same, parsed each time", ("-S", "-M", "extended"), is_default=True, sampling=0.25)
    yield Scripted("select-prepared", "the same, prepared once", ("-S", "-M", "prepared"), prepares=True, is_default=True, sampling=0.25)
    yield OfPeak("p99-at-70", "select-simple at 70 % of pgbouncer's peak rate", ("-S", "-M", "simple"), share=0.7)
    yield Scripted("mixed", "1 UPDATE and 9 SELECTs, each its own transaction", ("-M", "simple"), MIXED, is_default=True)
    yield Scripted("mixed-prepared", "the same, prepared once", ("-M", "prepared"), MIXED, prepares=True)
    # Little enough for three nodes on two cores to keep up with.
    yield OfPeak("mixed-at-40", "mixed at 40 % of pgbouncer's peak rate", ("-M", "simple"), MIXED, share=0.4)
    yield Scripted("tpcb", "pgbench's TPC-B-like transaction", ("-b", "tpcb-like", "-M", "simple"), is_default=True)
    yield Scripted("pipelined", "10 SELECTs in one pipeline", ("-M", "extended"), PIPELINED)
    yield Scripted("rows-100", "one SELECT of 100 rows of 100 bytes", ("-M", "simple"), HUNDRED_ROWS)
    simple = ("-M", "simple")
    unique = Scripted("literals-unique", "SELECT with a literal that is new each time", simple, RANDOM_AID + SELECT, sampling=0.25)
    # What pgbench itself does is the same.
    same = Scripted("literals-same", "SELECT with one literal, again and again", simple, RANDOM_AID + ALWAYS_THE_SAME, sampling=0.25)
    yield from [unique, same, Literals(unique, same)]
    for auth in ["trust", "md5", "scram-sha-256"]:
        yield Scripted(f"connect-{auth.split('-')[0]}", f"connect by {auth}, SELECT 1, disconnect", ("-M", "simple"),
                       "SELECT 1;\n", reconnects=True, auth=auth)


def from_file(text):
    """A script for pgbench, as [PROTOCOL:]FILE; None if there is no such file."""
    protocol, _, path = text.rpartition(":")
    protocol = protocol or "simple"
    if protocol not in PROTOCOLS or not Path(path).is_file():
        return None
    name = f"{protocol}:{Path(path).stem}"
    return Scripted(name, path, ("-M", protocol), Path(path).read_text(), prepares=protocol == "prepared")
