"""Render HTML from jinja2 templates with autoescape."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


class Templates:
    """The templates in one folder, with whatever is put into them escaped.

    A name that a template uses and ``render`` is not given is an error.
    """

    def __init__(self, folder: Path) -> None:
        self.environment = Environment(
            loader=FileSystemLoader(folder),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, name: str, /, **values: Any) -> str:
        """Render the template ``name`` (without ``.html``). Each value is escaped unless it is ``Markup``."""
        return self.environment.get_template(f"{name}.html").render(**values)
