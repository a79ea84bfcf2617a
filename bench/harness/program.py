"""The measured programs: their start, their end, and their use of resources."""

import http.client
import os
import signal
import subprocess
import time

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_SECONDS_MAX = 30


class Program:
    """A program that listens on a port, with all processes it starts.

    They are known by their session, which is their own. Where nothing listens (a consumer),
    `port` is None.
    """

    running = []

    def __init__(self, name, command, port=None, env=None, path="/health", file=None):
        self.name = name
        self.command = [str(part) for part in command]
        self.port = port
        self.env = env or {}
        self.path = path
        self.file = file
        self.process = None

    def start(self):
        """Starts the program; returns the seconds until its first answer."""
        begin = time.monotonic()
        log = open(f"{self.name.replace(' ', '-').replace('/', '-')}.log", "ab")
        self.process = subprocess.Popen(
            self.command,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
            | {key: str(value) for key, value in self.env.items()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        Program.running.append(self)
        while self.port and not self.answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended at once; its log is {log.name}")
            if time.monotonic() - begin > START_SECONDS_MAX:
                raise RuntimeError(f"{self.name} does not answer; its log is {log.name}")
            time.sleep(0.001)
        return time.monotonic() - begin

    def answers(self):
        try:
            return self.get(self.path)[0] < 500
        except (OSError, http.client.HTTPException):
            return False

    def request(self, method, path, body=None):
        """The status and the body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def get(self, path):
        return self.request("GET", path)

    def stop(self):
        Program.running.remove(self)
        for wanted, seconds in (signal.SIGTERM, 15), (signal.SIGKILL, 5):
            for pid in self.pids():
                try:
                    os.kill(pid, wanted)
                except ProcessLookupError:
                    pass
            end = time.monotonic() + seconds
            while self.process.poll() is None or self.pids():
                if time.monotonic() > end:
                    break
                time.sleep(0.01)
            else:
                return

    def pids(self):
        return [pid for pid, fields in processes() if int(fields[3]) == self.process.pid]

    def cpu_seconds(self):
        """The processor time of all its processes and of their children that have ended."""
        return sum(
            sum(map(int, fields[11:15])) / TICKS_PER_SECOND
            for _, fields in processes()
            if int(fields[3]) == self.process.pid
        )

    def memory(self, field):
        """A field of /proc/PID/status in bytes (VmRSS, VmHWM), summed over its processes."""
        return sum(status(pid, field) * 1024 for pid in self.pids())

    def threads(self):
        return sum(status(pid, "Threads") for pid in self.pids())

    def forget_peak(self):
        """Resets VmHWM to the present resident memory."""
        for pid in self.pids():
            with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
                file.write("5")


def processes():
    """Every process with the fields of /proc/PID/stat that follow its name, the state first."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                yield int(name), fields


def status(pid, field):
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def stop_all():
    for program in reversed(list(Program.running)):
        program.stop()
