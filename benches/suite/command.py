"""Owns: the command line, and building what is run. Never: measures."""

import argparse
import json
import os
import resource
import subprocess
import tempfile
from pathlib import Path

from . import catalog, targets
from .bench import Bench
from .processes import fail, note
from .report import print_result, print_setup

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ["local_cluster", "null_server", "load"]
FILES = 65536


def main(doc):
    options = parse_options(doc)
    if options.nodes:
        options.replicas = len(options.nodes) - 1
    raise_file_limit()
    build(options)
    known = targets.known(options.tidegate, options.target or [])
    chosen, missing = choose(known, options)
    with tempfile.TemporaryDirectory(prefix="tidegate-compare-") as directory:
        # Its programs may run as another user than root.
        os.chmod(directory, 0o755)
        bench = Bench(options, Path(directory), chosen)
        try:
            run(bench, options, missing)
        finally:
            note("")
            bench.stop()


def run(bench, options, missing):
    setup, results = bench.setup(), []
    if not options.json:
        print_setup(setup, missing)
    for workload in options.workloads:
        asked = None if workload.has_own_clients else options.clients
        for clients in asked or workload.clients or [16]:
            results.append(bench.measure(workload, clients))
            if not options.json:
                note("")
                print_result(results[-1])
    if options.json:
        print(json.dumps({"setup": setup, "missing": missing, "results": results}, indent=2))


def parse_options(doc):
    summary, _, rest = doc.partition("\n\n")
    listed = "\n".join(f"  {w.name:<18} {w.about}{' *' if w.is_default else ''}" for w in catalog.WORKLOADS.values())
    parser = argparse.ArgumentParser(
        description=summary, epilog=f"{rest}\nworkloads (* by default; all of them: all):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(number) for number in text.split(",")]
    add = parser.add_argument
    add("--workloads", type=chosen_workloads, default=chosen_workloads("default"), help="names, scripts for pgbench ([PROTOCOL:]FILE), or all")
    add("--clients", type=numbers, help="one number or several (16, or the workload's own)")
    add("--rounds", type=int, default=3, help="runs of each (3)")
    add("--seconds", type=int, default=3, help="length of a run (3)")
    add("--scale", type=int, default=10, help="pgbench's scale: 100,000 accounts each (10)")
    add("--replicas", type=int, default=2, help="standbys that Tidegate splits over (2); 0 compares pooling alone")
    add("--pool", type=int, default=20, help="servers of a pool (20)")
    add("--auth", choices=["scram-sha-256", "md5", "trust"], default="scram-sha-256", help="of clients, on every proxy")
    add("--workers", type=int, default=0, help="Tidegate's threads (0: one per core; pgbouncer has one)")
    add("--targets", type=lambda text: text.split(","), help="names (every one that is installed)")
    add("--target", type=external, action="append", metavar="NAME=PORT:PID",
        help="a proxy that runs already, in front of --nodes; may be given again")
    add("--nodes", type=numbers, metavar="PORT,…",
        help="measure on nodes that run already, the primary first, as local_cluster prints them; "
        "pgbench's tables in the database app are made anew")
    add("--megabytes", type=int, default=1000, help="of each result and copy of the bulk workloads (1000)")
    add("--syscalls", action="store_true", help="also count system calls per transaction, by strace")
    add("--instructions", action="store_true", help="also count instructions per transaction, by valgrind")
    add("--tidegate", type=Path, help="a built tidegate, in place of building one with --release")
    add("--json", action="store_true", help="print every run as JSON")
    return parser.parse_args()


def chosen_workloads(text):
    try:
        return catalog.chosen(text)
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"there is no workload {error}; there are {', '.join(catalog.WORKLOADS)}") from None


def external(text):
    name, _, place = text.partition("=")
    port, _, pid = place.partition(":")
    if not (name and port.isdigit() and pid.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PORT:PID")
    return name, int(port), int(pid)


def choose(known, options):
    """The targets to measure; and why others that are known can't be. By name they have to be there."""
    wanted = options.targets or list(known)
    for name in wanted:
        if name not in known:
            fail(f"there is no target {name!r}; there are {', '.join(known)}")
        if options.targets and known[name].missing:
            fail(f"{name} is {known[name].missing}; scripts/setup --bench installs it")
    if options.target and not options.nodes:
        fail("--target names a proxy in front of nodes that run already: say which by --nodes")
    missing = {name: known[name].missing for name in wanted if known[name].missing}
    return [known[name] for name in wanted if not known[name].missing], missing


def raise_file_limit():
    """Thousands of clients have thousands of sockets; every process started here inherits it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in [max(FILES, hard), hard]:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
        except (ValueError, OSError):
            continue


def build(options):
    command = ["cargo", "build", "--release", "--locked", "--quiet"]
    command += [word for example in EXAMPLES for word in ("--example", example)]
    directory = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    if not options.tidegate:
        command += ["--bin", "tidegate"]
        options.tidegate = directory / "tidegate"
    # Whatever is started is started elsewhere.
    options.tidegate = options.tidegate.resolve()
    note("building")
    subprocess.run(command, cwd=ROOT, check=True)
    options.cluster = directory / "examples" / "local_cluster"
    options.null_server = directory / "examples" / "null_server"
    options.load = directory / "examples" / "load"
