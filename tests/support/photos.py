"""Pictures with as much to see as photos, changed copies of them, and datasets with planted faults."""

import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageEnhance, ImageOps

from tests.support.toys import EVIL


def photo(seed: int, size: int = 160) -> Image.Image:
    """Something with as much to see as a photo: coloured blots of all sizes."""
    rng = np.random.default_rng(seed)
    values = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((size, size), 3), float
        )
        for cells in (3, 6, 12, 24)
    )
    return Image.fromarray((values / 4).astype(np.uint8))


def again(picture: Image.Image, quality: int = 75) -> Image.Image:
    """Written as JPEG and read."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


CHANGES = {
    "written again": lambda p: again(p, 40),
    "half the size": lambda p: p.resize((80, 80)),
    "cropped": lambda p: p.crop((5, 4, 156, 157)),
    "brightened": lambda p: ImageEnhance.Brightness(p).enhance(1.15),
    "mirrored": lambda p: again(ImageOps.mirror(p)),
    "all of it": lambda p: again(ImageEnhance.Brightness(p.crop((3, 0, 158, 157)).resize((120, 120))).enhance(1.1)),
}


def plant_duplicates(folder: Path) -> Path:
    """Split folders of two classes. In train: 8 pictures a class; 3 of cats are a test picture changed, 1 a validation
    picture; one validation dog is a test dog."""

    def save(name: str, picture: Image.Image) -> None:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)

    for label, start in (("cat", 0), ("dog", 100)):
        for split, first, count in (("train", 0, 8), ("validation", 20, 3), ("test", 40, 3)):
            for nth in range(count):
                save(f"{split}/{label}/{nth}", photo(start + first + nth))
    for nth, change in enumerate(("written again", "cropped", "mirrored")):
        save(f"train/cat/test {nth}", CHANGES[change](photo(40 + nth)))
    save("train/cat/validation", CHANGES["brightened"](photo(20)))
    save("validation/dog/test", photo(140))
    return folder


def bad_dataset(folder: Path) -> Path:
    """Whatever can be wrong: one photo under two labels, a class without validation pictures and with few for training, a
    hundred times as many of another, a broken file, a grey picture, a class whose name is markup, copies across splits."""

    def png(picture: Image.Image) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    classes = ["cat", "dog", EVIL]
    train = [(png(photo(nth, 80)), nth % 2) for nth in range(60)] + [(png(photo(200 + nth, 80)), 2) for nth in range(2)]
    train += [(png(again(photo(7, 80), 98)), 0), (b"no picture", 0), (png(photo(9, 80).convert("L")), 1)]
    parts = {
        "train": train,
        "validation": [(png(photo(300 + nth, 80)), nth % 2) for nth in range(12)],
        "test": [train[0], *((png(photo(400 + nth, 80)), nth % 3) for nth in range(11))],
    }
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=classes)})
    for name, rows in parts.items():
        images = [{"bytes": data, "path": f"{nth} {EVIL}.png"} for nth, (data, _) in enumerate(rows)]
        columns = {"image": images, "label": [label for _, label in rows]}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{name}.parquet")
    return folder
