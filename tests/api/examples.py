"""Requests every answer that docs/openapi.yaml shows from a running platform, and compares.

    python3 examples.py DOCUMENT SETTINGS GATEWAY

SETTINGS is the settings.env of the platform, GATEWAY the program. What a platform that is well
never answers is asked of further gateways that are started for it: one that remembers no key, one
with keys, one with nobody behind it, one before an inventory that says nothing. All movies of the
platform are deleted.
"""

import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

PATIENCE_SECONDS = 30
TOO_LARGE = 9223372036854775807

# The Idempotency-Key of the order in the examples.
KEY = "an-example"

# Members whose values differ from answer to answer.
VARYING = {
    *("id", "request_id", "message_id", "created_at", "received_at", "timestamp", "deleted"),
    *("latency_ms", "orders_posted", "ready", "dead", "count", "bytes"),
}


class Door:
    """A program that listens."""

    def __init__(self, address):
        self.address = address

    def ask(self, method, path, body=None, **headers):
        """The answer to a request; a body that is not a text is sent as JSON."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            body = (body if isinstance(body, str) else json.dumps(body)).encode()
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def ask_raw(self, text):
        """The answer to bytes that no HTTP client would send."""
        host, port = self.address.split(":")
        with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as connection:
            connection.sendall(text.encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            return Answer(response)


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()

    @property
    def json(self):
        return json.loads(self.text)


class Gateway(Door):
    """A second gateway, with settings of its own."""

    def __init__(self, program, settings_file, **settings):
        log = {"RUST_LOG": "info", "LOG_FORMAT": "logfmt"}
        environment = {"ENV_FILE": settings_file, "API_GATEWAY_PORT": "0", **log, **settings}
        self.process = subprocess.Popen([program], env=environment, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if listening := re.search(r"listening.*\baddress=(\S+)", line):
                super().__init__(listening[1])
                break
        else:
            sys.exit(f"{program} does not start with {settings}")
        # The gateway must not wait for a reader of its log.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)


class Document:
    """The description, and every example in it."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.whole = yaml.safe_load(file)
        resource = Resource(contents=self.whole, specification=DRAFT202012)
        self.registry = Registry().with_resource("urn:document", resource)
        self.bodies = {}
        self.answers = {}
        self.faults = []
        for path, item in self.whole["paths"].items():
            for method, operation in item.items():
                if isinstance(operation, dict) and "operationId" in operation:
                    self.read_operation(["paths", path, method], operation)
        for name, response in self.whole["components"]["responses"].items():
            self.read_response(["components", "responses", name], name, response)
        for name, parameter in self.whole["components"]["parameters"].items():
            self.read(["components", "parameters", name], parameter)

    def read_operation(self, where, operation):
        name = operation["operationId"]
        for number, parameter in enumerate(operation.get("parameters", [])):
            self.read([*where, "parameters", str(number)], parameter)
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            for key, example in self.read([*where, "requestBody", "content", kind], content):
                self.bodies[f"{name} {key}"] = example
        for status, response in operation["responses"].items():
            self.read_response([*where, "responses", status], f"{name} {status}", response)

    def read_response(self, where, name, response):
        for kind, content in response.get("content", {}).items():
            for key, example in self.read([*where, "content", kind], content):
                self.answers[f"{name} {key}"] = example

    def read(self, where, described):
        """The examples of an object with a schema; each must conform to the schema."""
        examples = [(key, example["value"]) for key, example in described.get("examples", {}).items()]
        pointer = "/".join(part.replace("~", "~0").replace("/", "~1") for part in [*where, "schema"])
        schema = {"$ref": f"urn:document#/{pointer}"}
        validator = Draft202012Validator(schema, registry=self.registry)
        for key, example in examples:
            for error in validator.iter_errors(example):
                self.faults.append(f"{' '.join(where)}: the example {key} does not follow its schema: {error.message}")
        return examples


def alike(value):
    """The part of a value that must be equal in the example and in the answer."""
    if isinstance(value, dict):
        return {
            name: type(member).__name__ if name in VARYING else alike(member) for name, member in value.items()
        }
    if isinstance(value, list):
        return [alike(member) for member in value]
    if isinstance(value, str):
        return re.sub(r"\bid \d+", "id N", value)
    return value


def soon(ask, fits):
    """The first answer that fits, or the last."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not fits(answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer


def settings_in(path):
    with open(path, encoding="utf-8") as file:
        return dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)


def well(bodies, gateway, billing, consumer):
    """The answers of a healthy platform, in the order in which they must be requested."""
    yield "deleteAllMovies 200 deleted", gateway.ask("DELETE", "/api/movies")
    yield "listMovies 200 none", gateway.ask("GET", "/api/movies?title=nothing")
    alien = gateway.ask("POST", "/api/movies", bodies["createMovie alien"])
    movie = alien.headers["Location"]
    yield "createMovie 201 alien", alien
    yield "listMovies 200 found", gateway.ask("GET", "/api/movies?title=lien")
    yield "listMovies 400 limit", gateway.ask("GET", "/api/movies?limit=0")
    yield "listMovies 400 twice", gateway.ask("GET", "/api/movies?title=a&title=b")
    yield "createMovie 400 missing", gateway.ask("POST", "/api/movies", {"title": "Alien"})
    yield "createMovie 400 blank", gateway.ask("POST", "/api/movies", {"title": "  ", "description": "x"})
    yield "createMovie 400 long", gateway.ask("POST", "/api/movies", {"title": "x" * 256, "description": "x"})
    yield "createMovie 400 array", gateway.ask("POST", "/api/movies", ["Alien"])
    yield "getMovie 200 alien", gateway.ask("GET", movie)
    yield "changeMovie 200 retitled", gateway.ask("PUT", movie, bodies["changeMovie retitled"])
    yield "changeMovie 400 nothing", gateway.ask("PUT", movie, {"year": 1979})
    yield "changeMovie 400 number", gateway.ask("PUT", movie, {"title": 1979})
    yield "PreconditionFailed changed", gateway.ask(
        "PUT", movie, bodies["changeMovie retitled"], If_Match=alien.headers["ETag"]
    )
    yield "deleteMovie 200 deleted", gateway.ask("DELETE", movie)
    yield "NoSuchMovie none", gateway.ask("GET", f"/api/movies/{TOO_LARGE}")

    yield "placeOrder 200 posted", gateway.ask("POST", "/api/billing", bodies["placeOrder strings"])
    order = {**bodies["placeOrder strings"], "user_id": "example"}
    yield "placeOrder 200 keyed", gateway.ask("POST", "/api/billing", order, Idempotency_Key=KEY)
    for name, wrong in [
        ("items", {**order, "number_of_items": 0}),
        ("amount", {**order, "total_amount": "29.999"}),
        ("user", {name: value for name, value in order.items() if name != "user_id"}),
    ]:
        yield f"placeOrder 400 {name}", gateway.ask("POST", "/api/billing", wrong)
    other = {**order, "number_of_items": "100"}
    yield "placeOrder 422 conflict", gateway.ask("POST", "/api/billing", other, Idempotency_Key=KEY)
    large = {**order, "note": "x" * 16384}
    yield "OrderTooLarge large", gateway.ask("POST", "/api/billing", large)
    yield "placeOrder 400 key", gateway.ask("POST", "/api/billing", order, Idempotency_Key="two words")
    recorded = soon(lambda: billing.ask("GET", "/api/orders?user_id=example"), lambda answer: answer.json != [])
    yield "listOrders 200 ofOneUser", recorded
    recorded = billing.ask("GET", f"/api/orders?message_id={KEY}")
    yield "listOrders 200 ofOneMessage", recorded
    yield "listOrders 400 after", billing.ask("GET", "/api/orders?after=-1")
    yield "listOrders 400 order", billing.ask("GET", "/api/orders?order=sideways")
    yield "getOrder 200 order", billing.ask("GET", f"/api/orders/{recorded.json[0]['id']}")
    yield "getOrder 404 none", billing.ask("GET", f"/api/orders/{TOO_LARGE}")

    yield "getHealth 200 ok", gateway.ask("GET", "/health")
    yield "getApiHealth 200 ok", billing.ask("GET", "/api/health")
    yield "getReadiness 200 gateway", gateway.ask("GET", "/ready")
    yield "getReadiness 200 billing", billing.ask("GET", "/ready")
    yield "getReadiness 200 consumer", consumer.ask("GET", "/ready")
    yield "getStatus 200 ok", gateway.ask("GET", "/api/status")
    yield "getIndex 200 index", gateway.ask("GET", "/")

    yield "BadRequest host", gateway.ask_raw("GET /api/movies HTTP/1.1\r\n\r\n")
    yield "Misdirected name", gateway.ask_raw("GET /api/movies HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n")
    yield "NoSuchPath noPath", gateway.ask("GET", "/api/nothing")
    yield "MethodNotAllowed patch", gateway.ask("PATCH", "/api/movies")
    yield "LengthRequired noBody", gateway.ask_raw("POST /api/movies HTTP/1.1\r\nHost: localhost\r\n\r\n")
    yield "ContentTooLarge large", gateway.ask_raw(
        "POST /api/movies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048577\r\n\r\n"
    )
    yield "UriTooLong long", gateway.ask("GET", "/api/movies?title=" + "x" * 8192)
    yield "UnsupportedMediaType text", gateway.ask("POST", "/api/movies", "Alien", Content_Type="text/plain")
    yield "ExpectationFailed other", gateway.ask("GET", "/api/movies", Expect="a miracle")
    yield "HeadersTooLarge many", gateway.ask("GET", "/api/movies", **{f"X-{number}": "1" for number in range(101)})
    yield "NotImplemented gzip", gateway.ask_raw(
        "POST /api/movies HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n"
    )
    yield "VersionNotSupported two", gateway.ask_raw("GET /api/movies HTTP/2.0\r\nHost: localhost\r\n\r\n")


def conflicting(bodies, gateway, billing):
    """The answers after an order with the key of a recorded one, at a gateway that remembers neither."""
    other = {**bodies["placeOrder strings"], "user_id": "example", "number_of_items": "100"}
    soon(
        lambda: gateway.ask("POST", "/api/billing", other, Idempotency_Key=KEY, X_Request_Id=KEY),
        lambda answer: answer.status == 200,
    )
    path = f"/api/dead-letters?message_id={KEY}&reason=conflict"
    dead = soon(lambda: billing.ask("GET", path), lambda answer: answer.json != [])
    yield "listDeadLetters 200 ofOneMessage", dead
    yield "listDeadLetters 200 none", billing.ask("GET", "/api/dead-letters?message_id=nothing")
    yield "listDeadLetters 400 limit", billing.ask("GET", "/api/dead-letters?limit=1001")
    yield "countDeadLetters 200 count", billing.ask("GET", "/api/dead-letters/count")
    yield "getDeadLetter 200 conflict", billing.ask("GET", f"/api/dead-letters/{dead.json[0]['id']}")
    yield "getDeadLetter 404 none", billing.ask("GET", f"/api/dead-letters/{TOO_LARGE}")


def guarded(bodies, gateway, key):
    """The answers of a gateway with one key, for reading, and a low rate limit."""
    alien = bodies["createMovie alien"]
    yield "Unauthorized noKey", gateway.ask("GET", "/api/movies")
    yield "Forbidden reader", gateway.ask("POST", "/api/movies", alien, Authorization=f"Bearer {key}")
    yield "TooManyRequests often", soon(
        lambda: gateway.ask("GET", "/api/movies", Authorization=f"Bearer {key}"),
        lambda answer: answer.status == 429,
    )


def alone(bodies, gateway):
    """The answers of a gateway without services behind it."""
    yield "getReadiness 503 gateway", gateway.ask("GET", "/ready")
    yield "BadGateway gone", gateway.ask("GET", "/api/movies")
    yield "ServiceUnavailable broker", gateway.ask("POST", "/api/billing", bodies["placeOrder strings"])
    yield "Timeout slow", gateway.ask_raw("GET /api/movies HTTP/1.1\r\n")


def ignored(gateway):
    """The answers of a gateway whose inventory does not answer."""
    yield "GatewayTimeout silent", gateway.ask("GET", "/api/movies")


def all_answers(bodies, settings_file, program):
    settings = settings_in(settings_file)
    door = {
        name: Door(f"{settings['LISTEN_ADDRESS']}:{settings[port]}")
        for name, port in [
            ("gateway", "API_GATEWAY_PORT"),
            ("billing", "BILLING_API_PORT"),
            ("consumer", "BILLING_CONSUMER_PORT"),
        ]
    }
    yield from well(bodies, **door)

    def gateway(**settings):
        gateways.append(Gateway(program, settings_file, **settings))
        return gateways[-1]

    gateways = []
    key = "a key for reading"
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys, socket.create_server(("127.0.0.1", 0)) as silent:
        keys.write(f"reader:{hashlib.sha256(key.encode()).hexdigest()}:read\n")
        keys.flush()
        nobody = {"INVENTORY_URLS": "http://127.0.0.1:1", "RABBITMQ_PORT": "1"}
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}"
        try:
            yield from conflicting(bodies, gateway(), door["billing"])
            yield from guarded(bodies, gateway(API_KEYS_FILE=keys.name, RATE_LIMIT_PER_SECOND="5"), key)
            yield from alone(bodies, gateway(HTTP_HEAD_SECONDS="1", **nobody))
            yield from ignored(gateway(INVENTORY_URLS=mute))
        finally:
            for started in gateways:
                started.close()


def main(document, settings_file, program):
    document = Document(document)
    faults = document.faults
    shown = dict(document.answers)
    for name, answer in all_answers(document.bodies, settings_file, program):
        if name not in shown:
            faults.append(f"{name}: there is no such example")
            continue
        example = shown.pop(name)
        answered = answer.json
        if alike(answered) != alike(example):
            faults.append(f"{name}: the example is\n    {json.dumps(example)}\n  and the answer is\n    {json.dumps(answered)[:1000]}")
        if "application/problem+json" in answer.headers["Content-Type"] and answered["status"] != answer.status:
            faults.append(f"{name}: the status is {answer.status}, but the problem has another one")
    faults += [f"{name}: no request of this script has this answer" for name in shown]
    for fault in faults:
        print(fault)
    if faults:
        sys.exit(f"{len(faults)} examples differ from the answers")
    print(f"{len(document.answers)} examples equal the answers")


if __name__ == "__main__":
    main(*sys.argv[1:])
