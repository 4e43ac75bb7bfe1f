"""Pictures that somebody brings: layouts, hostile files, what is stored, and who may delete it."""

import io
import json
import os
import random
import re
import signal
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd.cli import main, options
from kd.config import DistillConfig
from kd.data.folders import layout
from kd.data.library import decoder
from kd.data.library.decoder import Decoder, judge
from kd.data.library.importer import import_source
from kd.data.library.store import (
    HALF,
    ImportRefused,
    Upload,
    dataset_title,
    datasets_folder,
    find_upload,
    import_dataset,
    list_uploads,
)
from kd.data.pixels import load_pixels
from kd.data.splits import load_splits
from kd.errors import UserError
from kd.runs.store import create_run, delete_dataset, with_upload
from kd.system.files import cache_folder
from kd.system.ids import owner_hash

RED, WHITE = (200, 40, 30), (255, 255, 255)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def red(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, RED).convert(mode)


def numbers(top: float, dtype: type) -> Image.Image:
    """A grey picture of two thirds of ``top``."""
    return Image.fromarray(np.full((16, 24), top * 2 / 3, dtype))


def bomb_png(width: int, height: int) -> bytes:
    """A PNG that says it is large, and is not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def turned() -> bytes:
    """A picture that lies on its side; its EXIF tag says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(red(size=(16, 24)), "JPEG", exif=exif, quality=95)


def heic() -> bytes:
    from pillow_heif import from_pillow

    file = io.BytesIO()
    from_pillow(red(size=(64, 48))).save(file, quality=90)
    return file.getvalue()


def frames(form: str, **options) -> bytes:
    blue = Image.new("RGB", (24, 16), (0, 0, 255))
    return encoded(red(), form, save_all=True, append_images=[blue, blue], **options)


def zip_in_picture() -> bytes:
    """A PNG that is a zip as well."""
    file = io.BytesIO(encoded(red(), "PNG"))
    with zipfile.ZipFile(file, "a") as both:
        both.writestr("../evil.py", "boom")
    return file.getvalue()


GREY = (170, 170, 170)

READ = {
    "PNG": (lambda: encoded(red(), "PNG"), RED),
    "a JPEG called .png": (lambda: encoded(red(), "JPEG", quality=95), RED),
    "CMYK": (lambda: encoded(red("CMYK"), "JPEG", quality=95), RED),
    "CMYK in a TIFF": (lambda: encoded(red("CMYK"), "TIFF"), RED),
    "palette": (lambda: encoded(red("P"), "PNG"), None),
    "palette with alpha": (lambda: encoded(Image.new("P", (24, 16)), "PNG", transparency=0), WHITE),
    "alpha": (lambda: encoded(Image.new("RGBA", (24, 16), (*RED, 0)), "PNG"), WHITE),
    "grey with alpha": (lambda: encoded(Image.new("LA", (24, 16), (9, 0)), "PNG"), WHITE),
    "one bit": (lambda: encoded(Image.new("1", (24, 16), 1), "PNG"), WHITE),
    "16 bits": (lambda: encoded(numbers(65535, np.uint16), "PNG"), GREY),
    "16 bits in a TIFF": (lambda: encoded(numbers(65535, np.uint16), "TIFF"), GREY),
    "32 bits in a TIFF": (lambda: encoded(numbers(65535, np.int32), "TIFF"), GREY),
    "floats up to 1": (lambda: encoded(numbers(1, np.float32), "TIFF"), GREY),
    "turned": (turned, RED),
    "damaged EXIF": (lambda: encoded(red(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), RED),
    "animated GIF": (lambda: frames("GIF"), RED),
    "animated WebP": (lambda: frames("WEBP", lossless=True), RED),
    "animated PNG": (lambda: frames("PNG"), RED),
    "TIFF with pages": (lambda: frames("TIFF"), RED),
    "MPO, as phones make it": (lambda: frames("MPO", quality=95), RED),
    "BMP": (lambda: encoded(red(), "BMP"), RED),
    "AVIF": (lambda: encoded(red(size=(64, 48)), "AVIF", quality=95), RED),
    "HEIC": (heic, RED),
    "a zip as well": (zip_in_picture, RED),
    "a script as well": (lambda: encoded(red(), "GIF") + b"<script>alert(1)</script>", RED),
}

BAD = {
    "empty": (lambda: b"", False, "is empty"),
    "text": (lambda: b"hello", False, "is not a picture that can be read"),
    "dimensions": (lambda: bomb_png(50_000, 50_000), True, "has too many pixels; at most 64 megapixels"),
    "dimensions below Pillow's own limit": (lambda: bomb_png(9000, 9000), True, "is 9,000 x 9,000 pixels; at most 64"),
    "tiny": (lambda: encoded(red(size=(24, 2)), "PNG"), True, "expected at least 4 x 4"),
    "a cut PNG": (lambda: encoded(noise(), "PNG")[:600], True, "is damaged or cut short"),
    "a cut JPEG": (lambda: encoded(noise(), "JPEG")[:900], True, "is damaged or cut short"),
    "a cut WebP": (lambda: encoded(noise(), "WEBP")[:300], None, "damaged or cut short|is not a picture"),
    "a cut HEIC": (lambda: heic()[:-60], None, "damaged or cut short|is not a picture"),
    "a cut AVIF": (lambda: encoded(noise(), "AVIF")[:-200], None, "damaged or cut short|is not a picture"),
    "no pixels": (lambda: bomb_png(30, 30), True, "is damaged or cut short"),
    "PostScript": (lambda: encoded(red(), "EPS"), False, "is not a picture that can be read"),
    "PDF": (lambda: encoded(red(), "PDF"), False, "is not a picture that can be read"),
    "TGA": (lambda: encoded(red(), "TGA"), False, "is not a picture that can be read"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", False, "is not a picture that can be read"),
}  # fmt: skip


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", READ)
def test_a_picture_is_read_whatever_it_is_packed_in(kind):
    make, colour = READ[kind]
    picture = decoder.open_picture(make(), "a.png")
    assert picture.mode == "RGB" and picture.width > picture.height
    if colour:
        assert np.abs(np.asarray(picture, int) - colour).max() <= 12
    assert judge(make(), "a.png") == {}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_named_with_the_reason(kind):
    make, begins_like_one, reason = BAD[kind]
    answer = judge(make(), "a.png")
    assert re.search(reason, answer["reason"]), answer
    assert begins_like_one is None or answer["picture"] is begins_like_one


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_damage_anywhere_is_told_in_words():
    rng = random.Random(0)
    for make in (
        turned,
        lambda: frames("GIF"),
        lambda: encoded(noise(), "TIFF"),
        lambda: encoded(red("P"), "PNG"),
        heic,
    ):
        whole = make()
        for _ in range(12):
            data = bytearray(whole)
            for _ in range(4):
                data[rng.randrange(len(data))] = rng.randrange(256)
            assert set(judge(bytes(data), "a.png")) in (set(), {"reason", "picture"})


# --- The process that decodes


def judge_or_die(data: bytes, name: str) -> dict:
    if name == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang":
        time.sleep(60)
    if name == "greedy":
        bytearray(10**11)
    return {"data": data.decode()}


def test_a_picture_that_kills_the_decoder_is_named_and_the_next_one_is_read(monkeypatch):
    monkeypatch.setenv("KD_DECODER_MB", "30000")  # this process has torch in it
    with Decoder(judge_or_die, seconds=0.3) as judge:
        assert judge(b"1", "fine") == {"data": "1"}
        first = judge.process.pid
        assert "crash" in judge(b"2", "crash")["reason"]
        assert "takes longer than 0.3 s" in judge(b"3", "hang")["reason"]
        assert "memory" in judge(b"4", "greedy")["reason"]
        assert judge(b"5", "fine") == {"data": "5"} and judge.process.pid != first
        last = judge.process
    assert not last.is_alive()


# --- Layouts

LAYOUTS = {
    "class folders": ("cat/1 dog/2", "train:cat train:dog"),
    "a single top folder": ("photos/cat/1 photos/dog/2", "train:cat train:dog"),
    "several top folders": ("a/b/cat/1 a/b/dog/2", "train:cat train:dog"),
    "splits": ("Train/cat/1 Train/dog/2 VAL/cat/3 testing/dog/4", "train:cat train:dog validation:cat test:dog"),
    "splits with other names": ("x/training/a/1 x/training/b/2 x/Dev/a/3", "train:a train:b validation:a"),
    "a top folder in each split": ("train/in/a/1 train/in/b/2 valid/in/a/3", "train:a train:b validation:a"),
    "a heap": ("1 2", "train:None train:None"),
    "a heap in a folder": ("photos/1 photos/2", "train:None train:None"),
    "one class is none": ("cat/1 cat/2", "train:None train:None"),
    "a heap with one folder": ("1 2 best/3", "train:None train:None train:None"),
    "splits without classes": ("train/1 val/2", "train:None validation:None"),
    "loose pictures": ("cover a/1 b/2", "skipped train:a train:b"),
    "a loose picture beside the top folder": ("cover x/a/1 x/b/2", "skipped train:a train:b"),
    "a test split without labels": ("train/a/1 train/b/2 test/3", "train:a train:b skipped"),
    "folders beside splits": ("train/a/1 train/b/2 misc/3", "train:a train:b skipped"),
    "a class called train": ("car/1 plane/2 train/3", "train:car train:plane train:train"),
    "folders in a class": ("cat/in/1 cat/out/2 dog/3", "train:cat train:cat train:dog"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_people_pack_is_understood(kind):
    names, wanted = (text.split() for text in LAYOUTS[kind])
    found = layout(tuple(name.split("/")) for name in names)
    places = {index: f"{split}:{name}" for index, (split, name) in found.places.items()}
    assert [places.get(index, "skipped") for index in range(len(names))] == wanted
    assert set(found.skipped) == {index for index, place in enumerate(wanted) if place == "skipped"}


# --- Storing


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


PNG = encoded(red(), "PNG")

PHOTOS = {
    "my photos/Train/chat noir/1.JPG": encoded(red(), "JPEG"),
    "my photos/Train/chat noir/2.png": turned(),
    "my photos/Train/犬/1.png": PNG,
    "my photos/Train/犬/2.png": PNG,
    "my photos/val/chat noir/1.png": PNG,
    "my photos/val/犬/1.heic": heic(),
    "my photos/Train/犬/notes.txt": b"a note",
    "my photos/Train/犬/more.zip": b"PK",
    "my photos/../../evil.png": PNG,
    "__MACOSX/my photos/._1.JPG": b"",
    "my photos/.DS_Store": b"",
}


@pytest.fixture
def lenient(monkeypatch):
    monkeypatch.setenv("KD_UNREADABLE_SHARE", "0.5")


def take(folder: Path, source, owner: str = "me", **job) -> Upload:
    """What the process does, in this one."""
    source = str(source) if isinstance(source, Path) else [[name, str(file)] for name, file in source]
    asked = {"source": source, "name": "", "folder": str(folder), "owner": owner_hash(owner), "room": None, **job}
    return find_upload(folder, import_source(asked, judge, lambda done, of: None))


def test_an_archive_becomes_a_dataset_with_the_pictures_own_bytes(tmp_path, lenient):

    told = []
    source = packed(tmp_path / "My Zip.zip", PHOTOS)
    upload = import_dataset(source, "", tmp_path / "runs", "me", lambda *progress: told.append(progress))
    assert told[-1] == (9, 9)
    info = upload.info()
    assert info["name"] == "My Zip" and info["classes"] == ["chat noir", "犬"] and info["owner"] == owner_hash("me")
    assert info["pictures"] == {"train": {"chat noir": 2, "犬": 2}, "validation": {"chat noir": 1, "犬": 1}}
    assert [name.rsplit("/")[-1] for name, _ in info["examples"]] == ["notes.txt", "more.zip", "evil.png"]
    assert (upload.path / "skipped.txt").read_text().splitlines()[0] == "my photos/Train/犬/notes.txt: is no picture"
    assert sorted(file.name for file in upload.path.iterdir()) == [
        "dataset.json", "skipped.txt", "train.parquet", "validation.parquet",
    ]  # fmt: skip
    assert upload.bytes() > sum(map(len, PHOTOS.values())) - 100
    config = with_upload(DistillConfig(dataset=f"upload:{upload.id}", test_fraction=0.5), tmp_path / "runs", "me")
    splits = load_splits(config)
    assert splits.classes == info["classes"] and splits.sizes() == {"train": 2, "validation": 2, "test": 2}
    bytes_ = {row["image"]["bytes"] for part in (splits.train, splits.validation, splits.test) for row in part}
    assert bytes_ <= set(PHOTOS.values())


def test_the_same_archive_is_stored_once_for_an_owner(tmp_path, lenient):
    source = packed(tmp_path / "a.zip", PHOTOS)
    first = take(tmp_path, source)
    assert take(tmp_path, source) == first and take(tmp_path, source, "another") != first
    assert len(list_uploads(tmp_path)) == 2


def test_a_folder_and_a_heap_and_named_classes_are_datasets_too(tmp_path):
    folder = tmp_path / "holiday"
    (folder / "x.jpg").mkdir(parents=True)  # a folder that is called like a picture
    (folder / "x.jpg" / "a.png").write_bytes(PNG)
    (folder / "b.png").write_bytes(PNG)
    heap = take(tmp_path, folder).info()
    assert (heap["name"], heap["classes"], heap["pictures"]) == ("holiday", [], {"train": {"": 2}})
    assert "no labels" in heap["notes"][0]
    a, b = folder / "b.png", folder / "x.jpg" / "a.png"
    named = take(tmp_path, [("<b>cat</b>", a), ("dog ", b), ("dog ", a)], name=" Pets\n").info()
    assert (named["name"], named["pictures"]) == ("Pets", {"train": {"<b>cat</b>": 1, "dog": 2}})
    assert take(tmp_path, [("", a)]).info()["pictures"] == {"train": {"": 1}}


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["cat"], "one class. A classifier needs at least two"),
        (["cat", ""], "A class has no name"),
        (["cat", "a\nb"], "The class 'a\\\\\\\\nb' cannot be called so: its name has control characters"),
    ],
)
def test_classes_that_cannot_be_are_refused(classes, words, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(UserError, match=words.replace("\\\\\\\\", "\\\\+")):
        take(tmp_path, [(name, tmp_path / "a.png") for name in classes])


def test_more_than_a_tenth_unreadable_is_refused_with_the_list_and_nothing_is_stored(tmp_path):
    files = {f"{'ab'[n % 2]}/{n}.png": PNG for n in range(17)} | {
        "a/x.png": b"",
        "b/y.jpg": PNG[:60],
        "notes.txt": b"1",
    }
    with pytest.raises(ImportRefused, match=r"2 of 19 pictures cannot be read, more than 10%.*a/x.png is empty"):
        import_dataset(packed(tmp_path / "a.zip", files), "", tmp_path, "me")
    del files["b/y.jpg"]
    assert take(tmp_path, packed(tmp_path / "b.zip", files)).info()["skipped"] == 2


LIMITS = {
    "KD_UPLOAD_MB": ("0.00001", "is larger than 1e-05 MB"),
    "KD_PICTURES": ("3", "more than 3 pictures"),
    "KD_CLASSES": ("1", "There are 2 classes; at most 1"),
    "KD_FILES": ("3", "more than 3 entries"),
    "KD_UNPACKED_MB": ("0.0001", "unpacks to more than"),
    "KD_PICTURE_MB": ("0.00001", "There is no picture|cannot be read"),
    "KD_MEGAPIXELS": ("0.0001", "cannot be read, more than 10%"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_hold_and_nothing_is_stored(limit, tmp_path, monkeypatch):
    value, words = LIMITS[limit]
    source = packed(tmp_path / "a.zip", {name: PNG for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png")})
    monkeypatch.setenv(limit, value)
    with pytest.raises(UserError, match=words):
        take(tmp_path, source)
    assert list_uploads(tmp_path) == []
    monkeypatch.setenv(limit, "none")
    with pytest.raises(UserError, match="0 MB are left of what you may keep"):
        take(tmp_path, source, room=100)
    assert take(tmp_path, source, room=None).info()["skipped"] == 0


def test_what_is_odd_is_said(tmp_path):
    names = ("train/Cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/cow/1.png", "test/dog/1.png")
    info = take(tmp_path, packed(tmp_path / "a.zip", dict.fromkeys(names, PNG))).info()
    assert info["classes"] == ["Cat", "cat", "cow", "dog"]
    assert info["notes"] == [
        "Classes that differ in capitals only are kept apart: Cat, cat.",
        "No training picture of cow. Add some, or remove the class.",
    ]


class CalledOff(Exception):
    pass


def test_an_import_that_is_called_off_or_killed_leaves_nothing(tmp_path):
    source = packed(tmp_path / "a.zip", {f"{'ab'[n % 2]}/{n}.png": PNG for n in range(40)})

    def call_off(done: int, of: int) -> None:
        raise CalledOff

    with pytest.raises(CalledOff):
        import_dataset(source, "", tmp_path, "me", call_off)
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
        import_dataset(tmp_path, "", tmp_path, "me", call_off)
    assert time.monotonic() - began < 5
    status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/status")
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() - began < 5
        time.sleep(0.01)


def test_an_import_that_waits_for_its_turn_can_be_called_off(tab, monkeypatch):
    monkeypatch.setattr(tab, "CHECK_SECONDS", 0.01)
    mine = {"owner": "a" * 32}
    file = packed(Path(os.environ["GRADIO_TEMP_DIR"]) / "a.zip", {"a/1.png": PNG})
    with tab.turn(lambda: None):
        assert tab.begin({**mine, "way": "archive", "classes": [["", [str(file)]]]}) == {}
        assert not tab.offered(mine)["now"]["over"] and tab.act({**mine, "do": "cancel"}) == {}
        end = time.monotonic() + 5
        while not (now := tab.offered(mine)["now"])["over"]:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert now["words"] == "Cancelled; nothing was stored." and not file.exists()


def test_a_dataset_answers_to_its_owner_and_is_deleted_when_no_run_needs_it(tmp_path, lenient):
    upload = take(tmp_path, packed(tmp_path / "a.zip", PHOTOS))
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        upload.check_owner("you")
    with pytest.raises(PermissionError):
        with_upload(DistillConfig(dataset=f"upload:{upload.id}"), tmp_path, "you")
    config = with_upload(DistillConfig(dataset=f"upload:{upload.id}"), tmp_path, "me")
    run = create_run(config, tmp_path, "me")
    assert run.config().dataset == str(upload.path) and dataset_title(run.config().dataset) == "a"
    with pytest.raises(UserError, match=f"in use by run {run.id}"):
        delete_dataset(upload)
    with run.work():
        run.close("stopped", message="")
    cache, size = cache_folder(tmp_path, run.config().dataset), upload.bytes()
    load_pixels(load_splits(run.config()).train, 16, cache)
    assert upload.path in cache.parents and upload.bytes() > size  # decoded pictures count as theirs, and go with them
    assert load_splits(run.config()).sizes()["train"] > 0
    delete_dataset(upload)
    assert not cache.exists()
    with pytest.raises(UserError, match="The imported dataset is gone: it was deleted"):
        load_splits(run.config())
    assert list_uploads(tmp_path) == [] and dataset_title(str(upload.path)) == "a deleted dataset"
    with pytest.raises(UserError, match="There is no dataset"):
        find_upload(tmp_path, upload.id)


def test_on_a_shared_server_a_run_takes_the_visitor_s_own_dataset_and_no_other_s(tmp_path, lenient, monkeypatch):
    from kd.ui import access

    monkeypatch.setenv("KD_SHARED", "1")
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    mine, yours = "a" * 32, "b" * 32
    upload = take(tmp_path, packed(tmp_path / "a.zip", PHOTOS), mine)
    named, path = DistillConfig(dataset=f"upload:{upload.id}"), DistillConfig(dataset=str(upload.path))
    assert access.with_own(named, mine) == path
    access.check_names(named)
    with pytest.raises(UserError, match="a path"):
        access.check_names(path)
    for other in (f"upload:{upload.id}", "upload:20260101-000000000000-0000", "upload:last", "upload:../x"):
        with pytest.raises(UserError, match=r"There is no dataset '.*' among yours"):
            access.with_own(DistillConfig(dataset=other), yours)
    with pytest.raises(UserError, match="a path"):
        access.check_names(DistillConfig(dataset=str(tmp_path)))


@pytest.mark.parametrize("id", ["", "..", "../..", "/etc", ".lock", "upload:", "upload:../x"])
def test_an_id_from_outside_never_becomes_a_path(id, tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    datasets_folder(tmp_path).mkdir()
    with pytest.raises(UserError, match="There is no dataset"):
        find_upload(tmp_path, id)


def test_the_command_line_imports_lists_and_deletes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KD_UNREADABLE_SHARE", "0.5")
    source, folder = packed(tmp_path / "pets.zip", PHOTOS), ["--runs-dir", str(tmp_path / "runs")]
    assert main.main(["import", str(source), "--name", "Pets", "--json", *folder]) == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert "3 skipped" in said and f"--dataset upload:{found['id']}" in said
    config = options.with_pictures(DistillConfig(dataset=str(source)), tmp_path / "runs")
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

    monkeypatch.setattr("kd.data.library.store.import_dataset", refuse)
    assert main.main(["import", str(tmp_path), "--runs-dir", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "  0.png: is empty" and lines[19] == "  19.png: is truncated"
    assert lines[20:] == [
        "and 30 more:",
        "  20: is truncated",
        "  10: is empty",
        "kd: 50 of 60 pictures cannot be read.",
    ]


# --- The page's handlers, without a page


@pytest.fixture
def tab(tmp_path, monkeypatch):
    """The tab's module on a shared server, its uploads in a folder of their own."""
    from kd.ui import datasets as data

    monkeypatch.setenv("KD_SHARED", "1")
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr("kd.ui.datasets._imports", {})
    (tmp_path / "gradio").mkdir()
    return data


def test_a_visitor_s_upload_is_imported_listed_and_deleted_by_nobody_else(tab, tmp_path):
    mine, yours = "a" * 32, "b" * 32
    evil = {f"{name}/1.png": PNG for name in ("<img src=x onerror=alert(1)>", "b")}
    file = packed(tmp_path / "gradio" / "a.zip", evil)
    assert tab.begin({"owner": mine, "way": "archive", "classes": [["", [str(file)]]]}) == {}
    end = time.monotonic() + 60
    while not (news := tab.offered({"owner": mine}))["now"]["over"] and time.monotonic() < end:
        time.sleep(0.05)
    assert news["now"]["dataset"] in news["html"] and "<img" not in news["html"] and "&lt;img" in news["html"]
    assert not file.exists()
    assert tab.offered({"owner": mine, "seen": news["mark"]}).keys() == {"now"}
    assert tab.offered({"owner": yours})["html"] == "" and "now" not in tab.offered({"owner": yours})
    assert "among yours" in tab.act({"owner": yours, "do": "delete", "id": news["now"]["dataset"]})["problem"]
    assert tab.act({"owner": mine, "do": "delete", "id": news["now"]["dataset"]}) == {}
    assert tab.offered({"owner": mine})["html"] == ""


def test_the_same_file_of_two_visitors_is_there_until_both_have_it(tab, tmp_path):
    file = packed(tmp_path / "gradio" / "a.zip", {f"{name}/1.png": PNG for name in "ab"})
    with tab._turn:  # both wait
        for visitor in ("a" * 32, "b" * 32):
            assert tab.begin({"owner": visitor, "way": "archive", "classes": [["", [str(file)]]]}) == {}
    end = time.monotonic() + 60
    for visitor in ("a" * 32, "b" * 32):
        while not (news := tab.offered({"owner": visitor}))["now"]["over"] and time.monotonic() < end:
            time.sleep(0.05)
        assert news["now"]["dataset"], news["now"]["words"]
    while file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not file.exists() and not tab._needed


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"way": "archive", "classes": [["", []]]},
        {"way": "archive", "classes": [["", ["/etc/passwd"]]]},
        {"way": "archive", "classes": [["", ["../../etc/passwd"]]]},
        {"way": "unlabelled", "classes": "x"},
        {"way": "unlabelled", "classes": [[1, 2]]},
        {"way": "unlabelled", "classes": [["", [{"path": 7}]]]},
        {"way": ["unlabelled"], "classes": 5},
        {"owner": "no token", "way": "archive", "classes": [["", ["a.zip"]]]},
    ],
)
def test_what_was_not_uploaded_is_not_imported(asked, tab):
    said = tab.begin({"owner": "a" * 32, **asked})
    assert said.keys() == {"problem"} and not tab._imports
