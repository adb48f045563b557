"""Owns: the processes that the suite starts, and what /proc says of them.

Never: signals a process that it has not started. A proxy may be many processes; whatever is asked
of one here is asked of it and all of its descendants.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

READY_SECONDS_MAX = 120
END_SECONDS_MAX = 15


class Processes:
    """Those that run now, each with a log of its own in `directory`."""

    def __init__(self, directory):
        self.directory = directory
        self.running = []

    def start(self, name, command, user=None, **further):
        with open(self.directory / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command], user=user, cwd="/", start_new_session=True,
                **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **further})
        self.running.append(process)
        return process

    def end(self, pid):
        for process in [p for p in self.running if p.pid == pid]:
            # To pgbouncer and pgpool SIGINT is the word for ending in good order; the others take it.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.running.remove(process)

    def stop(self):
        for process in reversed(list(self.running)):
            self.end(process.pid)

    def wait_for(self, name, process, condition):
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self.directory / f"{name}.log").read_text(errors="replace")
                fail(f"{name} did not become ready; its log ends in:\n{log[-2000:]}")
            time.sleep(0.02)


def fail(text):
    sys.exit(f"compare: {text}")


def note(text):
    """What is going on, for whoever waits; not a part of the output."""
    if sys.stderr.isatty():
        print("\r\033[K" + (f"{text} …" if text else ""), end="", file=sys.stderr, flush=True)


def output_of(command, **further):
    """What a command says, on either stream; the empty text if it can't be run."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **further)
    except OSError:
        return ""
    return (done.stdout + done.stderr).strip()


def find(pattern, text):
    match = re.search(pattern, text)
    if not match:
        fail(f"no {pattern!r} in:\n{text}")
    return match.group(1)


def free_port():
    """Below Linux's ephemeral range: no outgoing connection takes it before it is listened on."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def can_connect(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def tree(pid):
    """The process and its descendants. One that ends meanwhile is left out."""
    found, ahead = [], [pid]
    while ahead:
        current = ahead.pop()
        found.append(current)
        for thread, _ in threads(current):
            try:
                children = Path(f"/proc/{current}/task/{thread}/children").read_text()
            except OSError:
                continue
            ahead += [int(child) for child in children.split()]
    return found


def threads(pid):
    """The id and the name of each thread of one process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            found.append((int(task.name), (task / "comm").read_text().strip()))
        except OSError:
            continue
    return sorted(found)


def cpu_seconds(pid):
    """User and system time, of threads and waited-for children that have ended as well."""
    if not pid:
        return 0.0
    ticks = 0
    for process in tree(pid):
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            continue
        # After the name, which may hold anything, the state is the first field.
        fields = stat.rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mb(pid):
    """Resident memory; of several processes, pages that they share are counted once."""
    processes = tree(pid)
    key = "Rss" if len(processes) == 1 else "Pss"
    return sum(field(process, "smaps_rollup", key) for process in processes) / 1024


def forget_peak(pid):
    """Lets the peak begin at what is resident now."""
    for process in tree(pid):
        try:
            Path(f"/proc/{process}/clear_refs").write_text("5")
        except OSError:
            continue


def peak_mb(pid):
    return sum(field(process, "status", "VmHWM") for process in tree(pid)) / 1024


def field(process, file, key):
    """A number of kB; 0 of a process that has ended."""
    try:
        text = Path(f"/proc/{process}/{file}").read_text()
    except OSError:
        return 0
    match = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match.group(1)) if match else 0


def pin(pid, cores):
    """Binds every thread of a tree of processes to `cores`; threads to come inherit it."""
    for process in tree(pid):
        for thread, _ in threads(process):
            try:
                os.sched_setaffinity(thread, cores)
            except ProcessLookupError:
                continue
