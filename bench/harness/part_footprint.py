"""The resources that a program takes under little load."""

import os
import socket
import statistics
import time

import load
from measure import at_most, tell
from part_movies import MOVIES, fill
from peers import axum_movies, billing_api, billing_consumer, express, flask_movies, gateway, inventory

IDLE_CONNECTIONS = 1_000, 10_000
HAVE_MOVIES = "inventory-api", "axum", "Express", "Flask"
COLUMNS = [
    ("program", "program", None),
    ("disk_mb", "on disk, MB", 1),
    ("first_answer_ms", "first answer, ms", 0),
    ("idle_mb", "idle, MB", 1),
    ("threads", "threads then", 0),
    ("idle_1000_mb", "1,000 idle connections, MB", 1),
    ("idle_10000_mb", "10,000, MB", 1),
    ("kept", "of them served", 0),
    ("threads_10000", "threads then", 0),
    ("answer_10000_ms", "an answer then, ms", 0),
    ("loaded_mb", "loaded, c=64, MB", 1),
]


def run(bench):
    # All connections come from one address.
    many = {key: "16384" for key in ("HTTP_CONNECTIONS_MAX", "HTTP_CONNECTIONS_PER_CLIENT_MAX")}
    ours = {
        "inventory-api": inventory(bench, **many),
        "api-gateway": gateway(bench, bench.port(), **many),
        "billing-api": billing_api(bench, **many),
        "billing-consumer": billing_consumer(bench, **many),
    }
    peers = {"axum": axum_movies(bench), "Express": express(bench), "Flask": flask_movies(bench)}
    bench.start({"inventory-api": ours["inventory-api"]})
    fill(bench.sql, MOVIES)
    ours["inventory-api"].stop()
    rows = [look_at(bench, name, program) for name, program in (ours | peers).items()]
    goals = []
    for row in rows[: len(ours)]:
        for key, what, goal, unit in (
            ("disk_mb", "on disk", 3, "MB"),
            ("idle_mb", "idle", 6, "MB"),
            ("first_answer_ms", "first answer", 30, "ms"),
            ("idle_1000_mb", "1,000 idle connections", 8, "MB"),
            ("idle_10000_mb", "10,000 idle connections", 20, "MB"),
        ):
            goals.append(at_most(f"{row['program']}: {what}", goal, unit, row[key]))
    threads = sum(row["threads"] for row in rows[: len(ours)])
    goals.append(at_most("all four: threads of an idle platform", 60, "", threads))
    return {"title": "Footprint", "columns": COLUMNS, "rows": rows, "goals": goals}


def look_at(bench, name, program):
    tell(f"footprint of {name}")
    # Health depends on no server, so the time shows only the start of the program.
    program.path = "/health"
    starts = []
    for _ in range(bench.rounds):
        starts.append(program.start() * 1000)
        program.stop()
    program.start()
    time.sleep(1)
    row = {
        "program": name,
        "disk_mb": os.path.getsize(program.file) / 1e6 if program.file else None,
        "first_answer_ms": statistics.median(starts),
        "idle_mb": program.memory("VmRSS") / 1e6,
        "threads": program.threads(),
    }
    clients = []
    for count in IDLE_CONNECTIONS:
        clients += idle_connections(program.port, count - len(clients))
        time.sleep(0.2)
        row[f"idle_{count}_mb"] = program.memory("VmRSS") / 1e6
        row[f"threads_{count}"] = program.threads()
    begin = time.monotonic()
    answered = program.answers()
    row["answer_10000_ms"] = (time.monotonic() - begin) * 1000 if answered else None
    row["kept"] = len(clients)
    for client in clients:
        client.close()
    program.stop()
    # The program is started anew, since it keeps some memory of thousands of connections.
    program.start()
    path = "/api/movies/7" if name in HAVE_MOVIES else "/health"
    load.wrk(program.port, {"path": path, "c": 64}, bench.seconds)
    row["loaded_mb"] = program.memory("VmHWM") / 1e6
    program.stop()
    return row


def idle_connections(port, count):
    """Opens connections that have had one answer each; the first one without an answer is the last."""
    clients = []
    while len(clients) < count:
        client = socket.create_connection(("127.0.0.1", port), timeout=2)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n")
        try:
            if not client.recv(4096):
                break
        except OSError:
            break
        clients.append(client)
    return clients
