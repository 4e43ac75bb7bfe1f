"""The page's jinja2 templates, in ``kd/ui/templates``."""

from pathlib import Path

from kd.system.templates import Templates

TEMPLATES = Templates(Path(__file__).parent / "templates")
