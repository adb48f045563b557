"""Owns: what is counted rather than timed: system calls and instructions per transaction.

Never: takes a time; under strace and valgrind there is none worth having. Each count is the
difference of a long run and a short one, so starting and connecting are not in it.
"""

import re
import signal
import subprocess
import time
from pathlib import Path

from .processes import fail, threads, tree

# Transactions of all clients together, of the short run and of the long one.
TRACED = (200, 2200)
# A login to a server is millions of instructions: the short run must need as many as the long one,
# or nearly, and the rest be divided by much.
EMULATED = (2000, 22000)

SENDS = {"write", "writev", "send", "sendto", "sendmsg", "sendmmsg", "splice"}
RECEIVES = {"read", "readv", "recv", "recvfrom", "recvmsg", "recvmmsg"}
WAITS = {"epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6"}


def per_transaction(clients, lengths, count):
    """`count` gives counts by name for so many transactions of each client."""
    short, long = (max(1 + index, length // clients) for index, length in enumerate(lengths))
    few, many = count(short), count(long)
    transactions = (long - short) * clients
    return {name: (number - few.get(name, 0)) / transactions for name, number in many.items()}


def syscalls(bench, workload, running, clients):
    """Of a proxy that runs; it is traced and let go."""
    def count(transactions):
        with Trace(bench.directory, running.pid) as trace:
            workload.fixed(bench, running, clients, transactions)
        return trace.calls

    calls = per_transaction(clients, TRACED, count)
    kinds = {"sends": SENDS, "receives": RECEIVES, "waits": WAITS}
    figures = {name: sum(calls.get(call, 0) for call in kind) for name, kind in kinds.items()}
    known = SENDS | RECEIVES | WAITS
    figures["other_calls"] = sum(number for call, number in calls.items() if call not in known)
    return figures


class Trace:
    """strace, on a tree of processes, for as long as it is entered."""

    def __init__(self, directory, pid):
        self.pids = tree(pid)
        self.out = directory / "strace.out"
        self.calls = {}

    def __enter__(self):
        attached = [word for pid in self.pids for word in ("-p", str(pid))]
        self.process = subprocess.Popen(["strace", "-f", "-c", "-o", str(self.out), *attached],
                                        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + 10
        while not all(is_traced(thread) for pid in self.pids for thread, _ in threads(pid)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                fail(f"strace can't attach: {self.process.stderr.read().decode()}")
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.communicate()
        # % time, seconds, microseconds per call, calls, errors if any, name.
        for line in self.out.read_text().splitlines():
            words = line.split()
            if len(words) >= 5 and words[3].isdigit() and words[-1] != "total":
                self.calls[words[-1]] = int(words[3])


def is_traced(thread):
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{thread}/status").read_text()
    except OSError:
        return True


def instructions(bench, workload, target, clients):
    """Of a proxy that is started for it, under valgrind, without the kernel's share."""
    directory = bench.directory / "callgrind"
    directory.mkdir(exist_ok=True)
    # pgbouncer writes there as another user.
    directory.chmod(0o777)
    place = workload.place(bench, clients)

    def count(transactions):
        bench.prefix = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={directory}/%p"]
        running = target.start(bench, place)
        bench.prefix = []
        workload.fixed(bench, running, clients, transactions)
        bench.processes.end(running.pid)
        total = 0
        for file in directory.iterdir():
            match = re.search(r"^(?:totals|summary): (\d+)", file.read_text(errors="replace"), re.MULTILINE)
            total += int(match.group(1)) if match else 0
            file.unlink()
        return {"instructions": total}

    return per_transaction(clients, EMULATED, count)
