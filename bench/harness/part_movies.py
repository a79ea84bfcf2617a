"""Movies: all programs have one table and an equal number of connections to the database."""

import json

import load
from measure import Candidate, at_least, at_most, find, interleaved
from peers import POOL, axum_movies, builds, express, flask_movies, inventory
from servers import connection

MOVIES = 10_000
COLUMNS = "SELECT id, title, description FROM movies"
NEW_MOVIE = {"title": "Alien", "description": "In space no one can hear you scream"}
# The statement of each case, for pgbench. A page reads one row more than it shows, which tells whether there is a next
# page.
STATEMENTS = {
    "one movie": f"\\set id random(1, {MOVIES})\n{COLUMNS} WHERE id = :id;",
    "list of 20": f"{COLUMNS} WHERE id > 0 ORDER BY id LIMIT 21;",
    "list of 10,000": f"{COLUMNS} WHERE id > 0 ORDER BY id LIMIT NULL;",
    "create": "INSERT INTO movies (title, description) "
    f"VALUES ('{NEW_MOVIE['title']}', '{NEW_MOVIE['description']}') RETURNING id;",
}


def cases():
    one = {"path": "/api/movies/ID", "ids": MOVIES}
    create = {"method": "POST", "path": "/api/movies", "body": json.dumps(NEW_MOVIE)}
    # These are first, before many connections have made the programs grow.
    yield {"name": "list of 10,000", "c": 4, "path": "/api/movies"}
    yield from ({"name": "list of 20", "c": c, "path": "/api/movies?limit=20"} for c in (16, 64))
    yield from ({"name": "one movie", "c": c} | one for c in (1, 16, 64, 256))
    yield {
        "name": "one movie, a connection each",
        "c": 64,
        "keep_alive": False,
        "without": ["pgbench"],
    } | one
    # These are last, since they change the rows that the others read.
    yield from ({"name": "create", "c": c} | create for c in (1, 16, 64, 256))


def fill(sql, rows, schema="public"):
    """Different titles with some words in common."""
    sql(f"TRUNCATE {schema}.movies RESTART IDENTITY")
    sql(
        f"INSERT INTO {schema}.movies (title, description) "
        "SELECT 'The ' || (ARRAY['Return', 'Night', 'Last Day', 'Colour', 'Island'])[1 + n % 5] "
        "|| ' of ' || md5(n::text), 'A film about number ' || n || ', and what came of it' "
        f"FROM generate_series(1, {rows}) n"
    )
    sql(f"VACUUM ANALYZE {schema}.movies")


def run(bench):
    programs = {
        "ours": inventory(bench),
        "axum": axum_movies(bench),
        "Express": express(bench),
        "Flask": flask_movies(bench),
    } | builds(bench, lambda name, **form: inventory(bench, name, **form))
    bench.start({"ours": programs["ours"]})
    fill(bench.sql, MOVIES)
    bench.start({name: one for name, one in programs.items() if name != "ours"})
    bench.agree(programs, ["/api/movies/7", "/api/movies?limit=20", "/api/movies"])
    bench.agree_on_creation(programs, NEW_MOVIE)

    def ceiling(case):
        name, clients = case["name"], min(case["c"], POOL)
        program = f"{bench.settings['POSTGRES_PROGRAMS']}/pgbench"
        env = connection(bench.settings)
        return load.pgbench(program, env, STATEMENTS[name], clients, bench.seconds)

    def trim(case):
        if case["name"] == "create":
            bench.sql(f"DELETE FROM movies WHERE id > {MOVIES}")
            bench.sql("VACUUM movies")

    candidates = bench.candidates(programs) + [Candidate("pgbench", ceiling)]
    trim({"name": "create"})
    rows = interleaved(cases(), candidates, "axum", bench.rounds, after_round=trim)
    better = ((1, 1.05), (16, 1.15), (64, 1.5), (256, 2.0))
    goals = [at_least(rows, "one movie", c, "axum", goal) for c, goal in better]
    goals += [at_least(rows, "one movie, a connection each", 64, "axum", 1)]
    goals += [at_least(rows, "one movie", 64, other, goal) for other, goal in (("Express", 6), ("Flask", 18))]
    goals += [at_least(rows, "list of 20", c, "axum", goal) for c, goal in ((16, 1.05), (64, 1.2))]
    goals += [at_least(rows, "list of 10,000", 4, "axum", 1)]
    peak = find(rows, "list of 10,000", "ours", 4)["peak_mb"]
    goals += [at_most("list of 10,000, c=4: peak memory", 10, "MB", peak)]
    goals += [at_least(rows, "create", c, "axum", goal) for c, goal in ((64, 1.85), (256, 2.42))]
    goals += [at_least(rows, "create", 64, "pgbench", 0.7)]
    return {"title": "Movies", "reference": "axum", "rows": rows, "goals": goals}
