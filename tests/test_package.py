"""The wheel, installed without the checkout: it holds what it needs, and works from an empty folder."""

import json
import os
import shutil
import site
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from kd.devtools.chaos import Page, make_dataset
from kd.devtools.server import free_port, wait_for_page
from tests.support.paths import ROOT

# What a build reads. It is copied, for setuptools leaves folders beside what it builds.
SOURCES = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "kd", "assets")

# What the assets hold besides what a run or the page reads.
FOR_READERS = {"guide", "studies", "page.png", "labels.png", "labels-photos.png"}

API = """
import json, sys, kd
from pathlib import Path
from kd.data.splits import load_splits
[getattr(kd, name) for name in kd.__all__]
answer = kd.compare(sys.argv[1], sys.argv[2:])
sample = load_splits(kd.DistillConfig.preset("sample"))
print(json.dumps({"names": [Path(one["name"]).name for one in answer["pictures"]], "test": len(sample.test)}))
"""


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel in it, and the empty folder to work from."""

    environment: Path
    folder: Path

    @property
    def package(self) -> Path:
        """The folder of the installed package."""
        return next(self.environment.glob("lib/python*/site-packages")) / "kd"

    def start(self, program: str, *arguments, **streams) -> subprocess.Popen:
        """Start a program of the environment in the folder, with nothing in the environment variables that names us."""
        ours = ("PYTHONPATH", "KD_", "GRADIO_", "SPACE_ID")
        return subprocess.Popen(
            [self.environment / "bin" / program, *map(str, arguments)],
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if not name.startswith(ours)},
            text=True,
            **streams,
        )

    def output(self, program: str, *arguments) -> str:
        """Return what a program prints; it has to succeed."""
        process = self.start(program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return output


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copy if (ROOT / name).is_file() else shutil.copytree
        copy(ROOT / name, source / name)
    command = ["wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet", "--wheel-dir"]
    subprocess.run([sys.executable, "-m", "pip", *command, target, source], check=True, cwd=target)
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installed:
    """The wheel in an environment that also sees the packages that are here, but not the checkout: Python reads no
    ``.pth`` file, such as that of an editable install, of a folder that is itself named in one."""
    made = Installed(tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.environment], check=True)
    python = made.environment / "bin" / "python"
    command = ["--disable-pip-version-check", "install", "--quiet", "--no-deps", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *command], check=True, cwd=made.folder)
    (made.package.parent / "present.pth").write_text("\n".join(site.getsitepackages()))
    found = made.output("python", "-c", "import kd; print(kd.__file__)").strip()
    assert Path(found).parent.samefile(made.package)
    return made


@pytest.fixture(scope="module")
def report(installed, tmp_path_factory) -> dict:
    """The report of a run that the installed ``kd distill`` makes with the wheel's own teacher."""
    dataset = make_dataset(tmp_path_factory.mktemp("pictures") / "small")
    options = ["--dataset", dataset, "--epochs", 1, "--views", 1, "--baseline", "no", "--json"]
    return json.loads(installed.output("kd", "distill", *options).splitlines()[-1])


# --- What is in it


def files_of(folder: Path) -> set[str]:
    """Return the files of a folder of the checkout that Python has not made."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


def test_the_wheel_holds_the_whole_package_and_of_the_assets_what_is_used(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("distillery-")}
    assets = {name for name in files_of(ROOT / "assets") if name.split("/")[0] not in FOR_READERS}
    assert held == {f"kd/{name}" for name in files_of(ROOT / "kd")} | {f"kd/assets/{name}" for name in assets}


def test_the_wheel_s_metadata_names_licence_readme_and_requirements(wheel):
    archive = zipfile.ZipFile(wheel)
    parts = {Path(name).name: name for name in archive.namelist() if name.startswith("distillery-")}
    metadata = archive.read(parts["METADATA"]).decode()
    assert "Apache License" in archive.read(parts["LICENSE"]).decode()
    assert "License-Expression: Apache-2.0\n" in metadata and "\n# Distillery\n" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert len(needed) == len((ROOT / "requirements.txt").read_text().split())


def test_what_builds_the_package_here_is_what_pyproject_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["build-system"]["requires"]) <= set(project["project"]["optional-dependencies"]["test"])


# --- From an empty folder


def test_the_command_line_works_from_an_empty_folder(installed):
    assert "training runs:" in installed.output("kd", "--help")
    assert not list(installed.folder.iterdir())


def test_a_run_works_from_an_empty_folder(installed, report):
    assert report["student"]["accuracy"] > 0
    assert (installed.folder / "runs" / report["run"] / "student" / "model.safetensors").exists()


def test_the_python_api_works_from_an_empty_folder(installed, report):
    picture = installed.package / "assets" / "examples" / "coat-1.png"
    answer = installed.output("python", "-c", API, installed.folder / "runs" / report["run"], picture)
    assert json.loads(answer) == {"names": ["coat-1.png"], "test": 2000}


@pytest.mark.slow
def test_the_page_and_the_process_that_asks_the_models_work_from_an_empty_folder(installed, report, tmp_path):
    port, log = free_port(), tmp_path / "page.txt"
    with log.open("w") as file:
        process = installed.start("kd", "app", "--port", port, stdout=file, stderr=file)
    try:
        wait_for_page(process, port, log)
        picture = installed.package / "assets" / "examples" / "coat-1.png"
        sent = httpx.post(f"http://127.0.0.1:{port}/gradio_api/upload", files={"files": picture.open("rb")})
        image = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
        answer = Page(process, port).call("compare", report["run"], [image], "")
        assert [len(one["teacher"]) for one in answer["pictures"]] == [5]
    finally:
        process.terminate()
        process.wait(20)


# --- Which Python `make` takes

# What a Python says of itself to the Makefile, which asks for its version, whether that will do, and for two modules.
OLD = "case $2 in *print*) echo 3.9 ;; *) exit 1 ;; esac"
BARE = "case $2 in *print*) echo 3.12 ;; *ensurepip*) exit 1 ;; esac"
GOOD = 'case $2 in *print*) echo 3.13 ;; esac; [ "$1" = -c ] || echo "$0 $*"'


def make_with(folder: Path, **pythons: str) -> subprocess.CompletedProcess:
    """Have ``make`` build an environment in ``folder`` where only these programs are found, each a shell script."""
    programs = folder / "bin"
    programs.mkdir()
    for name, script in pythons.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    (programs / "sh").symlink_to(shutil.which("sh"))
    shutil.copy(ROOT / "Makefile", folder)
    command = [shutil.which("make"), ".venv/bin/pip"]
    return subprocess.run(command, cwd=folder, env={"PATH": str(programs)}, capture_output=True, text=True)


def test_make_takes_the_first_python_that_will_do(tmp_path):
    made = make_with(tmp_path, python3=OLD, python=BARE, **{"python3.13": GOOD, "python3.14": GOOD})
    assert made.returncode == 0 and made.stderr == ""
    assert made.stdout.strip().endswith("python3.13 -m venv .venv")


def test_make_says_plainly_that_there_is_no_python(tmp_path):
    made = make_with(tmp_path)
    assert made.returncode != 0
    assert made.stderr.startswith(
        "Python 3.11 or newer is needed, and none was found that can be used (tried: python3 "
    )


def test_make_says_plainly_what_is_wrong_with_each_python(tmp_path):
    made = make_with(tmp_path, python3=OLD, python=BARE)
    assert made.returncode != 0
    assert "python3 is Python 3.9, which is too old." in made.stderr
    assert "it lacks ensurepip (Debian: apt-get install python3.12-venv)" in made.stderr
