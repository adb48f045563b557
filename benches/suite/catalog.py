"""Owns: the workloads by name. Never: knows what any of them does."""

from .bulk import bulk
from .consistency import Consistency
from .idle import Idle
from .null import Cores, Null
from .scaling import Scaling
from .workloads import from_file, scripted

WORKLOADS = {
    workload.name: workload
    for workload in [
        *scripted(),
        *bulk(),
        Idle(10000),
        Null("simple"),
        Null("prepared"),
        Cores(),
        Scaling(),
        Consistency(),
    ]
}


def chosen(text):
    """Those of a comma-separated list, of names and files; KeyError of what is neither."""
    if text == "all":
        return list(WORKLOADS.values())
    if text == "default":
        return [workload for workload in WORKLOADS.values() if workload.is_default]
    return [WORKLOADS.get(name) or Idle.named(name) or from_file(name) or WORKLOADS[name] for name in text.split(",")]
