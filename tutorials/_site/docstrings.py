"""Docstrings are plain text: what reStructuredText would read as markup in it is escaped.

That is an absolute value, |x|, and the star of unpacked sizes, (N, *sizes). A name in backticks is
a link if the reference has it, in the same room or as `room.name`, unless it is an argument.
"""

import inspect
import re

CODE = re.compile(r"(``[^`]*``|`[^`]*`)")
NAME = re.compile(r"(?<!`)`(\w+)`(?!`)")
MARKUP = re.compile(r"\||(?<![\\*\w])\*(?=[^\s*])(?![^*]*\w\*(?!\w))")  # but not *emphasis*


def escaped(lines):
    """The lines with markup escaped outside of code and examples."""
    in_example = False
    for line in lines:
        in_example = bool(line.strip()) and (in_example or line.lstrip().startswith(">>>"))
        if in_example:
            yield line
            continue
        parts = CODE.split(line)
        parts[::2] = [MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
        yield "".join(parts)


def escape(app, what, name, value, options, lines):
    arguments = parameters(value)

    def as_code(match):
        return f"`{match[0]}`" if match[1] in arguments else match[0]

    lines[:] = [NAME.sub(as_code, line) for line in escaped(lines)]


def parameters(value):
    """The names of a function's parameters; none of anything else."""
    try:
        return set(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return set()


def link_room(app, env, node, contnode):
    """Find `room.name`, as docstrings call what is outside of their own room."""
    if node.get("refdomain") == "py" and "." in node["reftarget"]:
        name = "tinybnn." + node["reftarget"].removeprefix("tinybnn.")
        return env.domains["py"].resolve_xref(
            env, node["refdoc"], app.builder, "obj", name, node, contnode
        )
    return None


def hide_private(app, name, value, options, bases):
    bases[:] = [base for base in bases if not base.__name__.startswith("_")] or [object]


def setup(app):
    app.connect("autodoc-process-bases", hide_private)
    app.connect("missing-reference", link_room)
    app.connect("autodoc-process-docstring", escape, priority=400)  # before numpydoc reads them
    return {"parallel_read_safe": True}
