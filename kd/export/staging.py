"""Choose what of a git checkout a Space needs, and write the few lines that are different there."""

import re
import subprocess
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from kd.config import PRESETS
from kd.errors import UserError
from kd.system import browser_runtime
from kd.system.files import ROOT

# The tracked files that a Space needs: the program and what it reads, and what README shows or links to.
NEEDED = (
    "app.py", "requirements.txt", "README.md", "LICENSE", "kd/*",
    "assets/wordmark.svg", "assets/sample/*", "assets/sample-teacher/*", "assets/examples/*", "assets/example/*",
    "assets/page.png", "assets/labels*.png", "assets/guide/*.md", "assets/studies/README.md",
)  # fmt: skip

# The hardware that has a GPU only while a visitor's request asks for one, and what it takes: a Python and a torch of its list.
ZERO_GPU = "zero-a10g"
ZERO_GPU_PYTHON, ZERO_GPU_TORCH, ZERO_GPU_PACKAGE = "3.12.12", "2.11.0", "spaces>=0.51,<1"

# By this tag in its README a Space is known to be ours.
TAG = "distillery"

# The files of the teacher of the preset ``beans`` that a run loads. A Space is built with them, so that the first run waits
# for nothing.
TEACHER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


@dataclass(frozen=True)
class Staged:
    """What is sent to a Space: path there -> a file here, or the bytes themselves; and the commit that it is of."""

    files: dict[str, Path | bytes]
    commit: str
    is_dirty: bool

    def size(self, path: str) -> int:
        """Return the bytes of a file."""
        source = self.files[path]
        return len(source) if isinstance(source, bytes) else source.stat().st_size

    def total(self) -> int:
        """Return the bytes of all files."""
        return sum(self.size(path) for path in self.files)

    def front_matter(self) -> str:
        """Return the YAML with which the README begins."""
        return split_front_matter(self.files["README.md"].decode())[0]

    def preloaded(self) -> str:
        """Return the model of the Hub that the Space is built with."""
        return PRESETS["beans"]["teacher"]

    def copy_to(self, folder: Path) -> None:
        """Write all files into a folder."""
        for path, source in self.files.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source if isinstance(source, bytes) else source.read_bytes())


def stage(name: str, hardware: str | None, is_dirty_allowed: bool = False, root: Path = ROOT) -> Staged:
    """Choose what is sent to the Space ``name`` (``owner/name``) on this ``hardware`` from the git checkout ``root``.

    Raises ``UserError`` where this is no checkout, where it has changes that are not committed, unless those
    ``is_dirty_allowed`` to be sent, and where the browser's runtime is missing and cannot be fetched.
    """
    commit, tracked, changed = read_checkout(root)
    if changed and not is_dirty_allowed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{len(changed)} files here are not as they are committed: {', '.join(changed[:5])}{more}. Commit them, so that it "
            "can be told what the Space runs, or send them as they are with --dirty."
        )
    wanted = [path for path in tracked if is_needed(path) and (root / path).is_file()]
    files: dict[str, Path | bytes] = {path: root / path for path in wanted}
    readme, requirements = (root / "README.md").read_text(), (root / "requirements.txt").read_text()
    files["README.md"] = staged_readme(readme, name, hardware).encode()
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for_agents = project["optional-dependencies"]["mcp"]  # a Space installs the requirements alone, no extras
    files["requirements.txt"] = staged_requirements(requirements, hardware, for_agents).encode()
    runtime = browser_runtime.pinned_runtime(root / "build" / browser_runtime.NAME)  # which git ignores
    files |= {
        f"{browser_runtime.NAME}/{file}": runtime / file for file in (browser_runtime.SCRIPT, browser_runtime.WASM)
    }
    return Staged(dict(sorted(files.items())), commit, bool(changed))


def is_needed(path: str) -> bool:
    """Tell whether a Space needs a tracked file."""
    return any(fnmatch(path, pattern) for pattern in NEEDED)


def read_checkout(root: Path) -> tuple[str, list[str], list[str]]:
    """Return the commit of a git checkout, its tracked files, and those that have changed since.

    Raises ``UserError`` where ``root`` is not the top of one, as where the program was installed with pip.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
        return done.stdout

    try:
        top = Path(git("rev-parse", "--show-toplevel").strip())
        if top.resolve() != Path(root).resolve():
            raise UserError(f"it lies in the checkout {top}, and is not all of it")
        commit = git("rev-parse", "HEAD").strip()
        tracked = [path for path in git("ls-files", "-z").split("\0") if path]
        changes = git("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames").split("\0")
    except (OSError, subprocess.CalledProcessError, UserError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise UserError(
            f"`kd deploy` sends what git tracks, and {root} is no git checkout ({said[-1] if said else 'git said nothing'}). Clone "
            "the project, install git, and run the command from there; a copy that pip has installed cannot be deployed."
        ) from error
    # A file that is not tracked is not sent: one that is needed will be missed there.
    return commit, tracked, [line[3:] for line in changes if line and (line[0] != "?" or is_needed(line[3:]))]


def staged_readme(text: str, name: str, hardware: str | None) -> str:
    """Return the README of the Space ``name``: its front matter names the owner, our tag, the Python and what to preload."""
    front, body = split_front_matter(text)
    data: dict[str, Any] = yaml.safe_load(front)
    data["thumbnail"] = f"https://huggingface.co/spaces/{name}/resolve/main/assets/page.png"
    data["suggested_hardware"] = hardware or data.get("suggested_hardware", "cpu-basic")
    data["tags"] = list(dict.fromkeys([*data.get("tags", []), TAG]))
    data["preload_from_hub"] = [f"{PRESETS['beans']['teacher']} {','.join(TEACHER_FILES)}"]
    if hardware == ZERO_GPU:
        data["python_version"] = ZERO_GPU_PYTHON
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)}---\n{body}"


def without_preload(readme: bytes) -> bytes:
    """Return a README whose Space is built without files of the Hub, which the Hub did not show."""
    front, body = split_front_matter(readme.decode())
    data = yaml.safe_load(front)
    data.pop("preload_from_hub", None)
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)}---\n{body}".encode()


def staged_requirements(text: str, hardware: str | None, more: list[str]) -> str:
    """Return the requirements and ``more``: on ZeroGPU with a torch of its list, and the package that lends the GPU."""
    text = "".join(f"{line}\n" for line in [*text.splitlines(), *more])
    if hardware != ZERO_GPU:
        return text
    pinned, count = re.subn(r"^torch\b.*$", f"torch=={ZERO_GPU_TORCH}", text, flags=re.MULTILINE)
    if count != 1:
        raise UserError(f"requirements.txt names torch {count} times; expected once, to pin it for ZeroGPU.")
    return f"{pinned.rstrip()}\n{ZERO_GPU_PACKAGE}\n"


def split_front_matter(text: str) -> tuple[str, str]:
    """Return the YAML between the first two lines of ``---``, and what comes after. Raises ``UserError`` without it."""
    found = re.match(r"---\n(.*?\n)---\n(.*)", text, re.DOTALL)
    if found is None:
        raise UserError("README.md does not begin with the front matter of a Space, between two lines of ---.")
    return found[1], found[2]
