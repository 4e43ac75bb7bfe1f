"""The README's front matter, as the Hub reads it, and its claims that can go stale."""

import re
from importlib.metadata import version
from pathlib import Path

from conftest import ROOT
from huggingface_hub import RepoCard, SpaceCardData

from kd.cli.main import parser
from kd.cli.screen import table
from kd.config import STUDENT_NAMES
from kd.experiments import study
from kd.models.teacher import STUDENTS

TEXT = (ROOT / "README.md").read_text()
STUDIES = (ROOT / "assets" / "studies" / "README.md").read_text()


def front_matter() -> dict:
    return RepoCard(TEXT).data.to_dict()


def test_the_front_matter_is_a_space_s():
    card = front_matter()
    data = SpaceCardData(**card)
    assert (data.sdk, data.app_file, data.license) == ("gradio", "app.py", "apache-2.0")
    assert card["python_version"] == "3.11" and (ROOT / data.app_file).exists()
    assert len(card["short_description"]) <= 60  # the Hub refuses a longer one
    assert {"models", "datasets", "suggested_hardware", "tags", "thumbnail"} <= card.keys()
    assert (ROOT / "assets" / card["thumbnail"].rsplit("/", 1)[1]).exists()


def test_the_space_s_gradio_is_the_one_that_is_tested():
    assert front_matter()["sdk_version"] == version("gradio")
    gradio = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("gradio"))
    assert re.fullmatch(r"gradio\[oauth\]>=[\d.]+,<\d+", gradio)


def test_every_command_that_the_readme_names_exists():
    commands = next(a for a in parser()._actions if a.choices).choices
    assert set(re.findall(r"(?:`|\n|bin/)kd ([a-z]+)", TEXT + STUDIES)) <= set(commands)


def test_the_pictures_that_the_readme_shows_are_there():
    for path in re.findall(r"!\[[^]]*]\(([^)]+)\)", TEXT):
        assert (ROOT / path).exists(), path


def test_the_students_that_the_page_offers_are_those_there_are():
    assert list(STUDENT_NAMES) == list(STUDENTS)


def test_the_tables_of_studies_are_those_that_the_command_prints():
    shown = {path: printed(path) for path in sorted((ROOT / "assets" / "studies").glob("*.json"))}
    for path, text in shown.items():
        assert f"kd study assets/studies/{path.name} --show" in TEXT + STUDIES, path.name
        assert f"```\n{text}\n```" in TEXT + STUDIES, path.name
    for block in re.findall(r"```\n( +seeds  test accuracy.*?)\n```", TEXT, re.DOTALL):
        assert block in shown.values(), block


def printed(path: Path) -> str:
    head, *lines = study.table(study.load(path))
    return table(head, lines)
