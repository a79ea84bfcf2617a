"""Makes the tables, for the terminal and for RESULTS.md, and the picture."""

from html import escape

from measure import reached

COLUMNS = [
    ("case", "case", None),
    ("c", "c", 0),
    ("candidate", "candidate", None),
    ("per_second", "a second", 0),
    ("p50_ms", "p50 ms", 2),
    ("p99_ms", "p99 ms", 2),
    ("cpu_us", "CPU µs each", "short"),
    ("peak_mb", "peak MB", 1),
    ("ratio", "× REFERENCE (lowest–highest)", 2),
    ("failed", "failed", 0),
]


def figure(value, digits):
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        middle, low, high = (figure(one, digits) for one in value)
        return middle if middle == low == high else f"{middle} ({low}–{high})"
    if digits == "short":
        digits = 0 if value >= 10 else 1
    return f"{value:,.{digits}f}"


def table(headings, lines, numeric):
    """An aligned Markdown table, which is readable on a terminal too; figures are on the right."""
    widths = [max(3, *(len(line[i]) for line in [headings, *lines])) for i in range(len(headings))]
    texts = [
        [text.rjust(width) if right else text.ljust(width) for text, width, right in zip(line, widths, numeric)]
        for line in [headings, *lines]
    ]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric)]
    texts.insert(1, rule)
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)


def part_text(part):
    columns = part.get("columns", COLUMNS)
    if "columns" not in part and not any(row["failed"] for row in part["rows"]):
        columns = columns[:-1]
    headings = [heading.replace("REFERENCE", part.get("reference", "")) for _, heading, _ in columns]
    lines = [[figure(row.get(key), digits) for key, _, digits in columns] for row in part["rows"]]
    numeric = [digits is not None for _, _, digits in columns]
    texts = [f"## {part['title']}", part.get("note", ""), table(headings, lines, numeric)]
    if part["goals"]:
        texts.append(goals_text(part["goals"]))
    return "\n\n".join(filter(None, texts))


def goals_text(goals):
    lines = [
        [
            goal["what"],
            f"{goal['sign']} {goal['goal']:g} {goal['unit']}",
            figure(goal["measured"], 2),
            "yes" if reached(goal) else "NO",
        ]
        for goal in goals
    ]
    return table(["", "goal", "measured", "reached"], lines, [False, True, True, False])


def document(results, parts):
    """RESULTS.md: the parts in their order, each with the time and the machine of its measurement."""
    texts = [
        "# Results",
        "Written by `bench/run.sh`; [README.md](README.md) says how to read it.",
        "![Ours beside the others](ratios.svg)",
    ]
    for name in (name for name in parts if name in results):
        part = results[name]
        where = (
            f"`{part['command']}`, {part['date']}, {part['rounds']} × {part['seconds']} s each, "
            f"load of the machine before it {part['load']}, {part['machine']}, commit {part['commit']}"
        )
        title, rest = part_text(part).split("\n", 1)
        texts.append(f"{title}\n\n{where}\n{rest}")
    return "\n\n".join(texts) + "\n"


# The picture

WIDTH, NAMES, FIGURES, LINE, EDGE = 880, 320, 150, 24, 12
STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #1f2328 } .paper { fill: #ffffff }
    .faint { fill: #59636e } .title { font-weight: 600 }
    .yes { fill: #1a7f37 } .no { fill: #bc4c00 }
    .goal { stroke: #1f2328; stroke-width: 2 } .spread { stroke: #59636e; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
        text { fill: #e6edf3 } .faint { fill: #9198a1 } .paper { fill: #0d1117 }
        .yes { fill: #3fb950 } .no { fill: #f0883e }
        .goal { stroke: #e6edf3 } .spread { stroke: #9198a1 }
    }
"""


def picture(results, parts):
    """Bars of our ratios to others; a mark is the goal. Large ratios have a panel and a scale of
    their own."""
    goals = [
        goal
        for name in parts
        if name in results
        for goal in results[name]["goals"]
        if goal["sign"] == "≥" and goal["measured"]
    ]
    near = [goal for goal in goals if goal["goal"] < 3]
    far = [goal for goal in goals if goal["goal"] >= 3]
    body, y = [], EDGE
    for title, panel in (
        ("Beside the fastest and the ceilings: 1 is as fast", near),
        ("Beside what is usual: times as fast", far),
    ):
        if panel:
            y = draw(body, y, title, panel) + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" '
        f'aria-label="Ratios of our rate to that of others">\n<style>{STYLE}</style>\n'
        f'<rect class="paper" width="{WIDTH}" height="{y}"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def draw(body, y, title, goals):
    room = WIDTH - EDGE - NAMES - FIGURES
    most = max(max(goal["measured"][2], goal["goal"]) for goal in goals)
    at = lambda value: NAMES + room * value / most
    y += LINE
    body.append(f'<text class="title" x="{EDGE}" y="{y}">{title}</text>')
    body.append(f'<text class="faint" x="{WIDTH - EDGE}" y="{y}" text-anchor="end">mark: the goal</text>')
    for goal in goals:
        y += LINE
        middle, low, high = goal["measured"]
        kind = "yes" if reached(goal) else "no"
        body += [
            f'<text x="{NAMES - 10}" y="{y}" text-anchor="end">{escape(goal["what"])}</text>',
            f'<rect class="{kind}" x="{NAMES}" y="{y - 12}" width="{room * middle / most:.1f}" height="15" rx="2"/>',
            f'<path class="spread" d="M{at(low):.1f} {y - 4.5}H{at(high):.1f}"/>',
            f'<path class="goal" d="M{at(goal["goal"]):.1f} {y - 15}v21"/>',
            f'<text class="faint" x="{WIDTH - EDGE}" y="{y}" text-anchor="end">{figure(goal["measured"], 2)}</text>',
        ]
    return y
