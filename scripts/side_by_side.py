"""What is run beside each other: a cluster, and Tidegate in front of it.

Owns: starting them, and that they go with whoever started them. Never: compares anything.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

START_SECONDS_MAX = 60


def build():
    """Builds what is started here; what is there already is left as it is."""
    command = ["cargo", "build", "--locked", "--quiet", "--bin", "tidegate", "--example", "local_cluster"]
    # Standard output is the report's.
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode != 0:
        fail(f"{' '.join(command)} failed")


def target_directory():
    return ROOT / os.environ.get("CARGO_TARGET_DIR", "target")


class Cluster:
    """A primary and its standbys, which go when this ends or dies."""

    def __init__(self, replicas, settings):
        self.replicas = replicas
        self.settings = settings

    def __enter__(self):
        program = target_directory() / "debug/examples/local_cluster"
        self.process = subprocess.Popen(
            [program, str(self.replicas), *self.settings], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )
        line = self.process.stdout.readline()
        if not line:
            fail("the cluster did not start")
        told = json.loads(line)
        self.primary, self.ports = told["primary"], told["ports"]
        self.bindir, self.directory = Path(told["bindir"]), Path(told["directory"])
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def copy_logs(self, to):
        for log in self.directory.glob("server*.log"):
            shutil.copy(log, to)


class Tidegate:
    """The proxy in front of a cluster, with these sections in its configuration, which is put into `directory`
    together with its log."""

    def __init__(self, sections, cluster, directory):
        self.sections = sections
        self.cluster = cluster
        self.directory = directory

    def __enter__(self):
        self.port, self.http_port = free_port(), free_port()
        nodes = "".join(f'[[cluster.node]]\naddress = "127.0.0.1:{port}"\n' for port in self.cluster.ports)
        config = self.directory / "tidegate.toml"
        config.write_text(f"""\
[listen]
address = "127.0.0.1:{self.port}"
[http]
address = "127.0.0.1:{self.http_port}"
{toml(self.sections)}
[[auth.user]]
name = "postgres"
password = "postgres"
[[cluster]]
name = "main"
monitor = {{ user = "tidegate", password = "tidegate", database = "postgres" }}
{nodes}""")
        program = target_directory() / "debug/tidegate"
        self.log = self.directory / "tidegate.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [program, "run", "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.knows_nodes():
            if not self.is_running() or time.monotonic() > deadline:
                self.__exit__()
                fail(f"tidegate did not become ready; see {self.log}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        if self.is_running():
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def is_running(self):
        return self.process.poll() is None

    def knows_nodes(self):
        try:
            up = re.findall(r"^tidegate_up\{.*\} 1$", self.metrics(), re.MULTILINE)
        except OSError:
            return False
        return len(up) == len(self.cluster.ports)

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def routes(self):
        """How many queries went where, and why: `{"replica": {"fresh": 1}, …}`."""
        routes = {"replica": {}, "primary": {}}
        for labels, count in re.findall(r"^tidegate_queries_total\{(.*)\} (\d+)$", self.metrics(), re.MULTILINE):
            label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if int(count):
                routes.setdefault(label["route"], {})[label["reason"]] = int(count)
        return routes


def toml(sections):
    lines = []
    for name, section in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.items()]
    return "\n".join(lines)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def note(text):
    """What is going on, for whoever waits; not a part of the report."""
    if sys.stderr.isatty():
        print("\r\033[K" + (f"{text} …" if text else ""), end="", file=sys.stderr, flush=True)


def fail(message):
    note("")
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(2)
