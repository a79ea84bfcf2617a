"""Measures candidates in turn: in each round every one of them, one after the other."""

import statistics
import sys
import time

STARTED = time.monotonic()


def tell(text):
    """Prints the progress to standard error."""
    print(f"{time.monotonic() - STARTED:6.0f} s  {text}", file=sys.stderr, flush=True)


class Candidate:
    """A name, the function that measures a case, and the measured program.

    A ceiling has no program, since its cost is not compared.
    """

    def __init__(self, name, run, program=None):
        self.name = name
        self.run = run
        self.program = program

    def measure(self, case):
        if self.program:
            self.program.forget_peak()
            cpu = self.program.cpu_seconds()
        sample = self.run(case)
        if self.program:
            used = self.program.cpu_seconds() - cpu
            sample.setdefault("cpu_us", used / max(sample["count"], 1) * 1e6)
            sample.setdefault("peak_mb", self.program.memory("VmHWM") / 1e6)
        return sample


def interleaved(cases, candidates, reference, rounds, before=None, after_round=None):
    """A row for each case and candidate, with its ratio to the `reference`."""
    rows = []
    for case in cases:
        here = [one for one in candidates if one.name not in case.get("without", ())]
        samples = {one.name: [] for one in here}
        for number in range(1, rounds + 1):
            tell(f"{label(case)}, round {number} of {rounds}")
            for one in here:
                if before:
                    before()
                samples[one.name].append(one.measure(case))
            if after_round:
                after_round(case)
        rows += [row(case, name, samples, reference) for name in samples]
    return rows


def label(case):
    return case["name"] + (f", c={case['c']}" if "c" in case else "")


def row(case, name, samples, reference):
    mine = samples[name]
    middle = {
        key: statistics.median(values)
        for key in ("per_second", "p50_ms", "p99_ms", "cpu_us", "peak_mb")
        if (values := [one[key] for one in mine if one.get(key) is not None])
    }
    return {
        "case": case["name"],
        "c": case.get("c"),
        "candidate": name,
        **middle,
        "failed": sum(one["failed"] for one in mine),
        "ratio": spread(pairs(mine, samples[reference])) if reference in samples else None,
        "samples": [one["per_second"] for one in mine],
        "p50_samples": [one.get("p50_ms") for one in mine],
    }


def pairs(mine, theirs):
    """The ratio of each round, since a slow phase of the machine affects both."""
    return [a["per_second"] / b["per_second"] for a, b in zip(mine, theirs) if b["per_second"]]


def spread(values):
    """Median, lowest, highest."""
    if not values:
        return None
    return [statistics.median(values), min(values), max(values)]


def find(rows, case, candidate, c=None):
    for one in rows:
        if (one["case"], one["candidate"], one["c"]) == (case, candidate, c):
            return one
    return None


def at_least(rows, case, c, other, goal, other_c=None, ours="ours"):
    """The goal that ours has at least a share of another's rate."""
    mine = find(rows, case, ours, c)
    theirs = find(rows, case, other, c if other_c is None else other_c)
    values = [a / b for a, b in zip(mine["samples"], theirs["samples"]) if b]
    place = f", c={c}" if c else ""
    return {
        "what": f"{case}{place}: ours ÷ {other}",
        "sign": "≥",
        "goal": goal,
        "unit": "×",
        "measured": spread(values),
    }


def at_most(what, goal, unit, value):
    """The goal that a value stays below a limit."""
    return {
        "what": what,
        "sign": "≤",
        "goal": goal,
        "unit": unit,
        "measured": value if isinstance(value, list) else [value, value, value],
    }


def reached(goal):
    value = goal["measured"] and goal["measured"][0]
    if value is None:
        return False
    return value >= goal["goal"] if goal["sign"] == "≥" else value <= goal["goal"]
