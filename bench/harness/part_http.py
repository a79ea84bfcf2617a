"""The HTTP server alone: each program answers 15 bytes."""

from measure import at_least, interleaved
from peers import axum_movies, builds, inventory, nginx, thread_per_connection

CONNECTIONS = 16, 64, 256


def run(bench):
    programs = {
        "ours": inventory(bench),
        "nginx": nginx(bench, "health", 'location / { return 200 \'{"status":"ok"}\'; }'),
        "axum": axum_movies(bench),
        "a thread for each connection": thread_per_connection(bench),
    } | builds(bench, lambda name, **form: inventory(bench, name, **form))
    cases = [{"name": "health", "path": "/health", "c": c} for c in CONNECTIONS]
    cases.append({"name": "health, a connection each", "path": "/health", "c": 16, "keep_alive": False})
    bench.start(programs)
    bench.agree(programs, ["/health"])
    rows = interleaved(cases, bench.candidates(programs), "nginx", bench.rounds)
    goals = [at_least(rows, "health", c, "nginx", goal) for c, goal in ((16, 0.95), (64, 0.95), (256, 0.9))]
    goals += [at_least(rows, "health", c, "nginx", 1.05, ours="ours, log off") for c in CONNECTIONS]
    goals += [at_least(rows, "health, a connection each", 16, "nginx", 1)]
    return {"title": "HTTP alone", "reference": "nginx", "rows": rows, "goals": goals}
