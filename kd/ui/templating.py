"""The page's HTML is written in the templates of this room, and nowhere in Python."""

from pathlib import Path

from kd.system.templates import Templates

render = Templates(Path(__file__).parent / "templates").render
