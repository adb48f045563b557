"""Owns: shares of a core, by the kernel's CPU quotas: control groups of version 1 or 2.

Never: touches a group that it has not made, or leaves one behind.
"""

import os
import time
from pathlib import Path

# Short, so that whoever has used up its share waits for milliseconds.
PERIOD_US = 10_000

REMOVE_SECONDS_MAX = 5

V1 = Path("/sys/fs/cgroup/cpu")
V2 = Path("/sys/fs/cgroup")


def version():
    """Of the hierarchy that has the CPU controller: 1, 2, or None."""
    if (V1 / "cpu.cfs_quota_us").exists() or (V1 / "cpu.cfs_period_us").exists():
        return 1
    try:
        return 2 if "cpu" in (V2 / "cgroup.subtree_control").read_text().split() else None
    except OSError:
        return None


def unusable():
    """Why there can be no quotas here; the empty text if there can."""
    if not version():
        return f"no CPU quotas: neither {V1} nor {V2} has the kernel's CPU controller"
    try:
        probe = Group(f"tidegate-bench-{os.getpid()}-probe", 0.5)
    except OSError as error:
        return f"no CPU quotas: no control group can be made ({error}); root can"
    probe.remove()
    return ""


class Group:
    """Processes that together get `share` of a core; without one, as much as there is."""

    def __init__(self, name, share=None, parent=None):
        self.version = version()
        self.root = V1 if self.version == 1 else V2
        self.path = (parent.path if parent else self.root) / name
        self.path.mkdir()
        if parent and self.version == 2:
            (self.path / "cgroup.type").write_text("threaded")
        if share:
            self.limit(share)

    def limit(self, share):
        quota = int(PERIOD_US * share)
        if self.version == 1:
            (self.path / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self.path / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (self.path / "cpu.max").write_text(f"{quota} {PERIOD_US}")

    def add_process(self, pid):
        """With all its threads; its children to come inherit it."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def add_thread(self, thread):
        (self.path / ("tasks" if self.version == 1 else "cgroup.threads")).write_text(str(thread))

    def remove(self):
        """Once its processes have ended, or with a little patience for those that are ending."""
        deadline = time.monotonic() + REMOVE_SECONDS_MAX
        while self.path.exists():
            try:
                self.path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


class ThreadGroups:
    """A quota of its own for each of several groups of one process's threads."""

    def __init__(self, pid, share, count):
        name = f"tidegate-bench-{pid}"
        self.parent = Group(name)
        if self.parent.version == 2:
            # Its threads can be apart only where the whole process is.
            (self.parent.path / "cgroup.subtree_control").write_text("+cpu")
        self.groups = [Group(str(index), share, self.parent) for index in range(count)]
        self.parent.add_process(pid)

    def add(self, index, thread):
        self.groups[index].add_thread(thread)

    def remove(self):
        for group in [*self.groups, self.parent]:
            group.remove()
