"""Docstrings are plain text: what reStructuredText would read as markup in it is escaped.

That is an absolute value, |x|, and the star of unpacked sizes, (N, *sizes).
"""

import re

CODE = re.compile(r"(``[^`]*``|`[^`]*`)")
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
    lines[:] = escaped(lines)


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=400)  # before numpydoc reads them
    return {"parallel_read_safe": True}
