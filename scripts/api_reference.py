"""An extension of griffe for ``mkdocs build``, which reads docstrings and options as the API reference shows them.

Roles of Sphinx become code in Markdown: ``:class:`~sfkit.views.types.Views``` becomes ```Views```. An option shows its
default, and the description of its field.
"""

from __future__ import annotations

import ast
import re

import griffe

_ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`(~?)([\w.]+)`")


class ApiReference(griffe.Extension):
    """Changes each object once, when it is read."""

    def on_object(self, *, obj: griffe.Object, **options: object) -> None:
        if isinstance(obj, griffe.Attribute):
            _show_option(obj)
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_code, obj.docstring.value)


def _show_option(option: griffe.Attribute) -> None:
    """Show default and description of an option, and not the call of ``Field``."""
    field = option.value
    if isinstance(field, griffe.ExprCall) and str(field.function) == "Field":
        given = {item.name: item.value for item in field.arguments if isinstance(item, griffe.ExprKeyword)}
        option.value = given.get("default")
        if option.docstring is None and "description" in given:
            option.docstring = griffe.Docstring(ast.literal_eval(str(given["description"])), parent=option)


def _code(role: re.Match[str]) -> str:
    tilde, name = role.groups()
    return f"`{name.rpartition('.')[2] if tilde else name}`"
