"""The README's front matter, as the Hub reads it, and what the README and the guides say that can go stale."""

import ast
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from huggingface_hub import RepoCard, SpaceCardData

import kd
from kd import limits
from kd.cli.main import parser
from kd.cli.screen import table
from kd.config import STUDENT_NAMES
from kd.experiments.study import load_study, study_table
from kd.models.zoo import STUDENTS
from tests.support.paths import ROOT

MOST_BYTES = 9_500
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "assets" / "guide").glob("*.md"))
STUDIES = ROOT / "assets" / "studies" / "README.md"
PAGES = [README, *GUIDES, STUDIES]
CARD = RepoCard(README.read_text())
TEXT = "\n".join(page.read_text() for page in PAGES)
BLOCKS = re.findall(r"^```\w*\n(.*?)\n```$", TEXT, re.DOTALL | re.MULTILINE)


def shown_path(path: Path) -> str:
    """Return where a page is in the repository."""
    return str(path.relative_to(ROOT))


# --- The front matter


def test_the_front_matter_is_a_space_s():
    card = CARD.data.to_dict()
    data = SpaceCardData(**card)
    assert (data.sdk, data.app_file, data.license) == ("gradio", "app.py", "apache-2.0")
    assert card["python_version"] == "3.11" and (ROOT / data.app_file).exists()
    assert len(card["short_description"]) <= 60  # the Hub refuses a longer one
    assert {"models", "datasets", "suggested_hardware", "tags", "thumbnail"} <= card.keys()
    assert (ROOT / "assets" / card["thumbnail"].rsplit("/", 1)[1]).exists()


def test_the_space_s_gradio_is_the_one_that_is_tested():
    assert CARD.data.to_dict()["sdk_version"] == version("gradio")
    gradio = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("gradio"))
    assert re.fullmatch(r"gradio\[oauth\]>=[\d.]+,<\d+", gradio)


# --- The README


def test_the_readme_can_be_read_in_one_sitting():
    assert len(CARD.text.strip().encode()) <= MOST_BYTES


def test_the_readme_links_to_every_guide():
    for guide in [*GUIDES, STUDIES]:
        assert f"({shown_path(guide)})" in CARD.text, guide.name


def test_the_map_of_the_code_names_each_folder_and_a_file_in_it():
    rows = re.findall(r"^\| (`kd/.*?) \| .* \| `(.*)` \|$", CARD.text, re.MULTILINE)
    places = [re.findall(r"`([^`]+)`", where) for where, _ in rows]
    for (first, *_), (_, file) in zip(places, rows, strict=True):
        assert (ROOT / first).exists(), first
        assert (ROOT / first / file).exists() or first.endswith(f"/{file}"), f"{first}: {file}"
    folders = {path.parent.name for path in (ROOT / "kd").glob("*/__init__.py")}
    assert {Path(first).name for first, *_ in places if first.endswith("/")} == folders


def test_the_results_in_the_readme_are_those_of_the_studies():
    rows = re.findall(r"^\| `(assets/studies/.*?)`(.*)$", CARD.text, re.MULTILINE)
    assert rows
    for path, row in rows:
        missing = set(re.findall(r"[+-]?\d+\.\d+", row)) - set(re.findall(r"[+-]?\d+\.\d+", printed(ROOT / path)))
        assert not missing, f"{path}: {missing}"


def test_each_figure_in_the_readme_is_one_that_a_command_prints():
    prose = re.sub(r"^```.*?^```$", "", CARD.text, flags=re.DOTALL | re.MULTILINE).replace("Python 3.11", "")
    prose = re.sub(r"lambda [\d.]+ to \d", "", prose)  # a setting, not a result
    for figure in re.findall(r"(?<![\w.-])\d+\.\d+(?![\d.]*\w)", re.sub(r"`[^`]*`|\S*://\S*", "", prose)):
        assert any(re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", block) for block in BLOCKS), figure


# --- README and guides


def test_the_map_is_of_guides_that_are_there():
    assert [guide.stem for guide in GUIDES] == [
        "agents",
        "data",
        "export",
        "gpu",
        "hub",
        "methods",
        "numbers",
        "robustness",
        "server",
        "space",
        "speed",
        "zerogpu",
    ]


@pytest.mark.parametrize("guide", [*GUIDES, STUDIES], ids=shown_path)
def test_a_guide_begins_with_a_title_and_says_in_plain_words_what_it_is_for(guide: Path):
    title, paragraph = guide.read_text().split("\n\n")[:2]
    assert re.fullmatch(r"# [A-Z].+", title)
    assert re.match(r"[A-Z][a-z]+ ", paragraph) and paragraph.rstrip().endswith(".") and len(paragraph) > 100


@pytest.mark.parametrize("page", PAGES, ids=shown_path)
def test_every_link_leads_somewhere(page: Path):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Return what a link to a heading of ``page`` can be, as GitHub makes it of the heading."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_file_of_the_repository_that_is_named_is_there():
    for path in re.findall(r"`((?:kd|assets|tests)/[\w./-]*\w/?)`", TEXT):
        assert (ROOT / path).exists(), path


def test_every_command_that_is_named_exists():
    commands = next(action for action in parser()._actions if action.choices).choices
    assert set(re.findall(r"(?:`|\n|bin/)kd\s([a-z]+)", TEXT)) <= set(commands)


def test_every_flag_of_a_command_that_is_named_exists():
    commands = next(action for action in parser()._actions if action.choices).choices
    for name, rest in re.findall(r"(?:`|\n|bin/)kd\s([a-z]+)((?:[^`\n#]|\n(?=[^`\n]*`))*)", TEXT):
        known = commands[name].format_help()
        for flag in re.findall(r"(?<=\s)--[a-z-]+", rest):
            assert re.search(rf"{flag}\b", known), f"kd {name} {flag}"


def test_every_flag_that_is_named_alone_is_one_of_some_command():
    commands = next(action for action in parser()._actions if action.choices).choices
    known = set(re.findall(r"--[a-z-]+", "".join(command.format_help() for command in commands.values())))
    assert set(re.findall(r"`(--[a-z-]+)", TEXT)) <= known


def test_the_python_examples_use_public_names():
    examples = re.findall(r"^```python\n(.*?)\n```$", TEXT, re.DOTALL | re.MULTILINE)
    assert examples
    for example in examples:
        imported = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.ImportFrom)]
        assert {alias.name for node in imported for alias in node.names} <= set(kd.__all__)


def test_the_pictures_that_are_shown_are_there():
    for page in PAGES:
        for path in re.findall(r"!\[[^]]*]\(([^)]+)\)", page.read_text()):
            assert (page.parent / path).exists(), f"{page}: {path}"


def test_the_limits_in_the_guide_are_those_of_the_program():
    for row in limits.table():
        assert f"| `{row[0]}` | {' | '.join(row[1:])} |" in TEXT, row[0]


def test_the_students_that_the_page_offers_are_those_there_are():
    assert list(STUDENT_NAMES) == list(STUDENTS)
    for name in STUDENT_NAMES:
        assert re.search(rf"^{re.escape(name)} +\d+ px", TEXT, re.MULTILINE), name


def test_the_tables_of_studies_are_those_that_the_command_prints():
    shown = {path: printed(path) for path in sorted((ROOT / "assets" / "studies").glob("*.json"))}
    for path, text in shown.items():
        assert f"kd study assets/studies/{path.name} --show" in TEXT, path.name
        assert f"```\n{text}\n```" in TEXT, path.name
    for block in re.findall(r"```\n( +seeds  test accuracy.*?)\n```", TEXT, re.DOTALL):
        assert block in shown.values(), block


def printed(path: Path) -> str:
    """Return the table that ``kd study FILE --show`` prints."""
    head, *lines = study_table(load_study(path))
    return table(head, lines)
