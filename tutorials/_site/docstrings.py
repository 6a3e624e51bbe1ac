"""Docstrings are plain text: what reStructuredText would read as markup in it is escaped.

That is an absolute value, |x|, and the star of unpacked sizes, (N, *sizes). A name in backticks is a
link if the reference has it, in the same room or as `room.name`, and not an argument.
"""

import inspect
import re

CODE = re.compile(r"(``[^`]*``|`[^`]*`)")
ARGUMENT = re.compile(r"(?<!`)`(\w+)`(?!`)")
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
    own = parameters(value)
    lines[:] = (
        ARGUMENT.sub(lambda m: f"`{m[0]}`" if m[1] in own else m[0], l) for l in escaped(lines)
    )


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


def setup(app):
    app.connect("missing-reference", link_room)
    app.connect("autodoc-process-docstring", escape, priority=400)  # before numpydoc reads them
    return {"parallel_read_safe": True}
