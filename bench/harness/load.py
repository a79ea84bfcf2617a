"""The programs that put load on a candidate and measure its speed: wrk, pgbench, and loops."""

import glob
import json
import os
import subprocess
import tempfile

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def wrk(port, case, seconds):
    """One measurement: count, per_second, p50_ms, p99_ms, failed."""
    url = f"http://127.0.0.1:{port}/"
    connections = case["c"]
    load = [case.get("method", "GET"), case["path"], str(case.get("ids", 1))]
    load += ["keep-alive" if case.get("keep_alive", True) else "close"]
    load += [case["body"]] if "body" in case else []
    command = ["wrk", f"-t{min(2, connections)}", f"-c{connections}", f"-d{seconds}s"]
    command += ["--timeout", "10s", "--script", f"{HERE}/load.lua", url, "--", *load]
    return last_line(run(command))


def pgbench(program, env, sql, clients, seconds):
    """The statement of a case without HTTP. A tenth of the single times is kept."""
    with tempfile.TemporaryDirectory() as folder:
        script = f"{folder}/script.sql"
        with open(script, "w", encoding="utf-8") as file:
            file.write(sql)
        command = [program, "--no-vacuum", "--protocol=prepared", f"--client={clients}"]
        command += [f"--jobs={min(2, clients)}", f"--time={seconds}", f"--file={script}"]
        command += ["--log", "--sampling-rate=0.1", f"--log-prefix={folder}/times"]
        said = run(command, env)
        times = sorted(
            int(line.split()[2])
            for name in glob.glob(f"{folder}/times*")
            for line in open(name, encoding="ascii")
        )
    rate = next(line for line in said.splitlines() if line.startswith("tps = "))
    count = next(line for line in said.splitlines() if "actually processed" in line)
    at = lambda share: times[int((len(times) - 1) * share)] / 1000 if times else None
    return {
        "count": int(count.split(":")[1].split("/")[0]),
        "per_second": float(rate.split()[2]),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "failed": 0,
    }


def loop(program, env):
    """One of our programs that prints its own figures as a line of JSON."""
    return {"failed": 0} | last_line(run([program], env))


def run(command, env=None):
    given = {key: str(value) for key, value in (env or {}).items()}
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"} | given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def last_line(said):
    return json.loads(said.strip().splitlines()[-1])
