"""Runs parts of the comparison. bench/run.sh starts the servers and this program."""

import datetime
import importlib
import json
import os
import platform
import resource
import signal
import subprocess
import sys

import load
from measure import Candidate, tell
from program import stop_all
from report import document, part_text, picture
from servers import Sql

PARTS = ["http", "movies", "gateway", "orders", "consume", "footprint", "scale"]


class Bench:
    """The settings of a part, and the functions that start and compare programs."""

    def __init__(self, settings):
        self.settings = settings
        self.here = load.HERE
        self.rounds = int(settings["BENCH_ROUNDS"])
        self.seconds = int(settings["BENCH_SECONDS"])
        self.commit = commit()
        self.sql = Sql(settings)
        self.ports = []

    def port(self):
        """The next of the ports that run.sh has reserved; a part may use all of them."""
        return self.ports.pop(0)

    def start(self, programs):
        for program in programs.values():
            program.start()

    def stop(self):
        stop_all()
        first = int(self.settings["BENCH_FIRST_PORT"])
        self.ports = list(range(first, first + int(self.settings["BENCH_PORTS"])))

    def candidates(self, programs):
        """A candidate for each program, which wrk measures."""
        def candidate(name, program):
            return Candidate(name, lambda case: load.wrk(program.port, case, self.seconds), program)

        return [candidate(name, program) for name, program in programs.items()]

    def agree(self, programs, paths):
        """Checks that all answers are equal, since rates of different answers cannot be compared."""
        for path in paths:
            answers = {name: program.get(path) for name, program in programs.items()}
            expected = json.loads(answers["ours"][1])
            for name, (status, body) in answers.items():
                if status != 200 or json.loads(body) != expected:
                    raise RuntimeError(f"{name} answers {path} with {status}: {body[:200]!r}")

    def agree_on_creation(self, programs, movie):
        for name, program in programs.items():
            status, body = program.request("POST", "/api/movies", json.dumps(movie))
            made = json.loads(body)
            if status != 201 or {key: made[key] for key in movie} != movie:
                raise RuntimeError(f"{name} creates a movie with {status}: {body[:200]!r}")


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} × {model}, {memory:.0f} GiB, Linux {platform.release()}"


def commit():
    """The measured commit, which is read before the results change the checkout."""
    command = ["git", "-C", load.HERE, "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def measure(bench, name, command):
    before = os.getloadavg()[0]
    bench.stop()
    part = importlib.import_module(f"part_{name}").run(bench)
    bench.stop()
    part["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    part |= {"rounds": bench.rounds, "seconds": bench.seconds, "load": f"{before:.1f}"}
    return part | {"machine": machine(), "commit": bench.commit, "command": command}


def write(folder, results):
    for file, text in (
        ("results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n"),
        ("RESULTS.md", document(results, PARTS)),
        ("ratios.svg", picture(results, PARTS)),
    ):
        with open(os.path.join(folder, file), "w", encoding="utf-8") as out:
            out.write(text)


def known(folder):
    """Writes the results. Parts of former runs stay until they are measured again."""
    try:
        with open(os.path.join(folder, "results.json"), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def main():
    names = sys.argv[1:] or PARTS
    settings = dict(os.environ)
    folder = settings["BENCH_RESULTS"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    bench = Bench(settings)
    results = known(folder)
    try:
        for name in names:
            tell(f"part {name}")
            results[name] = measure(bench, name, " ".join(["bench/run.sh", *sys.argv[1:]]))
            print(f"\n{part_text(results[name])}\n", flush=True)
            write(folder, results)
    finally:
        stop_all()
        bench.sql.close()


if __name__ == "__main__":
    main()
