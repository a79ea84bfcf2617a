"""Measures how the cost of an answer grows with the rows of the table: each size has a schema and a
program of its own."""

import time
import urllib.request

import load
from measure import Candidate, interleaved, tell
from part_movies import fill
from peers import billing_api, inventory

SIZES = {"1,000 rows": 1_000, "10,000 rows": 10_000, "100,000 rows": 100_000, "1,000,000 rows": 1_000_000}
ORDERS = {"10,000 orders": 10_000, "10,000,000 orders": 10_000_000}
USERS = 100_000


def run(bench):
    # A program also finds the migrations of public from a schema of its own, and would make no tables.
    bench.sql("DROP TABLE IF EXISTS public.movies, public.orders, public.schema_migrations")
    rows = interleaved(movie_cases(), list(movies(bench)), "1,000 rows", bench.rounds)
    bench.stop()
    rows += interleaved(order_cases(), list(orders(bench)), "10,000 orders", bench.rounds)
    return {
        "title": "Scale",
        "reference": "the smallest table",
        "note": "A stream is the whole list, in rows a second; the others are requests.",
        "rows": rows,
        "goals": [],
    }


def movie_cases():
    yield {"name": "get", "c": 16, "path": "/api/movies/ID"}
    yield {"name": "search", "c": 16, "path": "/api/movies?title=NEEDLE&limit=20"}
    yield {"name": "page", "c": 16, "path": "/api/movies?limit=20&after=ID"}
    yield {"name": "stream", "path": "/api/movies"}


def order_cases():
    yield {"name": "orders, page", "c": 16, "path": "/api/orders?limit=20&after=ID"}
    yield {"name": "orders, a user's page", "c": 16, "path": "/api/orders?limit=20&user_id=u7"}


def movies(bench):
    for name, rows in SIZES.items():
        schema = f"movies_{rows}"
        bench.sql(f"CREATE SCHEMA {schema}")
        program = inventory(bench, f"inventory of {rows}", POSTGRES_SCHEMA=schema)
        bench.start({name: program})
        tell(f"fill with {name}")
        fill(bench.sql, rows, schema)
        # Only one title has this part, whatever the size.
        needle = bench.sql(f"SELECT substr(title, length(title) - 11) FROM {schema}.movies WHERE id = 700")
        yield Candidate(name, measure(bench, program, rows, needle), program)


def measure(bench, program, rows, needle):
    def one(case):
        if case["name"] == "stream":
            return stream(program.port, case["path"], rows)
        path = case["path"].replace("NEEDLE", needle)
        return load.wrk(program.port, case | {"path": path, "ids": rows}, bench.seconds)

    return one


def stream(port, path, rows):
    begin = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=120) as answer:
        while part := answer.read(1 << 20):
            end = part[-1:]
    if end != b"]":
        raise RuntimeError("the list ends in its middle")
    seconds = time.monotonic() - begin
    return {"count": rows, "per_second": rows / seconds, "p50_ms": seconds * 1000, "failed": 0}


def orders(bench):
    for name, rows in ORDERS.items():
        schema = f"orders_{rows}"
        bench.sql(f"CREATE SCHEMA {schema}")
        program = billing_api(bench, f"billing of {rows}", POSTGRES_SCHEMA=schema)
        bench.start({name: program})
        tell(f"fill with {name}")
        fill_orders(bench.sql, schema, rows)
        yield Candidate(name, measure(bench, program, rows, ""), program)


def fill_orders(sql, schema, rows):
    """Fills the table. The indexes are made after the rows, which takes half the time."""
    table = f"{schema}.orders"
    sql(f"ALTER TABLE {table} DROP CONSTRAINT orders_message_id_key")
    sql(f"DROP INDEX {schema}.orders_user_id")
    sql(
        f"INSERT INTO {table} (message_id, user_id, number_of_items, total_amount) "
        f"SELECT 'm-' || n, 'u' || n % {min(USERS, rows // 100)}, 1 + n % 99, n % 100000 / 100.0 "
        f"FROM generate_series(1, {rows}) n"
    )
    sql(f"ALTER TABLE {table} ADD CONSTRAINT orders_message_id_key UNIQUE (message_id)")
    sql(f"CREATE INDEX orders_user_id ON {table} (user_id, id)")
    sql(f"VACUUM ANALYZE {table}")
