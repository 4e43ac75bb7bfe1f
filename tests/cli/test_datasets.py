"""The commands for datasets: import, datasets, check."""

import json
from pathlib import Path

from kd.cli import main, options
from kd.config import DistillConfig
from kd.data.library.store import ImportRefused
from tests.support import toys
from tests.support.uploads import PHOTOS, packed


def test_the_command_line_imports_lists_and_deletes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KD_UNREADABLE_SHARE", "0.5")
    source, folder = packed(tmp_path / "pets.zip", PHOTOS), ["--runs-dir", str(tmp_path / "runs")]
    assert main.main(["import", str(source), "--name", "Pets", "--json", *folder]) == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert "3 skipped" in said and f"--dataset upload:{found['id']}" in said
    config = options.with_folders(DistillConfig(dataset=str(source)), tmp_path / "runs")
    assert Path(config.dataset).name == found["id"]  # it was imported already
    assert main.main(["datasets", *folder]) == 0
    assert "Pets" in capsys.readouterr().out
    assert main.main(["datasets", "delete", "last", *folder]) == 0
    assert main.main(["datasets", *folder]) == 0
    assert "No datasets yet" in capsys.readouterr().out
    assert main.main(["datasets", "delete", *folder]) == 2 and main.main(["import", *folder]) == 2
    assert main.main(["import", str(tmp_path / "nothing.zip"), *folder]) == 1
    assert "There is no archive" in capsys.readouterr().err


def test_of_a_refused_import_the_first_files_are_named_and_the_others_counted_by_reason(tmp_path, capsys, monkeypatch):
    skipped = [(f"{n}.png", "is truncated" if n % 3 else "is empty") for n in range(50)]

    def refuse(*_):
        raise ImportRefused("50 of 60 pictures cannot be read.", skipped)

    monkeypatch.setattr("kd.cli.options.import_dataset", refuse)
    assert main.main(["import", str(tmp_path), "--runs-dir", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  0.png: is empty" and lines[19] == "  19.png: is truncated"
    assert lines[20:] == [
        "and 30 more:",
        "  20: is truncated",
        "  10: is empty",
        "kd: 50 of 60 pictures cannot be read.",
    ]


def test_the_command_line_keeps_a_page_or_json_and_problems_are_no_failure(bad_dataset, tmp_path, capsys):
    flags = ["check", "--dataset", str(bad_dataset), "--runs-dir", str(tmp_path)]
    assert main.main([*flags, "--out", str(tmp_path / "check.html"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["problems"] and "pictures" not in printed and (tmp_path / "check.html").stat().st_size > 5000
    assert main.main([*flags, "--out", str(tmp_path / "check.json")]) == 0
    assert json.loads((tmp_path / "check.json").read_text())["pictures"]["sheet"]
    for wrong in (
        ["--out", "check.txt"],
        ["--out", str(tmp_path / "no" / "a.html")],
        ["--dataset", str(tmp_path / "no")],
    ):
        assert main.main([*flags, *wrong]) == 2
        assert "kd: " in capsys.readouterr().err


def test_pictures_without_a_label_have_a_row_of_their_own(tmp_path, capsys):
    toys.class_folders(tmp_path / "photos", each=10)
    (tmp_path / "photos" / toys.CLASSES[0]).rename(tmp_path / "photos" / "unlabelled")
    folder = ["--runs-dir", str(tmp_path / "runs")]
    assert main.main(["import", str(tmp_path / "photos"), *folder]) == 0
    assert "no label    10\nall         30\n" in capsys.readouterr().out
    assert main.main(["check", "--dataset", str(tmp_path / "photos"), *folder]) == 0
    said = capsys.readouterr().out
    assert "no label    10     0           0" in said
    assert "10 pictures of the train split have no label: they are learned from the teacher alone." in said
