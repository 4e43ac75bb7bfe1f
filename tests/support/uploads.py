"""Pictures and archives that somebody brings, and their import into a folder of datasets."""

import io
import zipfile
from pathlib import Path

from PIL import Image

from kd.data.library.decoder import judge
from kd.data.library.importer import import_source
from kd.data.library.store import Upload, find_upload
from kd.system.ids import owner_hash

RED, WHITE = (200, 40, 30), (255, 255, 255)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def red(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, RED).convert(mode)


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


def take(folder: Path, source, owner: str = "me", **job) -> Upload:
    """What the process does, in this one."""
    source = str(source) if isinstance(source, Path) else [[name, str(file)] for name, file in source]
    asked = {"source": source, "name": "", "folder": str(folder), "owner": owner_hash(owner), "room": None, **job}
    return find_upload(folder, import_source(asked, judge, lambda done, of: None))
