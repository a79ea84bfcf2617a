"""The edge alone: the same 15 bytes from each."""

from measure import interleaved
from peers import axum_movies, inventory, nginx

CONNECTIONS = 16, 64, 256


def run(bench):
    programs = {
        "ours": inventory(bench),
        "nginx": nginx(bench, "health", 'location / { return 200 \'{"status":"ok"}\'; }'),
        "axum": axum_movies(bench),
    }
    cases = [{"name": "health", "path": "/health", "c": c} for c in CONNECTIONS]
    cases.append({"name": "health, a connection each", "path": "/health", "c": 16, "keep_alive": False})
    bench.start(programs)
    bench.agree(programs, ["/health"])
    rows = interleaved(cases, bench.candidates(programs), "nginx", bench.rounds)
    return {"title": "HTTP alone", "reference": "nginx", "rows": rows, "goals": []}
