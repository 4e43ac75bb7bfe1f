"""Loading a dataset's splits: from folders, from parquet files, with labels and without."""

import dataclasses
import shutil

import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from pyarrow import parquet

from kd.config import DistillConfig
from kd.data.images import open_row
from kd.data.pixels import fingerprint
from kd.data.splits import load_splits
from kd.errors import UserError
from kd.models.class_map import match_classes
from kd.system.files import ASSETS
from tests.support import toys
from tests.support.toys import dataset_config


def test_missing_splits_are_cut_from_train_stratified_and_the_same_each_time(colours):
    splits = load_splits(dataset_config(colours, seed=1))
    assert splits.sizes() == {"train": 96, "validation": 12, "test": 12} and splits.classes == sorted(toys.CLASSES)
    for part in (splits.train, splits.validation, splits.test):
        assert len(set(np.bincount(part["label"]))) == 1
    again = load_splits(dataset_config(colours, seed=2))
    assert fingerprint(again.test) == fingerprint(splits.test)
    paths = [row["image"]["path"] for part in (splits.train, splits.validation, splits.test) for row in part]
    assert len(set(paths)) == 120
    assert len(splits.warnings) == 2


def test_split_folders_are_found_by_their_usual_names(tmp_path):
    for name, each in (("Training", 6), ("val", 3), ("test", 2)):
        toys.class_folders(tmp_path / name, each)
    for folder in tmp_path.glob("*/*/"):
        (folder / "._000.jpg").write_bytes(b"macOS's own")
    assert load_splits(dataset_config(tmp_path)).sizes() == {"train": 18, "validation": 9, "test": 6}


def test_a_parquet_file_is_read_and_text_labels_are_numbered(tmp_path):
    rng = np.random.default_rng(0)
    names = [toys.CLASSES[i % 3] for i in range(60)]
    features = Features({"img": ImageFeature(), "category": Value("string")})
    rows = {"img": [toys.picture(name, rng) for name in names], "category": names}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "all.parquet")
    splits = load_splits(dataset_config(tmp_path / "all.parquet"))
    assert splits.classes == sorted(toys.CLASSES) and sum(splits.sizes().values()) == 60


def test_the_shards_of_a_split_are_all_read(tmp_path):
    rng = np.random.default_rng(0)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=toys.CLASSES)})
    for shard in range(3):
        rows = {"image": [toys.picture(n, rng) for n in toys.CLASSES] * 5, "label": [0, 1, 2] * 5}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"train-0000{shard}-of-00003.parquet")
    assert sum(load_splits(dataset_config(tmp_path)).sizes().values()) == 45


def test_a_parquet_file_that_others_wrote_is_read_by_its_columns_contents(tmp_path, colours):
    files = sorted(colours.rglob("*.png"))
    table = {
        "image": [{"bytes": f.read_bytes(), "path": f.name} for f in files],
        "label": [f.parent.name for f in files],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "struct.parquet")
    parquet.write_table(
        pyarrow.table({"photo": [f.read_bytes() for f in files], "label": table["label"]}), tmp_path / "raw.parquet"
    )
    for name, column in (("struct.parquet", None), ("raw.parquet", "photo")):
        splits = load_splits(dataset_config(tmp_path / name, image_column=column))
        assert splits.classes == sorted(toys.CLASSES) and open_row(splits.train[0]).size == (32, 32)
    with pytest.raises(UserError, match=r"column 'label' of the train split holds .* not pictures"):
        load_splits(dataset_config(tmp_path / "raw.parquet", image_column="label"))


def test_the_embedded_sample_is_what_it_says():
    splits = load_splits(DistillConfig())
    assert splits.sizes() == {"train": 8000, "validation": 1000, "test": 2000} and not splits.warnings
    for part, each in ((splits.train, 800), (splits.validation, 100), (splits.test, 200)):
        assert set(np.bincount(part["label"])) == {each}
    assert sum(file.stat().st_size for file in (ASSETS / "sample").iterdir()) < 6e6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is empty. Expected a folder for each class"),
        (
            lambda path: toys.picture("red brick", np.random.default_rng(0)).save(path / "a.png"),
            "The dataset has 1 training picture, too few to cut a test split from. Add pictures or give",
        ),
        (lambda path: [toys.class_folders(path, 5), (path / "empty class").mkdir()], "No pictures in empty class"),
        (lambda path: toys.class_folders(path, 1), "has 1 training picture, too few to cut a test split"),
    ],
)
def test_a_folder_that_will_not_do_says_why(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(UserError, match=words):
        load_splits(dataset_config(tmp_path))


def test_pictures_in_one_folder_have_no_labels(tmp_path):
    toys.class_folders(tmp_path, 8)
    for name in toys.CLASSES[1:]:
        shutil.rmtree(tmp_path / name)
    assert not load_splits(dataset_config(tmp_path)).labelled


def test_a_class_may_be_called_as_a_split_is_and_loose_pictures_are_told(tmp_path):
    toys.class_folders(tmp_path, 8)
    (tmp_path / toys.CLASSES[0]).rename(tmp_path / "train")
    (tmp_path / ".trash" / "x").mkdir(parents=True)
    for loose in ("000.png", ".trash/x/1.png"):
        shutil.copy(tmp_path / "train" / "000.png", tmp_path / loose)
    splits = load_splits(dataset_config(tmp_path))
    assert splits.classes == sorted(["train", *toys.CLASSES[1:]]) and sum(splits.sizes().values()) == 24
    assert "1 left out, 000.png first: it lies beside the class folders" in splits.warnings[0]


def test_a_dataset_without_pictures_says_which_columns_it_has(tmp_path):
    Dataset.from_dict({"text": ["x"], "label": [0]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"No column of pictures.*text, label"):
        load_splits(dataset_config(tmp_path / "b.parquet"))


def test_pictures_without_labels_are_split_by_the_same_seed(tmp_path):
    rng, names = np.random.default_rng(0), toys.CLASSES * 4
    images = [toys.picture(name, rng) for name in names]
    (tmp_path / "heap").mkdir()
    for nth, image in enumerate(images):
        image.save(tmp_path / "heap" / f"{nth:02}.PNG")
    columns = {
        "size": Value("int64"), "label": ClassLabel(names=toys.CLASSES), "category": Value("string"),
    }  # fmt: skip
    for name, kind in columns.items():
        rows = {"image": images, name: [{"size": 9, "label": -1}.get(name)] * len(images)}
        Dataset.from_dict(rows, Features({"image": ImageFeature(), name: kind})).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    found = [
        load_splits(dataset_config(tmp_path / name)) for name in ("heap", *(f"{name}.parquet" for name in columns))
    ]
    for splits in found:
        assert not splits.labelled and splits.classes == [] and splits.labels == "teacher"
        assert splits.sizes() == {"train": 10, "validation": 1, "test": 1}
        assert set(splits.train["label"]) == {-1}
        again, here = (np.asarray(open_row(one.test[0])) for one in (splits, found[0]))
        assert (again == here).all()
    assert "No column of image, size has labels" in found[1].warnings[0] and "--label-column" in found[1].warnings[0]
    with pytest.raises(UserError, match=r"no column 'size'.*label-column"):
        load_splits(dataset_config(tmp_path / "heap", label_column="size"))


def test_the_seed_of_the_splits_says_which_pictures_are_held_out(tmp_path):
    toys.class_folders(tmp_path, 20)
    tests = [load_splits(dataset_config(tmp_path, split_seed=seed)).test for seed in (0, 0, 1)]
    assert fingerprint(tests[0]) == fingerprint(tests[1]) != fingerprint(tests[2])
    assert len(tests[0]) == len(tests[2])


def test_a_picture_that_has_no_label_among_others_that_have_needs_a_teacher(tmp_path):
    rng, names = np.random.default_rng(0), toys.CLASSES * 4
    features = Features({"image": ImageFeature(), "category": Value("string")})
    for split, missing in (("train", 2), ("validation", len(names))):
        rows = {"image": [toys.picture(n, rng) for n in names], "category": [*names[missing:], *[None] * missing]}
        Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{split}.parquet")
    splits = load_splits(dataset_config(tmp_path))
    assert splits.classes == sorted(toys.CLASSES) and sum(splits.sizes().values()) == 12
    assert splits.train["label"][:].count(-1) == 2 and -1 not in splits.validation["label"][:] + splits.test["label"][:]
    assert sum(splits.counts("train")) == len(splits.train) - 2
    assert splits.warnings[:2] == [
        "The validation split has no labels, so a validation split is cut from train.",
        "2 pictures of the train split have no label: they are learned from the teacher alone.",
    ]
    for alone in ({"teacher": "none"}, {"lambda_": 0}):
        splits = load_splits(dataset_config(tmp_path, **alone))
        assert sum(splits.sizes().values()) == 10 and -1 not in splits.train["label"][:]
        assert "2 pictures of the train split have no label and are left out." in splits.warnings


def test_a_folder_called_unlabelled_is_no_class(tmp_path):
    toys.class_folders(tmp_path, each=10)
    (tmp_path / toys.CLASSES[0]).rename(tmp_path / "unlabelled")
    splits = load_splits(dataset_config(tmp_path))
    assert splits.classes == toys.CLASSES[1:] and splits.train["label"][:].count(-1) == 10


def test_an_empty_split_a_broken_parquet_and_a_wrong_file_are_told_apart(tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    Dataset.from_dict({"image": [], "label": []}, features=features).to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "broken.parquet").write_text("no")
    (tmp_path / "notes.txt").write_text("no")
    for name, words in (
        ("empty.parquet", "train split is empty"),
        ("broken.parquet", "could not be read as parquet"),
        ("notes.txt", "Expected a parquet file or a folder"),
    ):
        with pytest.raises(UserError, match=words):
            load_splits(dataset_config(tmp_path / name))


def test_an_unknown_split_or_column_names_those_there_are(colours):
    with pytest.raises(UserError, match=r"no split .holdout.\. The dataset has train"):
        load_splits(dataset_config(colours, test_split="holdout"))
    with pytest.raises(UserError, match="has image, label"):
        load_splits(dataset_config(colours, image_column="photo"))


def parquet_of(folder, **labels):
    """``folder/<split>.parquet`` with these labels, in a column of the type of the first."""
    rng = np.random.default_rng(0)
    for split, (kind, values) in labels.items():
        rows = {"image": [toys.picture(toys.CLASSES[0], rng) for _ in values], "label": values}
        Dataset.from_dict(rows, Features({"image": ImageFeature(), "label": kind})).to_parquet(
            folder / f"{split}.parquet"
        )
    return dataset_config(folder)


def test_train_s_list_of_classes_holds_for_splits_that_lack_some(tmp_path):
    text = Value("string")
    config = parquet_of(tmp_path, train=(text, ["a", "b", "c"]), validation=(text, ["c"]), test=(text, ["b", "c"]))
    splits = load_splits(config)
    assert (
        splits.classes == ["a", "b", "c"] and splits.validation["label"][:] == [2] and splits.test["label"][:] == [1, 2]
    )
    turned = ClassLabel(names=["c", "b", "a", "never"])
    parquet_of(tmp_path, train=(ClassLabel(names=["a", "b", "c"]), [0, 1, 2]), test=(turned, [0, 1]))
    assert load_splits(config).test["label"][:] == [2, 1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_only_one_of_the_other_splits_has_is_an_error(tmp_path, split):
    text = Value("string")
    parts = {"train": (text, ["a", "b"] * 4), "validation": (text, ["a"]), "test": (text, ["b"])}
    config = parquet_of(tmp_path, **{**parts, split: (text, ["a", "z"])})
    with pytest.raises(UserError, match=f"The {split} split has pictures of z, but train has only the classes a, b"):
        load_splits(config)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Value("string"), ["", " ", None, "-1"]),
        (Value("float32"), [float("nan"), None, -1.0]),
        (ClassLabel(names=["", "a", "b"]), [0, -1, None]),
    ],
)
def test_what_is_no_label_is_left_out_and_counted(tmp_path, kind, values):
    known = [1, 2] if not isinstance(kind, Value) or kind.dtype != "string" else ["a ", "b"]
    config = dataclasses.replace(parquet_of(tmp_path, train=(kind, known * 5 + values)), lambda_=0)
    splits = load_splits(config)
    assert splits.classes in (["a", "b"], ["1", "2"]) and sum(splits.sizes().values()) == 10
    assert f"{len(values)} pictures of the train split have no label and are left out." in splits.warnings


def test_numbered_class_folders_are_in_the_order_of_their_numbers(tmp_path):
    toys.class_folders(tmp_path, 5)
    for name, number in zip(toys.CLASSES, ("0", "10", "2"), strict=True):
        (tmp_path / name).rename(tmp_path / number)
    assert load_splits(dataset_config(tmp_path)).classes == ["0", "2", "10"]


def test_a_label_map_joins_classes_that_it_gives_the_same_class_of_the_teacher(tmp_path):
    text = Value("string")
    config = parquet_of(tmp_path, train=(text, [*"AaB"] * 5), test=(text, [*"aAB"]))
    joined = load_splits(dataclasses.replace(config, label_map="A=letter a, a=letter a"))
    assert joined.classes == ["A", "B"] and joined.test["label"][:] == [0, 0, 1]
    assert any("a and A are one class, A" in said for said in joined.warnings)
    assert match_classes(["b", "letter a"], joined.classes, "A=letter a, a=letter a").columns == [1, 0]
    with pytest.raises(UserError, match=r"dataset has no C: its classes are A, B, a\. Write both as the dataset does"):
        load_splits(dataclasses.replace(config, label_map="A=letter a, C=letter a"))


def test_a_split_called_unlabelled_is_learned_from_without_its_labels(tmp_path):
    kind = ClassLabel(names=["a", "b"])
    config = parquet_of(tmp_path, train=(kind, [0, 1] * 6), test=(kind, [0, 1]), unlabeled=(Value("int64"), [-1] * 5))
    splits = load_splits(config)
    assert splits.classes == ["a", "b"] and splits.sizes() == {"train": 15, "validation": 2, "test": 2}
    assert splits.train["label"][:].count(-1) == 5
    only = load_splits(dataclasses.replace(config, teacher="none"))
    assert only.sizes()["train"] == 10
