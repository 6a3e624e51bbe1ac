"""A directive for Sphinx, ``claims``: the ledger of the papers' claims as a page."""

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

from tinybnn.experiments import claims


class Claims(Directive):
    """Counts of each state, then each paper's entries, a card each."""

    def run(self):
        entries = claims.ledger()["claims"]
        counts = claims.count(entries)
        table = ["| | " + " | ".join(claims.STATES) + " |", "|---" * (len(claims.STATES) + 1) + "|"]
        for paper, of_paper in counts.items():
            cells = " | ".join(str(of_paper[state]) for state in claims.STATES)
            table.append(f"| {paper} | {cells} |")
        cards = []
        for paper in counts:
            cards += ["", f"## {paper}"]
            for state in claims.STATES:
                chosen = [e for e in entries if (e["paper"], e["state"]) == (paper, state)]
                if chosen:
                    cards += ["", f"### {paper}: {state} ({len(chosen)})", ""]
                    for entry in chosen:
                        cards += card(entry)
        return [*self.parsed(table), *self.parsed(cards)]

    def parsed(self, lines):
        """The nodes of lines of Markdown."""
        container = nodes.Element()
        container.document = self.state.document
        self.state.nested_parse(StringList(lines, "claims.json"), 0, container, match_titles=True)
        return container.children


def card(entry):
    """An entry in Markdown: what the paper says, where, what we measured, and how to repeat it."""
    lines = [f"**{', '.join(entry['where'])}.** {entry['claim']}", ""]
    lines += [f"- Measured: {claims.finding(entry)}"]
    if entry["reason"]:
        lines += [f"- {entry['reason']}"]
    if entry["command"]:
        lines += [f"- `{entry['command']}`"]
    return [*lines, ""]


def setup(app):
    app.add_directive("claims", Claims)
    return {"parallel_read_safe": True}
