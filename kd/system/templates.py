"""Render HTML from jinja2 templates; whatever is put into one is escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


class Templates:
    """The templates of one room, in its folder ``templates``. A name that a template uses and is not given is an error."""

    def __init__(self, folder: Path) -> None:
        self.environment = Environment(
            loader=FileSystemLoader(folder),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def render(self, name: str, **values: Any) -> str:
        """Return the template ``name`` (without ``.html``) with these values, each escaped unless it is ``Markup``."""
        return self.environment.get_template(f"{name}.html").render(**values)
