"""Owns: reading a proxy's /metrics. Never: says what a metric means."""

import re
import socket


def scrape(port):
    """The page as text; the empty text while nobody serves it."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode(errors="replace")
    except OSError:
        return ""


def total(page, name, **labels):
    """The sum over every series of a name that has these labels."""
    result = 0.0
    for found, text in series(page, name):
        if all(found.get(key) == value for key, value in labels.items()):
            result += text
    return result


def series(page, name):
    """Each series of a name: its labels, its value."""
    for match in re.finditer(rf"^{name}(?:\{{(.*)\}})? (\S+)$", page, re.MULTILINE):
        yield dict(re.findall(r'(\w+)="([^"]*)"', match.group(1) or "")), float(match.group(2))
