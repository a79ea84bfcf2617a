"""The connections of the harness to the PostgreSQL and the RabbitMQ of a run."""

import base64
import os
import subprocess
import time
import urllib.error
import urllib.request


class Sql:
    """A psql that stays open."""

    def __init__(self, settings):
        self.process = subprocess.Popen(
            [f"{settings['POSTGRES_PROGRAMS']}/psql", "-XqAt", "--set=ON_ERROR_STOP=1"],
            env={"PATH": os.environ["PATH"]} | connection(settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, sql):
        """Runs the commands; returns the output of the last one."""
        self.process.stdin.write(f"{sql};\n\\echo -- done\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line == "-- done\n":
                return "".join(lines).strip()
            lines.append(line)
        raise RuntimeError(f"psql ended at: {sql}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def connection(settings):
    """The settings as the variables that PostgreSQL's own programs read."""
    return {
        "PGHOST": settings["POSTGRES_HOST"],
        "PGPORT": settings["POSTGRES_PORT"],
        "PGUSER": settings["POSTGRES_USER"],
        "PGPASSWORD": settings["POSTGRES_PASSWORD"],
        "PGDATABASE": settings["POSTGRES_DB"],
    }


def purge(settings):
    """Empties the queue of orders; waits until one of our programs has declared it."""
    address = f"http://127.0.0.1:{settings['RABBITMQ_MANAGEMENT_PORT']}"
    path = f"/api/queues/%2F/{settings['RABBITMQ_QUEUE']}/contents"
    who = f"{settings['RABBITMQ_USER']}:{settings['RABBITMQ_PASSWORD']}"
    request = urllib.request.Request(address + path, method="DELETE")
    request.add_header("Authorization", "Basic " + base64.b64encode(who.encode()).decode())
    end = time.monotonic() + 15
    while True:
        try:
            urllib.request.urlopen(request, timeout=30).close()
            return
        except urllib.error.HTTPError as error:
            if error.code != 404 or time.monotonic() > end:
                raise
            time.sleep(0.1)
