"""Files that are whole or not there."""

import pytest

from kd.system.files import write_whole


def test_no_reader_sees_half_a_file(tmp_path):
    path = tmp_path / "report.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
