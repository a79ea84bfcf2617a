"""Recording orders: how fast the messages of a queue that was filled before are recorded."""

import time

import load
from measure import Candidate, at_least, interleaved
from part_orders import publish
from peers import billing_consumer, environment, pika_consumer
from servers import purge

CEILING = "acknowledge only"
# Each takes about a second.
MESSAGES = {"ours": 40_000, "pika + SQLAlchemy": 500, CEILING: 60_000}
RECORD_SECONDS_MAX = 60


def run(bench):
    consumer = billing_consumer(bench)
    # Our consumer makes the queue and the table, which the others use too.
    bench.start({"ours": consumer})
    purge(bench.settings)
    consumer.stop()

    def prepare(name):
        count = int(MESSAGES[name] * bench.seconds)
        purge(bench.settings)
        bench.sql("TRUNCATE orders RESTART IDENTITY")
        publish(bench, 1000, 600, MESSAGES=count)
        return count

    def recorder(name, make):
        def measure(_case):
            count = prepare(name)
            program = make(bench)
            program.start()
            try:
                return record(bench, program, count)
            finally:
                program.stop()

        return Candidate(name, measure)

    def ceiling(_case):
        env = environment(bench) | {"MESSAGES": prepare(CEILING)}
        return load.loop(f"{bench.settings['PEER_PROGRAMS']}/acknowledge-loop", env)

    candidates = [
        recorder("ours", billing_consumer),
        recorder("pika + SQLAlchemy", pika_consumer),
        Candidate(CEILING, ceiling),
    ]
    rows = interleaved([{"name": "record"}], candidates, CEILING, bench.rounds)
    goals = [at_least(rows, "record", None, CEILING, 0.8)]
    goals += [at_least(rows, "record", None, "pika + SQLAlchemy", 75)]
    return {"title": "Recording orders", "reference": CEILING, "rows": rows, "goals": goals}


def record(bench, program, count):
    """The time from the first rows in the table to the last."""
    first = None
    end = time.monotonic() + RECORD_SECONDS_MAX
    while time.monotonic() < end:
        done = int(bench.sql("SELECT coalesce(max(id), 0) FROM orders"))
        now = time.monotonic()
        if done and first is None:
            first, begin, cpu = done, now, program.cpu_seconds()
        if done >= count:
            recorded = max(done - first, 1)
            return {
                "count": recorded,
                "per_second": recorded / (now - begin),
                "cpu_us": (program.cpu_seconds() - cpu) / recorded * 1e6,
                "peak_mb": program.memory("VmHWM") / 1e6,
                "failed": 0,
            }
        time.sleep(0.005)
    raise RuntimeError(f"{program.name} has recorded {done} of {count} orders")
