"""Prints the names of the metrics that rules of Prometheus and dashboards of Grafana use, one on each line.

An expression without its texts, matchers and lists of labels has only names, numbers and operators; a
name before a parenthesis is a function.
"""

import json
import re
import sys

WORDS = {"and", "or", "unless", "by", "on", "without", "ignoring", "bool", "offset"}


def expressions(path):
    text = open(path, encoding="utf-8").read()
    if path.endswith(".json"):
        for panel in json.loads(text)["panels"]:
            for target in panel.get("targets", []):
                yield target["expr"]
    else:
        # An expression ends where the next key of its rule begins.
        yield from re.findall(r"^ +expr:(.*?)^ +(?:for|labels):", text, re.DOTALL | re.MULTILINE)


def names(expression):
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", " ", bare)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\b\d[\w.]*", " ", bare)
    for name, parenthesis in re.findall(r"([A-Za-z_]\w*)\s*(\(?)", bare):
        if not parenthesis and name not in WORDS:
            yield name


found = {name for path in sys.argv[1:] for text in expressions(path) for name in names(text)}
print(*sorted(found), sep="\n")
