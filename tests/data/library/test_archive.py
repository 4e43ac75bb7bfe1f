"""Archives of strangers: what is taken, what is skipped and named, what is refused; nothing is ever written."""

import bz2
import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.data.library import archive
from kd.data.walk import SILENT

Entry = zipfile.ZipInfo | str | tuple[zipfile.ZipInfo | str, bytes]


def zipped(path: Path, *entries: Entry, pack: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", pack) as file:
        for entry in entries:
            name, data = entry if isinstance(entry, tuple) else (entry, b"data")
            file.writestr(name, data)
    return path


def tarred(path: Path, *entries: tarfile.TarInfo | str, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for entry in entries:
            info = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            if info.isreg():
                info.size = 4
            file.addfile(info, io.BytesIO(b"data") if info.isreg() else None)
    return path


def zip_of_kind(kind: int, name: str = "a.jpg") -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, kind << 16
    return info


def tar_of_kind(kind: bytes, name: str = "a.jpg") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def read(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """What is taken (name -> bytes), and what is skipped (name -> reason)."""
    taken, skipped = {}, {}
    for member in archive.members(path):
        if member.reason:
            skipped[member.name] = member.reason
            continue
        try:
            taken["/".join(member.parts)] = member.read()
        except archive.Unreadable as problem:
            skipped[member.name] = str(problem)
    return taken, skipped


def flagged(path: Path, flag: int) -> Path:
    """A zip whose one entry has a general purpose flag set, in both of its headers."""
    data = bytearray(zipped(path, "a.jpg").read_bytes())
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(magic) + at] |= flag
    path.write_bytes(data)
    return path


SKIPPED = {
    "traversal": (lambda p: zipped(p, "../../a.jpg"), "leaves the archive"),
    "traversal inside": (lambda p: zipped(p, "cat/../../a.jpg"), "leaves the archive"),
    "traversal of Windows": (lambda p: zipped(p, "..\\a.jpg"), "leaves the archive"),
    "traversal in a tar": (lambda p: tarred(p, "../a.jpg"), "leaves the archive"),
    "absolute": (lambda p: zipped(p, "/etc/a.jpg"), "is absolute"),
    "absolute in a tar": (lambda p: tarred(p, "/etc/a.jpg"), "is absolute"),
    "a drive": (lambda p: zipped(p, "C:\\photos\\a.jpg"), "is absolute"),
    "a share": (lambda p: zipped(p, "\\\\server\\a.jpg"), "is absolute"),
    "link": (lambda p: zipped(p, zip_of_kind(stat.S_IFLNK)), "is a link"),
    "symbolic link in a tar": (lambda p: tarred(p, tar_of_kind(tarfile.SYMTYPE)), "is a link"),
    "hard link in a tar": (lambda p: tarred(p, tar_of_kind(tarfile.LNKTYPE)), "is a link"),
    "device": (lambda p: zipped(p, zip_of_kind(stat.S_IFCHR)), "is a device"),
    "character device": (lambda p: tarred(p, tar_of_kind(tarfile.CHRTYPE)), "is a device"),
    "block device": (lambda p: tarred(p, tar_of_kind(tarfile.BLKTYPE)), "is a device"),
    "pipe": (lambda p: tarred(p, tar_of_kind(tarfile.FIFOTYPE)), "is a device, a pipe"),
    "encrypted": (lambda p: flagged(p, 1), "is encrypted"),
    "control character": (lambda p: zipped(p, "a\n\x1b[2J.jpg"), "control characters"),
    "direction": (lambda p: zipped(p, "\u202egpj.exe"), "direction of writing"),
    "no encoding": (lambda p: tarred(p, "\udcff.jpg"), "no known encoding"),
    "long name": (lambda p: zipped(p, f"{'é' * 128}.jpg"), "too long"),
    "long path": (lambda p: zipped(p, "ab/" * 400 + "a.jpg"), "too long"),
    "deep path": (lambda p: tarred(p, "a/" * 40 + "a.jpg"), "too long"),
    "nested": (lambda p: zipped(p, "more.ZIP"), "archive inside"),
    "no name": (lambda p: zipped(p, "."), "has no name"),
    "large": (lambda p: zipped(p, ("a.jpg", bytes(2_000_001))), "is larger than 2 MB"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SKIPPED)
def test_a_hostile_entry_is_skipped_and_named_and_its_neighbour_is_read(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_PICTURE_MB", "2")
    make, reason = SKIPPED[kind]
    path = make(tmp_path / "photos")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("good.jpg", b"good")
    else:
        with tarfile.open(path, "a") as file:
            info = tarfile.TarInfo("good.jpg")
            info.size = 4
            file.addfile(info, io.BytesIO(b"good"))
    taken, skipped = read(path)
    assert taken == {"good.jpg": b"good"}
    ((name, why),) = skipped.items()
    assert reason in why and (name.isprintable() and len(name) <= 120)


def test_a_nul_in_a_name_does_not_end_it(tmp_path):
    path = zipped(tmp_path / "a.zip", "catX.exe")
    path.write_bytes(path.read_bytes().replace(b"catX", b"cat\0"))
    assert read(path) == ({}, {"cat\\x00.exe": "its name has control characters, or is in no known encoding"})


def damaged(path: Path) -> Path:
    data = bytearray(zipped(path, ("a.jpg", os.urandom(500)), pack=zipfile.ZIP_STORED).read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    return path


def test_a_file_that_is_damaged_in_a_zip_is_named(tmp_path):
    assert "is damaged in the archive" in read(damaged(tmp_path / "a.zip"))[1]["a.jpg"]


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def ends_early(path: Path) -> Path:
    """A tar of whole headers and files that has no end."""
    path.write_bytes(tarred(path, "a.jpg").read_bytes()[:1024])
    return path


def negative(path: Path) -> Path:
    """A tar whose header has a size below zero, which leads back to itself for ever."""
    data = bytearray(tarred(path, "a.jpg", "b.jpg").read_bytes())
    data[1024 + 124 : 1024 + 136] = (-1024).to_bytes(12, "big", signed=True)
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024 : 1024 + 512])
    path.write_bytes(data)
    return path


def huge_header(path: Path) -> Path:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "1" * 10**6}):
        pass
    return path


def lying(path: Path) -> Path:
    """A zip that says it has a million entries."""
    data = zipped(path, "a.jpg").read_bytes()
    start = data.index(b"PK\5\6")
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, 0, 0)
    path.write_bytes(data[:start] + end64 + struct.pack("<4sLQL", b"PK\6\7", 0, start, 1) + data[start:])
    return path


REFUSED = {
    "truncated zip": (lambda p: cut(zipped(p, ("a.jpg", os.urandom(999))), 0.6), "damaged or cut short"),
    "truncated tar": (lambda p: cut(tarred(p, *"abc"), 0.11), "damaged or cut short"),
    "truncated tar.gz": (lambda p: cut(tarred(p, *"abc", mode="w:gz"), 0.8), "damaged or cut short"),
    "truncated tar.bz2": (lambda p: cut(tarred(p, *"abc", mode="w:bz2"), 0.8), "damaged or cut short"),
    "truncated tar.xz": (lambda p: cut(tarred(p, *"abc", mode="w:xz"), 0.5), "damaged or cut short"),
    "tar without an end": (ends_early, "it has no end"),
    "negative size": (negative, "contradict|header of a size|damaged"),
    "huge header": (huge_header, "header of a size"),
    "many entries": (lambda p: zipped(p, *(f"{n}/" for n in range(101))), "more than 100 entries"),
    "many tar entries": (lambda p: tarred(p, *(f"{n}" for n in range(101))), "more than 100 entries"),
    "a million entries": (lying, "more than 100 entries"),
    "bomb by ratio": (lambda p: zipped(p, ("a.jpg", bytes(3 * 10**6))), "more than 200 times its size"),
    "bomb by size": (lambda p: zipped(p, *((f"{n}.jpg", bytes(9**7)) for n in range(2))), "more than 9 MB"),
    "bomb in a tar": (lambda p: bomb(p), "more than 200 times its size"),
    "7z": (lambda p: write(p, b"7z\xbc\xaf\x27\x1c"), "is a 7z archive. Expected a zip"),
    "rar": (lambda p: write(p, b"Rar!\x1a\x07\x01\0"), "is a rar archive"),
    "a picture": (lambda p: write(p, b"\xff\xd8\xff"), "is no archive"),
    "nothing": (lambda p: write(p, b""), "is no archive"),
    "gzip of no tar": (lambda p: write(p, gzip.compress(b"hello" * 200)), "damaged"),
    "bzip2 of nothing": (lambda p: write(p, bz2.compress(b"")), "damaged"),
    "not there": (lambda p: p, "There is no archive"),
}  # fmt: skip


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def bomb(path: Path) -> Path:
    """A file that nobody asks for still comes out of the decompressor."""
    info = tarfile.TarInfo("film.mp4")
    info.size = 4 * 10**6
    with tarfile.open(path, "w:xz") as file:
        file.addfile(info, io.BytesIO(bytes(info.size)))
    return path


@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_archive_is_refused_in_words(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_FILES", "100")
    monkeypatch.setenv("KD_UNPACKED_MB", "9")
    monkeypatch.setattr("kd.data.library.archive.FREE_BYTES", 10**6)
    if kind == "bomb by size":
        monkeypatch.setenv("KD_RATIO", "none")
    make, words = REFUSED[kind]
    with pytest.raises(archive.Refused, match=words):
        read(make(tmp_path / "photos"))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_kind_of_tar_is_read(mode, tmp_path):
    path = tarred(tmp_path / "photos.bin", "cat/a.jpg", "cat/b.jpg", mode=mode)
    assert read(path) == ({"cat/a.jpg": b"data", "cat/b.jpg": b"data"}, {})


def test_what_systems_leave_behind_is_no_news(tmp_path):
    names = ["__MACOSX/cat/._a.jpg", ".DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "cat/.hidden/a.jpg", "cat/"]
    assert read(zipped(tmp_path / "a.zip", *names, "cat/a.jpg")) == ({"cat/a.jpg": b"data"}, {})


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_files_of_one_name_the_first_is_taken_and_capitals_make_another_name(tmp_path):
    path = zipped(tmp_path / "a.zip", ("a.jpg", b"1"), ("a.jpg", b"2"), ("A.JPG", b"3"), ("./a.jpg", b"4"))
    taken, skipped = read(path)
    assert taken == {"a.jpg": b"1", "A.JPG": b"3"}
    assert skipped == {"a.jpg": archive.TWICE, "./a.jpg": archive.TWICE}


def test_names_are_read_as_they_were_meant(tmp_path):
    path = zipped(tmp_path / "a.zip", "cafe\u0301 noir/猫.jpg")
    data = bytearray(path.read_bytes())
    for magic, at in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        data[data.index(magic) + at] &= ~8  # as macOS packs: UTF-8, without saying so
    path.write_bytes(data)
    assert list(read(path)[0]) == ["café noir/猫.jpg"]


def test_a_folder_s_links_are_followed_but_one_that_leads_to_itself_is_named(tmp_path):
    folder = tmp_path / "photos"
    for name in ("cat", "../elsewhere"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.jpg").write_bytes(b"data")
    (folder / "cat" / "b.jpg").symlink_to("a.jpg")
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    taken, skipped = read(folder)
    assert set(taken) == {"cat/a.jpg", "cat/b.jpg", "dog/a.jpg"} and set(skipped) == {"round", "pipe.jpg"}
    assert "link to a folder that it lies in" in skipped["round"]


PIECES = st.sampled_from(
    ["cat", "..", ".", "", "C:", "a.jpg", "A.JPG", ".DS_Store", "__MACOSX", "Thumbs.db", "x.zip", "\u202ea", "é", "\x07", "猫" * 90]
)  # fmt: skip

NAMES = st.one_of(st.lists(PIECES, min_size=1, max_size=5).map("/".join), st.text(min_size=1, max_size=12))


@given(st.lists(NAMES, min_size=1, max_size=8), st.booleans())
@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_each_entry_of_any_archive_is_read_or_named_or_left_behind_by_a_system(tmp_path_factory, names, as_zip):
    names = [
        name for name in names if not any(0xD800 <= ord(c) < 0xE000 for c in name) and name.split("\0")[0].strip("/")
    ]
    folder = tmp_path_factory.mktemp("any")
    names.append("dog/good.jpg")  # a tar of nothing looks like nothing
    path = (zipped if as_zip else tarred)(folder / "photos", *names)
    found = list(archive.members(path))
    silent = sum(is_silent(name) for name in names)
    assert len(found) + silent >= len(names)
    for member in found:
        assert member.name.isprintable()
        assert bool(member.reason) != bool(member.parts)
        assert not {"..", ".", ""} & set(member.parts) and not any("/" in part or "\\" in part for part in member.parts)
    assert list(folder.iterdir()) == [path]


def is_silent(name: str) -> bool:
    """Folders, and what systems leave behind."""
    parts = name.replace("\\", "/").split("/")
    hidden = any(p.lower() in SILENT or (p.startswith(".") and p not in (".", "..")) for p in parts)
    return hidden or parts[-1] in ("", ".")
