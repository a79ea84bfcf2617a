"""What a program takes that nobody asks much of."""

import os
import socket
import statistics
import time

import load
from measure import at_most, tell
from part_movies import MOVIES, fill
from peers import axum_movies, billing_api, billing_consumer, express, flask_movies, gateway, inventory

IDLE_CONNECTIONS = 512, 1000
HAVE_MOVIES = "inventory-api", "axum", "Express", "Flask"
COLUMNS = [
    ("program", "program", None),
    ("disk_mb", "on disk, MB", 1),
    ("first_answer_ms", "first answer, ms", 0),
    ("idle_mb", "idle, MB", 1),
    ("idle_512_mb", "512 idle connections, MB", 1),
    ("idle_1000_mb", "1,000, MB", 1),
    ("kept", "of them served", 0),
    ("threads_1000", "threads then", 0),
    ("answer_1000_ms", "an answer then, ms", 0),
    ("loaded_mb", "loaded, c=64, MB", 1),
]


def run(bench):
    ours = {
        "inventory-api": inventory(bench),
        "api-gateway": gateway(bench, bench.port()),
        "billing-api": billing_api(bench),
        "billing-consumer": billing_consumer(bench),
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
            ("idle_512_mb", "512 idle connections", 20, "MB"),
        ):
            goals.append(at_most(f"{row['program']}: {what}", goal, unit, row[key]))
    return {"title": "Footprint", "columns": COLUMNS, "rows": rows, "goals": goals}


def look_at(bench, name, program):
    tell(f"footprint of {name}")
    # Health needs no server but the program itself: what it takes to start is seen alone.
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
    }
    clients = []
    for count in IDLE_CONNECTIONS:
        clients += idle_connections(program.port, count - len(clients))
        time.sleep(0.2)
        row[f"idle_{count}_mb"] = program.memory("VmRSS") / 1e6
        row[f"threads_{count}"] = program.threads()
    begin = time.monotonic()
    answered = program.answers()
    row["answer_1000_ms"] = (time.monotonic() - begin) * 1000 if answered else None
    row["kept"] = len(clients)
    for client in clients:
        client.close()
    program.stop()
    # Anew, since what a thousand connections took is not given back.
    program.start()
    path = "/api/movies/7" if name in HAVE_MOVIES else "/health"
    load.wrk(program.port, {"path": path, "c": 64}, bench.seconds)
    row["loaded_mb"] = program.memory("VmHWM") / 1e6
    program.stop()
    return row


def idle_connections(port, count):
    """Each has been answered once and is kept open. One that hears nothing is the last."""
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
