"""Placing orders: each is answered when the broker has confirmed the persistent message."""

import load
from measure import Candidate, at_least, at_most, find, interleaved, spread
from peers import axum_orders, builds, environment, flask_gateway, gateway
from servers import purge

CONNECTIONS = 1, 16, 64, 256
ORDER = '{"user_id": "20", "number_of_items": "99", "total_amount": "250"}'
LOOP = "bare loop"


def publish(bench, window, seconds, **more):
    """The loop that only publishes."""
    env = environment(bench) | {"WINDOW": window, "SECONDS": seconds} | more
    return load.loop(f"{bench.settings['PEER_PROGRAMS']}/publish-loop", env)


def run(bench):
    programs = {
        "ours": gateway(bench, bench.port()),
        "axum + lapin": axum_orders(bench),
        "Flask + pika": flask_gateway(bench, bench.port(), "Flask + pika"),
    }
    forms = builds(bench, lambda name, **form: gateway(bench, bench.port(), name, **form))
    programs |= forms
    # There is no inventory, so ours is not ready, but it accepts orders.
    for name in ("ours", *forms):
        programs[name].path = "/health"
    bench.start({"ours": programs["ours"]})
    purge(bench.settings)
    bench.start({name: one for name, one in programs.items() if name != "ours"})
    for name, program in programs.items():
        status, answer = program.request("POST", "/api/billing", ORDER)
        if status != 200:
            raise RuntimeError(f"{name} answers an order with {status}: {answer!r}")
    case = {"name": "place", "method": "POST", "path": "/api/billing", "body": ORDER}
    cases = [case | {"c": c} for c in CONNECTIONS]
    candidates = bench.candidates(programs)
    candidates.append(Candidate(LOOP, lambda case: publish(bench, case["c"], bench.seconds)))
    empty = lambda: purge(bench.settings)
    rows = interleaved(cases, candidates, "axum + lapin", bench.rounds, before=empty)
    goals = [at_least(rows, "place", c, "axum + lapin", 1) for c in (16, 64, 256)]
    goals += [at_least(rows, "place", 64, "Flask + pika", 50)]
    ours, bare = find(rows, "place", "ours", 1), find(rows, "place", LOOP, 1)
    longer = [a / b for a, b in zip(ours["p50_samples"], bare["p50_samples"])]
    goals += [at_most("place, c=1: p99", 10, "ms", ours["p99_ms"])]
    goals += [at_most("place, c=1: median ÷ that of the bare loop", 1.15, "×", spread(longer))]
    return {"title": "Placing orders", "reference": "axum + lapin", "rows": rows, "goals": goals}
