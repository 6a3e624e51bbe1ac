"""The ledger of the papers' claims as Markdown, in the place of ``{claims}`` on a page."""

from tinybnn.experiments import claims

PLACE = "```{claims}\n```"


def page():
    """Counts of each state, then each paper's entries, a card each."""
    entries = claims.ledger()["claims"]
    counts = claims.count(entries)
    lines = ["| | " + " | ".join(claims.STATES) + " |", "|---" * (len(claims.STATES) + 1) + "|"]
    for paper, of_paper in counts.items():
        cells = " | ".join(str(of_paper[state]) for state in claims.STATES)
        lines.append(f"| {paper} | {cells} |")
    for paper in counts:
        lines += ["", f"## {paper}"]
        for state in claims.STATES:
            chosen = [e for e in entries if (e["paper"], e["state"]) == (paper, state)]
            if chosen:
                lines += ["", f"### {paper}: {state} ({len(chosen)})", ""]
                for entry in chosen:
                    lines += card(entry)
    return "\n".join(lines)


def card(entry):
    """An entry in Markdown: what the paper says, where, what we measured, and how to repeat it."""
    lines = [f"**{', '.join(entry['where'])}.** {entry['claim']}", ""]
    lines += [f"- Measured: {claims.finding(entry)}"]
    if entry["reason"]:
        lines += [f"- {entry['reason']}"]
    if entry["command"]:
        lines += [f"- `{entry['command']}`"]
    return [*lines, ""]


def insert(app, docname, content):
    if PLACE in content[0]:
        content[0] = content[0].replace(PLACE, page())


def setup(app):
    app.connect("source-read", insert)
    return {"parallel_read_safe": True}
