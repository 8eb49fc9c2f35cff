"""Docstrings are plain text; this makes Markdown of them when the documentation is built.

A list needs a blank line before it, an equation is code, and the star of a shape such as [*, V] is no emphasis.
"""

import re
from typing import Any

import griffe


class PlainText(griffe.Extension):
    """A griffe extension, named in mkdocs.yml."""

    def on_object(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Rewrite the docstring of a module or a function."""
        if obj.docstring is None:
            return
        text = re.sub(r"^(\S.*:)\n(?=- )", r"\1\n\n", obj.docstring.value, flags=re.M)
        text = re.sub(r"(?<!`)\[\*", r"[\\*", text)
        equation = rf"^{re.escape(obj.name)} = .*(?:\n.+)*"
        obj.docstring.value = re.sub(equation, lambda found: f"```text\n{found[0]}\n```", text, count=1, flags=re.M)
