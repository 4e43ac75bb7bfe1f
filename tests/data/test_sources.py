"""What a dataset's name can stand for: folders with links and strange files, metadata, what `datasets` writes."""

import json
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from kd.data.splits import load_splits
from kd.errors import UserError
from tests.support import toys
from tests.support.toys import dataset_config

SIZE = 30


def rows(each: int = 10) -> dict:
    rng, names = np.random.default_rng(0), toys.CLASSES * each
    return {"image": [toys.picture(name, rng) for name in names], "label": names}


def loaded(path, **changes):
    return load_splits(dataset_config(path, **changes))


def total(splits) -> int:
    return sum(splits.sizes().values())


# --- Folders


def test_class_folders_that_are_links_are_followed_and_a_circle_is_named(tmp_path):
    toys.class_folders(tmp_path / "far", 10)
    (tmp_path / "here").mkdir()
    for name in toys.CLASSES:
        (tmp_path / "here" / name).symlink_to(tmp_path / "far" / name)
    assert total(loaded(tmp_path / "here")) == SIZE
    (tmp_path / "here" / "round").symlink_to(".")
    (tmp_path / "here" / toys.CLASSES[0] / "in").symlink_to("..")
    splits = loaded(tmp_path / "here")
    assert splits.classes == toys.CLASSES and total(splits) == SIZE + 2 * 10
    assert any("2 left out" in said and "is a link to a folder that it lies in" in said for said in splits.warnings)


def test_portable_maps_and_pictures_without_an_ending_are_read_and_the_rest_is_told(tmp_path):
    toys.class_folders(tmp_path, 10)
    for name, mode, ending in zip(toys.CLASSES, ("RGB", "L", "1"), (".ppm", ".pgm", ".pbm"), strict=True):
        for file in sorted((tmp_path / name).iterdir())[:5]:
            Image.open(file).convert(mode).save(file.with_suffix(ending))
            file.unlink()
    file = tmp_path / toys.CLASSES[0] / "009.png"
    file.rename(file.with_suffix(""))
    for name in ("notes.txt", "more.csv"):
        (tmp_path / toys.CLASSES[0] / name).write_text("P1 hello")
    splits = loaded(tmp_path)
    assert total(splits) == SIZE
    assert splits.warnings[0] == f"2 left out, {toys.CLASSES[0]}/more.csv first: it is no picture."


def test_only_a_folder_with_nothing_in_it_is_called_empty(tmp_path):
    with pytest.raises(UserError, match=r"is empty\. Expected a folder for each class"):
        loaded(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "raw.nef").write_bytes(b"no")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"no pictures in .*: a/raw.nef is no picture, gone is a link to nothing"):
        loaded(tmp_path)


def test_what_lies_beside_parquet_files_is_told(tmp_path):
    toys.class_folders(tmp_path, 2)
    Dataset.from_dict(rows(), Features({"image": ImageFeature(), "label": Value("string")})).to_parquet(
        tmp_path / "train.parquet"
    )
    assert "6 left out" in loaded(tmp_path).warnings[0] and "beside parquet" in loaded(tmp_path).warnings[0]


# --- Metadata


def with_metadata(folder, kind: str, labels: list | None = None, place: str = "", **columns):
    """A folder of pictures 00.png ... and a table of them; the path of the table."""
    folder = folder / place
    (folder / "pics").mkdir(parents=True)
    made = rows()
    for nth, image in enumerate(made["image"]):
        image.save(folder / "pics" / f"{nth:02}.png")
    table = {"file_name": [f"pics/{nth:02}.png" for nth in range(SIZE)], "label": labels or made["label"], **columns}
    path = folder / f"metadata.{kind}"
    data = Dataset.from_dict(table)
    {"csv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}[kind](path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_beside_pictures_labels_them(tmp_path, kind):
    with_metadata(tmp_path, kind)
    splits = loaded(tmp_path)
    assert splits.labelled and splits.classes == toys.CLASSES and total(splits) == SIZE
    assert splits.warnings[0] == f"The labels are the column 'label' of metadata.{kind}."
    for row in splits.train:
        assert splits.classes[row["label"]] == toys.CLASSES[int(row["image"]["path"][-6:-4]) % 3]


def test_a_table_wins_over_folders_keeps_its_words_and_its_splits(tmp_path):
    for nth, place in enumerate(("train", "test")):
        with_metadata(tmp_path, "csv", labels=["NA", "01", "1"] * 10, place=place, caption=[str(nth)] * SIZE)
    splits = loaded(tmp_path)
    assert splits.classes == ["01", "1", "NA"] and splits.sizes() == {"train": 27, "validation": 3, "test": 30}


def test_the_table_itself_is_no_dataset_and_its_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is a table of labels\. Name the folder"):
        loaded(with_metadata(tmp_path, "csv"))


def test_pictures_that_no_table_lists_and_rows_without_a_picture_are_counted(tmp_path):
    with_metadata(tmp_path, "csv", labels=["", *(toys.CLASSES * 10)[1:]])
    for name in ("00.png", "01.png"):
        shutil.copy(tmp_path / "pics" / name, tmp_path / f"more{name}")
    (tmp_path / "pics" / "02.png").unlink()
    said = " ".join(loaded(tmp_path).warnings)
    assert "2 left out, more00.png first: it is not listed in the metadata" in said
    assert "1 of the pictures that are listed are not there, pics/02.png first" in said
    assert "1 picture of the train split has no label: it is learned" in said


def test_a_table_without_labels_leaves_the_folders_their_say(tmp_path):
    toys.class_folders(tmp_path, 10)
    (tmp_path / "metadata.csv").write_text("file_name;label\nx;y\n")
    splits = loaded(tmp_path)
    assert splits.classes == toys.CLASSES
    assert splits.warnings[0].startswith("metadata.csv is not used: it has the columns file_name;label")


def test_a_table_that_gives_a_picture_two_labels_is_refused(tmp_path):
    path = with_metadata(tmp_path, "csv")
    path.write_text(path.read_text() + "pics/00.png,other\n")
    with pytest.raises(UserError, match=r"gives two labels to pics/00.png.*More than one label"):
        loaded(tmp_path)
    path.unlink()
    lines = [json.dumps({"file_name": f"pics/{n:02}.png", "label": ["a", "b"]}) for n in range(SIZE)]
    path.with_suffix(".jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"A label is \['a', 'b'\]. More than one label"):
        loaded(tmp_path)
    path.with_suffix(".jsonl").write_text("{")
    with pytest.raises(UserError, match=r"metadata.jsonl could not be read"):
        loaded(tmp_path)


# --- What `datasets` has written


def test_what_save_to_disk_has_written_is_read(tmp_path):
    made = Dataset.from_dict(rows(), Features({"image": ImageFeature(), "label": ClassLabel(names=toys.CLASSES)}))
    made.with_format("numpy").save_to_disk(tmp_path / "one")
    DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "several")
    assert total(loaded(tmp_path / "one")) == SIZE
    assert loaded(tmp_path / "several").sizes() == {"train": 27, "validation": 3, "test": 30}
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"no")
    with pytest.raises(UserError, match="one could not be read by the library `datasets`"):
        loaded(tmp_path / "one")


@pytest.fixture
def clone(tmp_path):
    """A clone of a repository of the Hub: ``data/*.parquet``."""
    made = Dataset.from_dict(rows(), Features({"image": ImageFeature(), "label": ClassLabel(names=toys.CLASSES)}))
    (tmp_path / "clone" / "data").mkdir(parents=True)
    (tmp_path / "clone" / ".git").mkdir()
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        made.to_parquet(tmp_path / "clone" / "data" / f"{name}.parquet")
    return tmp_path / "clone"


def test_a_clone_from_the_hub_is_read_with_and_without_configurations(clone):
    assert loaded(clone).sizes() == {"train": 27, "validation": 3, "test": 30}
    (clone / "README.md").write_text(
        "---\nconfigs:\n- config_name: turned\n  data_files:\n  - split: train\n    path: data/test-*\n"
        "- config_name: all\n  data_files:\n  - split: train\n    path: data/*\n---\n# Pictures\n"
    )
    assert total(loaded(clone, dataset_config="turned")) == SIZE
    assert total(loaded(clone, dataset_config="all")) == 2 * SIZE
    with pytest.raises(UserError, match="several configurations; choose one with --dataset-config"):
        loaded(clone)
    (clone / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(UserError, match="could not be read by the library `datasets`: while parsing a flow node"):
        loaded(clone)
    (clone / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: gone/*.png\n---\n")
    with pytest.raises(UserError, match="has no data files that can be read"):
        loaded(clone)


def test_a_readme_that_cannot_be_read_does_not_matter_to_class_folders(tmp_path):
    toys.class_folders(tmp_path, 10)
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    assert total(loaded(tmp_path)) == SIZE


def test_a_clone_without_its_large_files_says_how_to_get_them(clone):
    for file in clone.rglob("*.parquet"):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=r"pointer of Git LFS.*git lfs pull"):
        loaded(clone)
    with pytest.raises(UserError, match=r"pointer of Git LFS.*git lfs pull"):
        loaded(clone / "data")


# --- Columns of labels


def table(path, features: dict, **columns):
    made = rows()
    Dataset.from_dict({"image": made["image"], **columns}, Features({"image": ImageFeature(), **features})).to_parquet(
        path
    )
    return path


def test_a_column_called_label_is_preferred_and_said(tmp_path):
    names, others = rows()["label"], ["x"] * SIZE
    path = table(
        tmp_path / "a.parquet", {"source": ClassLabel(names=["x", "y"]), "label": ClassLabel(names=toys.CLASSES)},
        source=others, label=names,
    )  # fmt: skip
    splits = loaded(path)
    assert splits.classes == toys.CLASSES
    assert splits.warnings[0] == "The labels are the column 'label'; source could be too (--label-column)."


def test_more_than_one_label_a_picture_is_refused(tmp_path):
    names = rows()["label"]
    path = table(tmp_path / "a.parquet", {"labels": List(Value("int64"))}, labels=[[0, 1]] * SIZE)
    with pytest.raises(UserError, match=r"not one label for each picture. More than one label"):
        loaded(path)
    both = {"labels": List(Value("int64")), "category": Value("string")}
    path = table(tmp_path / "b.parquet", both, labels=[[0, 1]] * SIZE, category=names)
    assert loaded(path).classes == toys.CLASSES
    with pytest.raises(UserError, match="More than one label"):
        loaded(path, label_column="labels")
