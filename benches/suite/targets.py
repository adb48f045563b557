"""Owns: what is measured: each proxy's name, its configuration and its start. Never: drives load."""

import os
import re
import shutil
from dataclasses import dataclass, field

from .processes import can_connect, fail, free_port, output_of
from .scrape import scrape
from .servers import DATABASE, PASSWORD, USER

# From this version on pgbouncer keeps prepared statements in transaction mode.
PGBOUNCER_PREPARES = (1, 21)

# Where PostgreSQL itself checks the password, it has its own way.
CHECKED_BY_POSTGRES = "logs clients in by scram-sha-256, as PostgreSQL does"

# Servers of one proxy. All proxies keep theirs while they take turns.
SERVERS_MAX = 500


@dataclass(frozen=True)
class Place:
    """What a proxy is put in front of, and what is asked of it."""

    primary: int
    nodes: tuple
    pool: int = 20
    clients: int = 16
    auth: str = "scram-sha-256"
    # Whether clients rely on named prepared statements. A pgbouncer that knows none in transaction
    # mode then runs in session mode, and every proxy has a pool of one server for each client.
    prepares: bool = False
    workers: int = 0
    # Tables of Tidegate's configuration, over those that are written anyway.
    tidegate: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """Where clients connect, and the process whose tree is measured: none for PostgreSQL itself."""

    port: int
    pid: int | None = None
    http: int | None = None
    remark: str = ""


class Target:
    """One way to the servers. `missing` says why it can't be had here, if it can't."""

    # A server of its own for each client.
    is_one_to_one = False
    # In transaction mode it knows no named prepared statements.
    forgets_statements = False

    def __init__(self, name, program=None):
        self.name = name
        self.program = program
        self.missing = "" if program else "not installed"

    def version(self):
        lines = output_of([self.program, "--version"]).splitlines()
        return lines[0].strip() if lines else "unknown"

    def refuses(self, place):
        """Why it can't be measured so, if it can't."""
        keeps_one_each = self.is_one_to_one or (place.prepares and self.forgets_statements)
        if keeps_one_each and place.clients > SERVERS_MAX:
            return f"it would need {place.clients} servers, and may have {SERVERS_MAX}"
        return ""

    def launch(self, bench, command, port, user=None, ready=None):
        process = bench.processes.start(self.name, [*bench.prefix, *command], user=user)
        bench.processes.wait_for(self.name, process, ready or (lambda: can_connect(port)))
        return process.pid


class Direct(Target):
    is_one_to_one = True

    def __init__(self):
        super().__init__("direct", "postgres")

    def version(self):
        return "PostgreSQL itself, the primary"

    def start(self, _bench, place):
        return Running(place.primary, remark=passed_through(place))


class External(Target):
    """Started by somebody else, in front of the same nodes (--nodes)."""

    def __init__(self, name, port, pid):
        super().__init__(name, "external")
        self.port, self.pid = port, pid

    def version(self):
        return f"on port {self.port}, process {self.pid}"

    def start(self, _bench, _place):
        return Running(self.port, self.pid)


class Tidegate(Target):
    def start(self, bench, place):
        port, http = free_port(), free_port()
        tables = {
            "listen": {
                "address": f"127.0.0.1:{port}",
                "workers": place.workers or bench.options.workers,
                "max_clients": max(10000, place.clients + 100),
            },
            "http": {"address": f"127.0.0.1:{http}"},
            "log": {"level": "warn"},
            "auth": {"method": place.auth},
            "pool": {"size": place.pool},
        }
        if bench.prefix:
            # Under valgrind everything takes 50 times as long, logins above all.
            tables["health"] = {"timeout": "60s", "interval": "60s"}
            tables["lag"] = {"max": "5m"}
            tables["pool"] |= {"connect_timeout": "60s", "checkout_timeout": "60s"}
        for table, keys in place.tidegate.items():
            tables[table] = tables.get(table, {}) | keys
        value = lambda v: str(v).lower() if isinstance(v, bool) else str(v) if isinstance(v, int) else f'"{v}"'
        lines = []
        for table, keys in tables.items():
            lines += [f"[{table}]", *(f"{key} = {value(v)}" for key, v in keys.items())]
        lines += ["[[auth.user]]", f'name = "{USER}"', f'password = "{PASSWORD}"', "[[cluster]]", 'name = "main"',
                  'monitor = { user = "tidegate", password = "tidegate", database = "postgres" }']
        for node in place.nodes:
            lines += ["[[cluster.node]]", f'address = "127.0.0.1:{node}"']
        config = bench.directory / f"tidegate-{port}.toml"
        config.write_text("\n".join(lines) + "\n")
        knows = lambda: len(re.findall(r"^tidegate_up\{.*\} 1$", scrape(http), re.MULTILINE)) == len(place.nodes)
        pid = self.launch(bench, [self.program, "run", "--config", config], port, ready=knows)
        return Running(port, pid, http)


class PgBouncer(Target):
    def __init__(self, name, program=None, number=()):
        super().__init__(name, program)
        self.forgets_statements = number < PGBOUNCER_PREPARES

    def start(self, bench, place):
        port = free_port()
        users = bench.directory / "users.txt"
        users.write_text(f'"{USER}" "{PASSWORD}"\n')
        mode = "session" if place.prepares and self.forgets_statements else "transaction"
        config = bench.directory / f"{self.name}-{port}.ini"
        config.write_text(f"""
[databases]
{DATABASE} = host=127.0.0.1 port={place.primary} dbname={DATABASE}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = {place.auth}
auth_file = {users}
pool_mode = {mode}
default_pool_size = {place.pool}
max_client_conn = {place.clients + 2000}
log_connections = 0
log_disconnections = 0
log_stats = 0
{"" if self.forgets_statements else "max_prepared_statements = 200"}
""")
        # It refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None
        pid = self.launch(bench, [self.program, config], port, user=user)
        remark = "in session mode: this version keeps no prepared statements in transaction mode"
        return Running(port, pid, remark=remark if mode == "session" else "")


class HaProxy(Target):
    """TCP to the primary: what moving the bytes costs, with a server for each client."""

    is_one_to_one = True

    def version(self):
        return output_of([self.program, "-v"]).splitlines()[0]

    def start(self, bench, place):
        port = free_port()
        config = bench.directory / "haproxy.cfg"
        config.write_text(f"""
global
    maxconn {place.clients + 100}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen postgres
    bind 127.0.0.1:{port}
    server primary 127.0.0.1:{place.primary}
""")
        pid = self.launch(bench, [self.program, "-db", "-f", config], port)
        return Running(port, pid, remark=passed_through(place))


class PgPool(Target):
    """A process for each client, each with a server of its own; with `splits`, one of every node."""

    is_one_to_one = True

    def __init__(self, name, program, splits):
        super().__init__(name, program)
        self.splits = splits

    def refuses(self, place):
        # It has no word for a node's being no standby, and asks what a null server does not know.
        return super().refuses(place) or ("it needs real nodes" if place.primary not in place.nodes else "")

    def start(self, bench, place):
        port = free_port()
        directory = bench.directory / self.name
        directory.mkdir(exist_ok=True)
        (directory / "pool_passwd").write_text(f"{USER}:TEXT{PASSWORD}\n")
        (directory / "pcp.conf").write_text("")
        (directory / "hba").write_text(f"host all all 127.0.0.1/32 {place.auth}\n")
        nodes = [place.primary, *(node for node in place.nodes if node != place.primary)]
        backends = ""
        for index, node in enumerate(nodes if self.splits else nodes[:1]):
            # Reads are for the standbys, where there are any.
            weight = 0 if index == 0 and self.splits and len(nodes) > 1 else 1
            flags = "ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER" if index == 0 else "DISALLOW_TO_FAILOVER"
            backends += f"""
backend_hostname{index} = '127.0.0.1'
backend_port{index} = {node}
backend_weight{index} = {weight}
backend_flag{index} = '{flags}'
"""
        config = directory / "pgpool.conf"
        config.write_text(f"""
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{directory}'
pcp_listen_addresses = ''
pcp_port = {free_port()}
pcp_socket_dir = '{directory}'
pid_file_name = '{directory}/pgpool.pid'
logdir = '{directory}'
backend_clustering_mode = 'streaming_replication'
load_balance_mode = {"on" if self.splits else "off"}
sr_check_period = 0
health_check_period = 0
enable_pool_hba = on
pool_passwd = '{directory}/pool_passwd'
num_init_children = {place.clients + 4}
max_pool = 1
{backends}
""")
        command = [self.program, "-n", "-f", config, "-a", directory / "hba", "-F", directory / "pcp.conf"]
        return Running(port, self.launch(bench, command, port))


def passed_through(place):
    return CHECKED_BY_POSTGRES if place.auth != "scram-sha-256" else ""


def known(tidegate, external):
    """Every target by its name, those that are missing included."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    which = lambda program: shutil.which(program, path=path)
    found = [Direct(), Tidegate("tidegate", str(tidegate))]
    found += pgbouncers(path)
    found += [HaProxy("haproxy", which("haproxy")),
              PgPool("pgpool", which("pgpool"), splits=False),
              PgPool("pgpool-split", which("pgpool"), splits=True)]
    found += [External(*parts) for parts in external]
    return {target.name: target for target in found}


def pgbouncers(path):
    """Debian's, and each further one on PATH that is of another version, named after it."""
    programs = []
    for directory in ["/usr/sbin", *path.split(":")]:
        program = shutil.which("pgbouncer", path=directory)
        if program and os.path.realpath(program) not in programs:
            programs.append(os.path.realpath(program))
    if not programs:
        return [PgBouncer("pgbouncer")]
    found = {}
    for program in programs:
        found.setdefault(pgbouncer_number(program), program)
    names = ["pgbouncer", *("pgbouncer-" + ".".join(map(str, number)) for number in list(found)[1:])]
    return [PgBouncer(name, program, number) for name, (number, program) in zip(names, found.items())]


def pgbouncer_number(program):
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", output_of([program, "--version"]))
    if not match:
        fail(f"{program} --version says no version")
    return tuple(int(part) for part in match.groups() if part)
