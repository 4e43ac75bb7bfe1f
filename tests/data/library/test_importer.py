"""Imports of archives, folders and files: what is stored, what is refused, which limits hold."""

import pytest

from kd.config import DistillConfig
from kd.data.library.store import ImportRefused, Library, import_dataset, list_uploads
from kd.data.splits import load_splits
from kd.errors import UserError
from kd.runs.store import resolve
from kd.system.ids import owner_hash
from tests.support.uploads import PHOTOS, PNG, packed, take


def test_an_archive_becomes_a_dataset_with_the_pictures_own_bytes(tmp_path, lenient):
    told = []
    source = packed(tmp_path / "My Zip.zip", PHOTOS)
    upload = import_dataset(source, "", Library(tmp_path / "runs", "me"), lambda *progress: told.append(progress))
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
    config = resolve(DistillConfig(dataset=f"upload:{upload.id}", test_fraction=0.5), tmp_path / "runs", "me")
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


def test_a_table_in_an_archive_labels_its_pictures_and_cannot_name_others(tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    lines = [
        "file_name,label",
        *(f"pics\\{n}.png,{'ab'[n % 2]}" for n in range(6)),
        "../../secret.png,a",
        "/etc/passwd,b",
    ]
    files = {f"top/pics/{n}.png": PNG + bytes([n]) for n in range(7)} | {"top/metadata.csv": "\n".join(lines).encode()}
    info = take(tmp_path / "runs", packed(tmp_path / "a.zip", files)).info()
    assert info["classes"] == ["a", "b"] and info["pictures"] == {"train": {"a": 3, "b": 3}}
    assert info["examples"] == [["top/pics/6.png", "is not listed in the metadata"]]
    assert info["notes"] == [
        "2 of the pictures that are listed are not there, ../../secret.png first: left out.",
        "The labels are the column 'label' of top/metadata.csv.",
    ]
    for label, words in (("\x1b[2J", "cannot be called so"), ("a\n0.png,b", "two labels to 0.png: a and b")):
        bad = {"0.png": PNG, "1.png": PNG, "metadata.csv": f"file_name,label\n1.png,a\n0.png,{label}".encode()}
        with pytest.raises(UserError, match=words):
            take(tmp_path / "runs", packed(tmp_path / "b.zip", bad))


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
        import_dataset(packed(tmp_path / "a.zip", files), "", Library(tmp_path, "me"))
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
