"""Stored datasets: an import that is called off or killed leaves nothing, and an id is never a path."""

import sys
import time
from pathlib import Path

import pytest

from kd.data.library.store import HALF, Library, datasets_folder, find_upload, import_dataset, list_uploads
from kd.errors import UserError
from tests.support.uploads import PNG, packed, take


class CalledOff(Exception):
    pass


def test_an_import_that_is_called_off_or_killed_leaves_nothing(tmp_path):
    source = packed(tmp_path / "a.zip", {f"{'ab'[n % 2]}/{n}.png": PNG for n in range(40)})

    def call_off(done: int, of: int) -> None:
        raise CalledOff

    with pytest.raises(CalledOff):
        import_dataset(source, "", Library(tmp_path, "me"), call_off)
    assert list_uploads(tmp_path) == []
    half = datasets_folder(tmp_path) / f"{HALF}x"  # of one that was killed while it wrote
    half.mkdir(parents=True)
    (half / "train.parquet").write_bytes(b"PAR1")
    half.with_name(half.name + ".lock").touch()
    assert list_uploads(tmp_path) == []
    upload = take(tmp_path, source)
    assert sorted(path.name for path in upload.path.parent.iterdir()) == [".lock", upload.id]


@pytest.mark.skipif(sys.platform == "win32", reason="it is a shell's script")
def test_an_import_that_hangs_is_called_off_at_once_and_takes_along_what_hangs(tmp_path, monkeypatch):
    stuck = tmp_path / "stuck"  # the process of an import, and in the place of its decoder one that sleeps
    stuck.write_text(f'#!/bin/sh\necho \'{{"done": 3, "of": 9}}\'\nsleep 60 &\necho $! > {tmp_path}/pid\nwait\n')
    stuck.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stuck))
    heard = []

    def call_off(done: int, of: int) -> None:
        heard.append((done, of))
        if heard.count((3, 9)) > 1:  # the second time nothing new was said
            raise CalledOff

    began = time.monotonic()
    with pytest.raises(CalledOff):
        import_dataset(tmp_path, "", Library(tmp_path, "me"), call_off)
    assert time.monotonic() - began < 5
    status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/status")
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() - began < 5
        time.sleep(0.01)


@pytest.mark.parametrize("id", ["", "..", "../..", "/etc", ".lock", "upload:", "upload:../x"])
def test_an_id_from_outside_never_becomes_a_path(id, tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    datasets_folder(tmp_path).mkdir()
    with pytest.raises(UserError, match="There is no dataset"):
        find_upload(tmp_path, id)
