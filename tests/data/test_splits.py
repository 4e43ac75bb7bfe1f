"""Pictures, splits and crops."""

import io
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from pyarrow import parquet

from kd.config import DistillConfig
from kd.data.images import BadPicture, open_picture, open_row
from kd.data.pixels import fingerprint, in_order, load_pixels
from kd.data.splits import load_splits
from kd.data.views import Views, crop
from kd.errors import UserError
from kd.system.files import ASSETS
from tests.support import toys


def saved(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


# --- One picture


@pytest.fixture
def photo() -> Image.Image:
    """40 x 20, the left half red, the right half blue."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    return image


def test_a_text_file_with_a_picture_s_ending_is_named(tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    with pytest.raises(BadPicture, match=r"notes\.jpg is not a picture that can be read. Expected PNG, JPEG"):
        open_picture(tmp_path / "notes.jpg")


def test_a_truncated_jpeg_is_named(tmp_path):
    path = saved(tmp_path / "cut.jpg", Image.effect_noise((200, 200), 50))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BadPicture, match=r"cut\.jpg is damaged or cut short"):
        open_picture(path)


def test_one_pixel_is_too_small(tmp_path):
    with pytest.raises(BadPicture, match="1 x 1 pixels; expected at least 4 x 4"):
        open_picture(saved(tmp_path / "dot.png", Image.new("RGB", (1, 1))))


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"  # its pixels are missing: decoding it would fail in other words
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(BadPicture, match=r"13,000 x 13,000 pixels; at most 64 megapixels"):
        open_picture(path)


def test_a_missing_file_a_folder_and_no_bytes_are_named(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.png").touch()
    for name in ("gone.png", "folder.jpg", "empty.png"):
        with pytest.raises(BadPicture, match=name):
            open_picture(tmp_path / name)


def test_cmyk_grey_and_16_bits_become_rgb(tmp_path, photo):
    cmyk = open_picture(saved(tmp_path / "print.jpg", photo.convert("CMYK")))
    assert cmyk.mode == "RGB" and cmyk.getpixel((5, 5))[0] > 180 > 80 > cmyk.getpixel((5, 5))[2]
    ramp = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    deep = np.asarray(open_picture(saved(tmp_path / "deep.png", Image.fromarray(ramp))))
    assert abs(int(deep[32, 0, 0]) - 32 * 64 * 16 / 65535 * 255) <= 1  # scaled, not clipped to white
    assert open_picture(saved(tmp_path / "grey.png", photo.convert("L"))).mode == "RGB"


def test_transparency_becomes_white_also_in_a_palette(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    assert image.quantize().mode == "P"
    for path in (saved(tmp_path / "alpha.png", image), saved(tmp_path / "palette.png", image.quantize())):
        assert open_picture(path).getpixel((7, 7)) == (255, 255, 255), path
        assert open_picture(path).getpixel((0, 0))[2] > 200, path


def test_a_picture_that_a_phone_turned_is_upright(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    turned = open_picture(saved(tmp_path / "phone.jpg", photo.rotate(90, expand=True), exif=exif, quality=95))
    assert turned.size == (40, 20)
    assert turned.getpixel((5, 10))[0] > 200 and turned.getpixel((35, 10))[2] > 200


def test_of_an_animation_the_first_frame_is_seen(tmp_path, photo):
    path = tmp_path / "moving.gif"
    photo.save(path, save_all=True, append_images=[Image.new("RGB", (40, 20), "lime")])
    assert open_picture(path).getpixel((5, 5))[0] > 200


# --- Splits


def config(path, **changes) -> DistillConfig:
    return DistillConfig(dataset=str(path), **changes)


def test_missing_splits_are_cut_from_train_stratified_and_the_same_each_time(colours):
    splits = load_splits(config(colours, seed=1))
    assert splits.sizes() == {"train": 96, "validation": 12, "test": 12} and splits.classes == sorted(toys.CLASSES)
    for part in (splits.train, splits.validation, splits.test):
        assert len(set(np.bincount(part["label"]))) == 1
    again = load_splits(config(colours, seed=2))
    assert fingerprint(again.test) == fingerprint(splits.test)
    paths = [row["image"]["path"] for part in (splits.train, splits.validation, splits.test) for row in part]
    assert len(set(paths)) == 120
    assert len(splits.warnings) == 2


def test_split_folders_are_found_by_their_usual_names(tmp_path):
    for name, each in (("Training", 6), ("val", 3), ("test", 2)):
        toys.class_folders(tmp_path / name, each)
    for folder in tmp_path.glob("*/*/"):
        (folder / "._000.jpg").write_bytes(b"macOS's own")
    assert load_splits(config(tmp_path)).sizes() == {"train": 18, "validation": 9, "test": 6}


def test_a_parquet_file_is_read_and_text_labels_are_numbered(tmp_path):
    rng = np.random.default_rng(0)
    names = [toys.CLASSES[i % 3] for i in range(60)]
    features = Features({"img": ImageFeature(), "category": Value("string")})
    rows = {"img": [toys.picture(name, rng) for name in names], "category": names}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "all.parquet")
    splits = load_splits(config(tmp_path / "all.parquet"))
    assert splits.classes == sorted(toys.CLASSES) and sum(splits.sizes().values()) == 60


def test_the_shards_of_a_split_are_all_read(tmp_path):
    rng = np.random.default_rng(0)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=toys.CLASSES)})
    for shard in range(3):
        rows = {"image": [toys.picture(n, rng) for n in toys.CLASSES] * 5, "label": [0, 1, 2] * 5}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"train-0000{shard}-of-00003.parquet")
    assert sum(load_splits(config(tmp_path)).sizes().values()) == 45


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
        splits = load_splits(config(tmp_path / name, image_column=column))
        assert splits.classes == sorted(toys.CLASSES) and open_row(splits.train[0]).size == (32, 32)
    with pytest.raises(UserError, match=r"column 'label' of the train split holds .* not pictures"):
        load_splits(config(tmp_path / "raw.parquet", image_column="label"))


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
        load_splits(config(tmp_path))


def test_pictures_in_one_folder_have_no_labels(tmp_path):
    toys.class_folders(tmp_path, 8)
    for name in toys.CLASSES[1:]:
        shutil.rmtree(tmp_path / name)
    assert not load_splits(config(tmp_path)).labelled


def test_a_class_may_be_called_as_a_split_is_and_loose_pictures_are_told(tmp_path):
    toys.class_folders(tmp_path, 8)
    (tmp_path / toys.CLASSES[0]).rename(tmp_path / "train")
    (tmp_path / ".trash" / "x").mkdir(parents=True)
    for loose in ("000.png", ".trash/x/1.png"):
        shutil.copy(tmp_path / "train" / "000.png", tmp_path / loose)
    splits = load_splits(config(tmp_path))
    assert splits.classes == sorted(["train", *toys.CLASSES[1:]]) and sum(splits.sizes().values()) == 24
    assert "1 left out, 000.png first: it lies beside the class folders" in splits.warnings[0]


def test_a_dataset_without_pictures_says_which_columns_it_has(tmp_path):
    Dataset.from_dict({"text": ["x"], "label": [0]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"No column of pictures.*text, label"):
        load_splits(config(tmp_path / "b.parquet"))


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
    found = [load_splits(config(tmp_path / name)) for name in ("heap", *(f"{name}.parquet" for name in columns))]
    for splits in found:
        assert not splits.labelled and splits.classes == [] and splits.labels == "teacher"
        assert splits.sizes() == {"train": 10, "validation": 1, "test": 1}
        assert set(splits.train["label"]) == {-1}
        again, here = (np.asarray(open_row(one.test[0])) for one in (splits, found[0]))
        assert (again == here).all()
    assert "No column of image, size has labels" in found[1].warnings[0] and "--label-column" in found[1].warnings[0]
    with pytest.raises(UserError, match=r"no column 'size'.*label-column"):
        load_splits(config(tmp_path / "heap", label_column="size"))


def test_the_seed_of_the_splits_says_which_pictures_are_held_out(tmp_path):
    toys.class_folders(tmp_path, 20)
    tests = [load_splits(config(tmp_path, split_seed=seed)).test for seed in (0, 0, 1)]
    assert fingerprint(tests[0]) == fingerprint(tests[1]) != fingerprint(tests[2])
    assert len(tests[0]) == len(tests[2])


def test_a_picture_that_has_no_label_among_others_that_have_is_left_out(tmp_path):
    rng, names = np.random.default_rng(0), toys.CLASSES * 4
    features = Features({"image": ImageFeature(), "category": Value("string")})
    for split, missing in (("train", 2), ("validation", len(names))):
        rows = {"image": [toys.picture(n, rng) for n in names], "category": [*names[missing:], *[None] * missing]}
        Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{split}.parquet")
    splits = load_splits(config(tmp_path))
    assert splits.classes == sorted(toys.CLASSES) and sum(splits.sizes().values()) == 10
    assert splits.warnings[:2] == [
        "The validation split has no labels, so a validation split is cut from train.",
        "2 pictures of the train split have no label and are left out.",
    ]


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
            load_splits(config(tmp_path / name))


def test_an_unknown_split_or_column_names_those_there_are(colours):
    with pytest.raises(UserError, match=r"no split .holdout.\. The dataset has train"):
        load_splits(config(colours, test_split="holdout"))
    with pytest.raises(UserError, match="has image, label"):
        load_splits(config(colours, image_column="photo"))


# --- Pixels and views


def test_an_unreadable_training_picture_is_left_out_and_named(tmp_path):
    toys.class_folders(tmp_path / "d", 20)
    splits = load_splits(config(tmp_path / "d"))
    Path(splits.train[7]["image"]["path"]).write_text("no")
    pixels = load_pixels(splits.train, 32, tmp_path / "cache")
    assert len(pixels.values) == len(pixels.labels) == len(splits.train) - 1
    assert "png is not a picture" in pixels.unreadable[0]
    assert load_pixels(splits.train, 32, tmp_path / "cache").unreadable == pixels.unreadable


def test_many_unreadable_pictures_stop_the_run(tmp_path):
    toys.class_folders(tmp_path / "d", 10)
    for file in list((tmp_path / "d" / "red brick").iterdir())[:8]:
        file.write_text("no")
    with pytest.raises(UserError, match="More than 10% of"):
        load_pixels(load_splits(config(tmp_path / "d")).train, 32, tmp_path / "cache")


def test_pixels_are_decoded_once_and_a_truncated_file_is_thrown_away(tmp_path, colours):
    train = load_splits(config(colours)).train
    first = load_pixels(train, 32, tmp_path)
    assert not first.cached and load_pixels(train, 32, tmp_path).cached
    expected = np.asarray(open_row(train[3])).transpose(2, 0, 1)
    np.testing.assert_array_equal(first.values[3], expected)
    file = next(tmp_path.rglob("pixels.npy"))
    file.write_bytes(file.read_bytes()[:-100])
    again = load_pixels(train, 32, tmp_path)
    assert not again.cached
    np.testing.assert_array_equal(again.values[3], expected)


def test_pictures_that_the_disk_has_no_room_for_are_decoded_when_asked_for(tmp_path, colours, monkeypatch):
    train = load_splits(config(colours)).train
    kept = load_pixels(train, 32, tmp_path / "a")
    assert kept.warnings == []
    monkeypatch.setenv("KD_PIXELS_GB", "0.0001")
    lazy = load_pixels(train, 32, tmp_path / "b")
    assert not list((tmp_path / "b").rglob("pixels.*")) and lazy.values.shape == kept.values.shape
    assert "would take 0.0 GB, more than the 0.0 GB" in lazy.warnings[0] and "KD_PIXELS_GB" in lazy.warnings[0]
    np.testing.assert_array_equal(lazy.values[[5, 90, 2]], kept.values[[5, 90, 2]])
    np.testing.assert_array_equal(
        np.concatenate([batch for _, batch in in_order(lazy.values, 10, 7)]), kept.values[10:]
    )
    assert load_pixels(train, 32, tmp_path / "b").cached
    assert load_pixels(train, 32, tmp_path / "a").warnings == [], "what is decoded already is used"


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path):
    picture = toys.picture("red brick", np.random.default_rng(0), 64).resize((1600, 1200))
    picture.save(tmp_path / "large.jpg")
    assert open_picture(tmp_path / "large.jpg", least=100).size == (200, 150)
    assert open_picture(tmp_path / "large.jpg").size == (1600, 1200)


def test_views_are_a_pure_function_and_view_0_is_the_whole_picture():
    views = Views("ab" * 16, 50, 0.5)
    boxes, mirrored = views.boxes(3)
    again, _ = Views("ab" * 16, 50, 0.5).boxes(3)
    np.testing.assert_array_equal(boxes, again)
    assert 5 < mirrored.sum() < 45
    area = boxes[:, 2] * boxes[:, 3]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 1.0001).all() and area.min() > 0.45
    for other in (
        Views("ab" * 16, 50, 0.5, seed=1).boxes(3)[0],
        Views("cd" * 16, 50, 0.5).boxes(3)[0],
        views.boxes(2)[0],
    ):
        assert not np.array_equal(boxes, other)
    whole, straight = views.boxes(0)
    assert (whole == [0, 0, 1, 1]).all() and not straight.any()


def test_a_crop_is_the_box_that_pillow_would_cut():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.asarray(smooth).transpose(2, 0, 1).copy())[None]
    box = torch.tensor([[0.25, 0.125, 0.5, 0.75]])
    expected = smooth.resize((32, 32), Image.Resampling.BILINEAR, box=(16, 8, 48, 56))
    for mirrored in (False, True):
        found = crop(values, box, torch.tensor([mirrored]), (32, 32))[0].permute(1, 2, 0).numpy()
        wanted = np.asarray(expected, dtype=float)
        wanted = wanted[:, ::-1] if mirrored else wanted
        assert np.abs(found - wanted).mean() < 2.5


def test_the_whole_picture_at_its_own_size_is_untouched():
    values = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[0.0, 0, 1, 1]] * 2)
    torch.testing.assert_close(
        crop(values, whole, torch.tensor([False] * 2), (28, 28)), values.float(), atol=1e-3, rtol=0
    )


def test_a_fingerprint_is_of_the_contents(tmp_path):
    one = load_splits(config(toys.class_folders(tmp_path / "a", 12))).train
    same = load_splits(config(toys.class_folders(tmp_path / "b", 12))).train
    other = load_splits(config(toys.class_folders(tmp_path / "c", 12, seed=1))).train
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_bytes_are_opened_like_files():
    buffer = io.BytesIO()
    toys.picture("red brick", np.random.default_rng(0)).save(buffer, "PNG")
    assert open_picture(buffer.getvalue()).size == (32, 32)
