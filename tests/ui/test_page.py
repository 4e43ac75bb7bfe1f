"""The page as a whole, without a browser: what it imports, what it serves, how its tabs lead to each other."""

import inspect
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from kd.errors import UserError
from kd.system.ids import new_id
from kd.ui import settings
from kd.ui.access import uploaded
from kd.ui.page import blocked_paths, build, to_dataset


def test_the_page_is_built_without_torch_transformers_or_what_a_login_needs():
    code = "import sys; from kd.ui.page import build; build(); print([m for m in ('torch', 'transformers', 'authlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_runs_that_are_kept_among_the_uploads_are_not_served(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    for folder, blocked in (("runs", False), ("uploads/runs", True), (".", False)):
        monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path / folder))
        assert blocked_paths() == ([str(tmp_path / folder)] if blocked else [])


def test_only_what_was_uploaded_counts_as_uploaded_and_no_run_that_lies_there(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path / "uploads" / "runs"))
    sent = tmp_path / "uploads" / "0a1b" / "cat.png"
    for image in (str(sent), {"path": str(sent)}, SimpleNamespace(path=str(sent))):
        assert uploaded(image) == str(sent)
    for other in (tmp_path / "uploads/runs/one/config.json", tmp_path / "uploads/../x.png", "/etc/hostname"):
        with pytest.raises(UserError, match="must be uploaded"):
            uploaded(str(other))


def test_the_signatures_that_are_kept_of_components_are_their_own(monkeypatch):
    kinds = {type(block) for block in build().blocks.values()}
    assert len(kinds) > 10
    for kind in kinds:
        kept = kind.__init__.__signature__
        monkeypatch.delattr(kind.__init__, "__signature__")
        assert inspect.signature(kind.__init__) == kept, kind
        monkeypatch.undo()


def test_with_one_s_own_pictures_the_teacher_is_still_to_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    folder = tmp_path / ".datasets" / new_id(0)
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"name": "Mushrooms", "owner": "", "pictures": {}}))
    _, preset, *updates, _, models = to_dataset(None, SimpleNamespace(dataset=folder.name))
    chosen = {name: update["value"] for name, update in zip(settings.FIELDS, updates, strict=True)}
    assert (
        models.open
        and preset == "custom"
        and chosen["dataset"] == f"upload:{folder.name}"
        and chosen["teacher"] is None
    )
    with pytest.raises(ValueError, match="Choose a teacher that knows these classes"):
        settings.from_widgets(tuple(chosen.values()))
