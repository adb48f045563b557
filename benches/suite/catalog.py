"""Owns: the workloads by name. Never: knows what any of them does."""

from .null import Cores, Null
from .workloads import AtRate, scripted

WORKLOADS = {
    workload.name: workload
    for workload in [
        *scripted(),
        AtRate(),
        Null("simple"),
        Null("prepared"),
        Cores(),
    ]
}


def chosen(text):
    """Those of a comma-separated list; KeyError of a name that is none."""
    if text == "all":
        return list(WORKLOADS.values())
    if text == "default":
        return [workload for workload in WORKLOADS.values() if workload.is_default]
    return [WORKLOADS[name] for name in text.split(",")]
