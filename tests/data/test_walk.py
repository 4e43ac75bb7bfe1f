"""Walking through folders: links, circles and what is no file."""

import os
from pathlib import Path

import pytest

from kd.data.walk import files_below
from kd.errors import UserError


def found(folder):
    return {path.relative_to(folder).as_posix(): why for path, why in files_below(folder)}


def test_links_are_followed_and_no_circle_is_walked_twice(tmp_path):
    root = tmp_path / "in" / "root"
    for name in ("root/a", "root/b", "far"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(b"x")
    for link, target in {"a/x": "../b", "b/y": "../a", "up": "../..", "c": "../far", "d": "d", "e": "nowhere"}.items():
        (root / link).symlink_to(target)
    assert found(root) == {
        "a/1.png": "", "a/x/1.png": "", "a/x/y": "is a link to a folder that it lies in",
        "b/1.png": "", "b/y/1.png": "", "b/y/x": "is a link to a folder that it lies in",
        "c/1.png": "", "up": "is a link to a folder that it lies in",
        "d": "is a link to nothing, a pipe or a device", "e": "is a link to nothing, a pipe or a device",
    }  # fmt: skip


def test_what_systems_leave_behind_is_silent_and_a_name_in_no_encoding_is_told(tmp_path):
    for name in (b".DS_Store", b"Thumbs.db", b"\xff.png", b"a.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "w"):
            pass
    assert sorted(why for _, why in files_below(tmp_path)) == ["", "has a name in no known encoding"]


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        list(files_below(tmp_path))
