"""Owns: medians, spreads, ratios, and the tables. Never: takes a figure."""

import statistics

# Name of a figure: its heading and decimals. What is not here is in the JSON alone.
FIGURES = {
    "tps": ("tps", 0),
    "latency_ms": ("mean ms", 3),
    "p50_ms": ("p50 ms", 3),
    "p99_ms": ("p99 ms", 3),
    "p999_ms": ("p99.9 ms", 3),
    "cpu_us": ("CPU µs/tx", 1),
    "cpu_us_unique": ("CPU µs/tx unique", 1),
    "cpu_us_same": ("CPU µs/tx same", 1),
    "unique_to_same": ("unique/same", 2),
    "busy": ("proxy's cores", 2),
    "load_busy": ("load's cores", 2),
    "replicas_busy": ("replicas' cores", 2),
    "mb_per_second": ("MB/s", 0),
    "cpu_s_per_gb": ("CPU s/GB", 2),
    "peak_mb": ("peak MB", 1),
    "resident_before_mb": ("before MB", 1),
    "resident_mb": ("after MB", 1),
    "kb_per_client": ("kB/client", 2),
    "open_seconds": ("s to open", 1),
    "cpu_us_primary": ("primary µs/tx", 1),
    "cpu_us_replica": ("per replica µs/tx", 1),
    "samples_primary": ("samples/s primary", 1),
    "samples_replica": ("samples/s replica", 1),
    "on_replicas": ("on replicas", 2),
    "pins_per_second": ("pins/s", 0),
    "pin_mean_ms": ("pin mean ms", 2),
    "pin_p99_ms": ("pin p99 ms ≤", 1),
    "sends": ("sends/tx", 2),
    "receives": ("receives/tx", 2),
    "waits": ("waits/tx", 2),
    "other_calls": ("others/tx", 2),
    "instructions": ("instr/tx", 0),
}


def names(runs):
    """Of the figures that are there, in the order of first sight."""
    return list(dict.fromkeys(name for run in runs for name in run))


def values(runs, name):
    return [run[name] for run in runs if run.get(name) is not None]


def medians(runs):
    median = lambda found: statistics.median(found) if found else None
    return {name: median(values(runs, name)) for name in names(runs)}


def spreads(runs):
    spread = lambda found: [min(found), max(found)] if found else None
    return {name: spread(values(runs, name)) for name in names(runs)}


def ratios(runs, counts, pairs):
    """Of each pair of labels: the median and the ends of the rounds' ratios.

    Of one round each: two runs that are next to each other saw more of the same machine.
    """
    found = {}
    for ours, theirs in pairs:
        row = found[f"{ours} / {theirs}"] = {}
        for name in names(runs[ours]):
            both = [(a.get(name), b.get(name)) for a, b in zip(runs[ours], runs[theirs])]
            each = [a / b for a, b in both if a is not None and b]
            if each:
                row[name] = [statistics.median(each), min(each), max(each)]
        for name, count in counts[ours].items():
            if counts[theirs].get(name):
                row[name] = [count / counts[theirs][name]] * 3
    return found


def print_setup(setup, missing):
    plain = {key: value for key, value in setup.items() if key != "targets"}
    print(", ".join(f"{key} {value}" for key, value in plain.items()))
    for name, version in setup["targets"].items():
        print(f"  {name:<14} {version}")
    for name, why in missing.items():
        print(f"  {name:<14} missing: {why}")


def print_result(result):
    clients = f", {result['clients']} client{'s' if result['clients'] > 1 else ''}" if result["clients"] else ""
    print(f"\n{result['workload']}{clients}: {result['about']}")
    present = {name for row in result["medians"].values() for name, value in row.items() if value is not None}
    shown = [name for name in FIGURES if name in present]
    rows = [["", *(FIGURES[name][0] for name in shown)]]
    for label, row in result["medians"].items():
        spread = result["spreads"][label]
        rows.append([label, *(cell(row.get(name), spread.get(name), FIGURES[name][1]) for name in shown)])
    for label, row in result["ratios"].items():
        rows.append([label, *(cell(*ratio(row.get(name)), 2) for name in shown)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (text.ljust(width) if not column else text.rjust(width)
                          for column, (text, width) in enumerate(zip(row, widths)))
        print("  ".join([first, *others]).rstrip())
    for label, why in result["skipped"].items():
        print(f"{label} is not measured: {why}")
    for remark in result["remarks"]:
        print(remark)


def ratio(entry):
    return (entry[0], entry[1:]) if entry else (None, None)


def cell(value, spread, places):
    if value is None:
        return "-"
    number = lambda n: f"{n:,.{places}f}"
    if not spread or number(spread[0]) == number(spread[1]):
        return number(value)
    return f"{number(value)} ({number(spread[0])}–{number(spread[1])})"
