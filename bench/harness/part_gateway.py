"""Forwarding: requests for one movie of our inventory through each of the gateways."""

from measure import at_least, interleaved
from part_movies import MOVIES, fill
from peers import builds, flask_gateway, gateway, haproxy, inventory, nginx_proxy

CONNECTIONS = 16, 64, 256


def run(bench):
    upstream = inventory(bench)
    bench.start({"inventory": upstream})
    fill(bench.sql, MOVIES)
    programs = {
        "ours": gateway(bench, upstream.port),
        "nginx": nginx_proxy(bench, upstream.port),
        "haproxy": haproxy(bench, upstream.port),
        "Flask + requests": flask_gateway(bench, upstream.port),
    } | builds(bench, lambda name, **form: gateway(bench, upstream.port, name, **form))
    bench.start(programs)
    bench.agree(programs, ["/api/movies/7", "/api/movies?limit=20"])
    cases = [
        {"name": "forward", "c": c, "path": "/api/movies/ID", "ids": MOVIES} for c in CONNECTIONS
    ]
    rows = interleaved(cases, bench.candidates(programs), "nginx", bench.rounds)
    goals = [at_least(rows, "forward", c, "nginx", goal) for c, goal in ((16, 1), (64, 1), (256, 1.05))]
    goals += [at_least(rows, "forward", 64, "Flask + requests", 25)]
    return {"title": "Forwarding", "reference": "nginx", "rows": rows, "goals": goals}
