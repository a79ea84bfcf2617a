"""The commands and settings of every program of the comparison."""

import os
import subprocess

from program import Program

# The connections to the database of each program, and the requests on which it works at once.
POOL = 16
CORES = os.cpu_count()


def environment(bench):
    keys = ("POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB")
    keys += ("RABBITMQ_HOST", "RABBITMQ_PORT", "RABBITMQ_USER", "RABBITMQ_PASSWORD")
    settings = {key: bench.settings[key] for key in (*keys, "RABBITMQ_QUEUE")}
    # All programs have one role and one user, since rights cost no time.
    for key in ("USER", "PASSWORD"):
        settings[f"POSTGRES_READER_{key}"] = settings[f"POSTGRES_{key}"]
        settings[f"RABBITMQ_CONSUMER_{key}"] = settings[f"RABBITMQ_{key}"]
    return settings


def ours(bench, name, program, port_key, build="OUR_PROGRAMS", **more):
    """One of our programs with its default settings, of one of the builds."""
    port = bench.port()
    env = environment(bench) | {
        "LISTEN_ADDRESS": "127.0.0.1",
        "INVENTORY_DB_NAME": bench.settings["POSTGRES_DB"],
        "BILLING_DB_NAME": bench.settings["POSTGRES_DB"],
        "BILLING_QUEUE_TYPE": bench.settings["BENCH_QUEUE_TYPE"],
        "RUST_LOG": "info",
        port_key: port,
    }
    file = f"{bench.settings[build]}/{program}"
    # It is ready when its schema and its queue exist.
    return Program(name, [file], port, env | more, path="/ready", file=file)


def inventory(bench, name="inventory-api", **more):
    return ours(bench, name, "inventory-api", "INVENTORY_API_PORT", **more)


def builds(bench, make):
    """Our program in its other forms: `make` takes a name and settings."""
    forms = {
        "ours, log off": make("ours, log off", RUST_LOG="off"),
        "ours on tiny_http": make("ours on tiny_http", build="TINY_HTTP_PROGRAMS"),
    }
    if "BEFORE_PROGRAMS" in bench.settings:
        forms["before"] = make("before", build="BEFORE_PROGRAMS")
    return forms


def gateway(bench, upstream_port, name="api-gateway", **more):
    return ours(
        bench,
        name,
        "api-gateway",
        "API_GATEWAY_PORT",
        INVENTORY_VM_IP="127.0.0.1",
        INVENTORY_API_PORT=upstream_port,
        BILLING_VM_IP="127.0.0.1",
        BILLING_API_PORT=1,
        BILLING_CONSUMER_PORT=1,
        **more,
    )


def billing_api(bench, name="billing-api", **more):
    # It waits for the schema, which the program of the owner makes.
    subprocess.run(
        [f"{bench.settings['OUR_PROGRAMS']}/billing-dead-letters", "list"],
        env=environment(bench) | {"BILLING_DB_NAME": bench.settings["POSTGRES_DB"]} | more,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return ours(bench, name, "billing-api", "BILLING_API_PORT", **more)


def billing_consumer(bench, **more):
    return ours(bench, "billing-consumer", "billing-consumer", "BILLING_CONSUMER_PORT", **more)


def rust(bench, name, program, **more):
    port = bench.port()
    file = f"{bench.settings['PEER_PROGRAMS']}/{program}"
    return Program(name, [file], port, environment(bench) | {"PORT": port, "POOL": POOL} | more, file=file)


def thread_per_connection(bench):
    return rust(bench, "a thread for each connection", "threads")


def axum_movies(bench):
    return rust(bench, "axum", "movies")


def axum_orders(bench):
    return rust(bench, "axum + lapin", "orders")


def express(bench):
    port = bench.port()
    env = environment(bench) | {"PORT": port, "POOL": POOL, "NODE_ENV": "production"}
    env["NODE_PATH"] = bench.settings["NODE_MODULES"]
    return Program("Express", ["node", f"{bench.here}/peers/express/movies.js"], port, env)


def python(bench):
    return environment(bench) | {
        "PYTHONPATH": f"{bench.settings['PYTHON_PACKAGES']}:{bench.here}/peers/python",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def gunicorn(bench, name, module, path="/health", **more):
    """Two processes of eight threads work on sixteen requests at once, as the others do."""
    port = bench.port()
    command = ["python3", "-m", "gunicorn", "--workers=2", "--threads=8", "--log-level=warning"]
    command += [f"--bind=127.0.0.1:{port}", "--keep-alive=60", f"{module}:app"]
    return Program(name, command, port, python(bench) | more, path=path)


def flask_movies(bench):
    return gunicorn(bench, "Flask", "movies")


def flask_gateway(bench, upstream_port, name="Flask + requests"):
    return gunicorn(bench, name, "gateway", path="/", UPSTREAM_PORT=upstream_port)


def pika_consumer(bench):
    return Program(
        "pika + SQLAlchemy",
        ["python3", f"{bench.here}/peers/python/consumer.py"],
        env=python(bench),
    )


def nginx(bench, name, location, upstream=""):
    """nginx with a worker for each core and without a log of requests; our programs write one."""
    port = bench.port()
    folder = os.path.abspath(f"nginx-{name}")
    os.makedirs(folder, exist_ok=True)
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    with open(f"{folder}/nginx.conf", "w", encoding="utf-8") as file:
        file.write(
            f"""{user}
worker_processes {CORES};
daemon off;
pid {folder}/pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
{temporary}
    {upstream}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {location}
    }}
}}
"""
        )
    command = ["nginx", "-e", "stderr", "-p", folder, "-c", f"{folder}/nginx.conf"]
    return Program("nginx", command, port, path="/")


def nginx_proxy(bench, upstream_port):
    location = """location / {
            proxy_pass http://inventory;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Request-Id $request_id;
        }"""
    upstream = f"""upstream inventory {{
        server 127.0.0.1:{upstream_port};
        keepalive 256;
        keepalive_requests 1000000000;
    }}"""
    return nginx(bench, "proxy", location, upstream)


def haproxy(bench, upstream_port):
    port = bench.port()
    with open("haproxy.cfg", "w", encoding="utf-8") as file:
        file.write(
            f"""global
    maxconn 4096
    nbthread {CORES}
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 10s
    option forwardfor
    http-reuse always
frontend front
    bind 127.0.0.1:{port} backlog 4096
    default_backend inventory
backend inventory
    server one 127.0.0.1:{upstream_port}
"""
        )
    return Program("haproxy", ["haproxy", "-db", "-f", "haproxy.cfg"], port)
