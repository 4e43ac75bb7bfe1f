"""Render the page's templates (``kd/ui/templates``)."""

from pathlib import Path

from kd.system.templates import Templates

# Returns the template of this name with the values that it is given by name, each of them escaped.
render = Templates(Path(__file__).parent / "templates").render
