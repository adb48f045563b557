"""What a driver's run prints: one line per step, equal where the driver has seen the same.

Owns: how values become text. Never: asks a server anything.
"""

import hashlib
import json
import traceback

LONG = 300


def record(step, value):
    """Prints a step at once, so that a run that hangs shows how far it came."""
    text = json.dumps(canonical(value), sort_keys=True, ensure_ascii=True)
    print(f"{step}\t{text}", flush=True)


def failed(section, error):
    """An exception that the section did not expect; a direct run must have none."""
    where = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in where if frame.filename.endswith("_check.py")]
    record(f"{section}/FAILED", [f"line {lines[-1] if lines else '?'}", type(error).__name__, str(error)])


def canonical(value):
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return value if len(value) <= LONG else digest("characters", len(value), value.encode())
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = bytes(value)
        return "\\x" + value.hex() if len(value) <= LONG else digest("bytes", len(value), value)
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [canonical(item) for item in value]
        return items if len(items) <= LONG else digest("items", len(items), json.dumps(items, sort_keys=True).encode())
    return f"{type(value).__name__} {value}"


def digest(unit, length, data):
    return {unit: length, "sha256": hashlib.sha256(data).hexdigest()}
