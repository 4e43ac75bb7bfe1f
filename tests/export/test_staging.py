"""What is sent to a Space: the tracked files that it needs, and a README that is right there."""

import re
import shutil
import subprocess

import pytest
import yaml

from kd.errors import UserError
from kd.export.staging import ZERO_GPU, ZERO_GPU_TORCH, is_needed, split_front_matter, stage, staged_requirements
from kd.system.browser_runtime import NAME as RUNTIME
from tests.support.paths import ROOT


def test_only_what_a_space_needs_is_sent(checkout):
    staged = stage("anna/distillery", None, root=checkout)
    folders = {path.split("/")[0] for path in staged.files}
    assert folders == {"app.py", "README.md", "requirements.txt", "LICENSE", "kd", "assets", RUNTIME}
    studies = [path for path in staged.files if path.startswith("assets/studies")]
    assert studies == ["assets/studies/README.md"]
    assert not staged.is_dirty and re.fullmatch("[0-9a-f]{40}", staged.commit)
    assert {path.suffix for path in (checkout / "kd").rglob("*") if path.is_file()} <= {
        "." + path.rsplit(".", 1)[1] for path in staged.files if path.startswith("kd/")
    }
    assert 20e6 < staged.total() < 40e6


def test_every_link_of_the_readme_leads_somewhere_in_the_space(checkout):
    staged = stage("anna/distillery", None, root=checkout)
    body = split_front_matter(staged.files["README.md"].decode())[1]
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", body):
        assert link in staged.files, link


def test_the_front_matter_names_the_owner_and_is_otherwise_the_repository_s(checkout):
    staged = stage("anna/distillery", None, root=checkout)
    before = yaml.safe_load(split_front_matter((ROOT / "README.md").read_text())[0])
    after = yaml.safe_load(staged.front_matter())
    assert after["thumbnail"].startswith("https://huggingface.co/spaces/anna/distillery/")
    assert (
        after["thumbnail"].removeprefix("https://huggingface.co/spaces/anna/distillery/resolve/main/") in staged.files
    )
    assert after["tags"] == [*before["tags"], "distillery"]
    assert after["preload_from_hub"] == ["merve/beans-vit-224 config.json,preprocessor_config.json,model.safetensors"]
    different = {"thumbnail", "tags", "preload_from_hub"}
    assert {k: v for k, v in after.items() if k not in different} == {
        k: v for k, v in before.items() if k not in different
    }
    *ours, last = staged.files["requirements.txt"].decode().splitlines()
    assert ours == (ROOT / "requirements.txt").read_text().splitlines()
    assert last.startswith("mcp>=")  # so that agents can use the Space


def test_on_zero_gpu_python_and_torch_are_of_its_lists(checkout):
    staged = stage("anna/distillery", ZERO_GPU, root=checkout)
    front, needs = yaml.safe_load(staged.front_matter()), staged.files["requirements.txt"].decode().splitlines()
    assert (front["python_version"], front["suggested_hardware"]) == ("3.12.12", "zero-a10g")
    assert f"torch=={ZERO_GPU_TORCH}" in needs and any(line.startswith("spaces>=") for line in needs)
    assert len(needs) == len((ROOT / "requirements.txt").read_text().splitlines()) + 2


def test_requirements_that_name_no_torch_cannot_be_pinned():
    with pytest.raises(UserError, match="names torch 0 times"):
        staged_requirements("torchaudio\nnumpy\n", ZERO_GPU, [])


def test_a_checkout_with_changes_is_refused_unless_they_are_meant(checkout):
    (checkout / "kd" / "text.py").write_text(text := (checkout / "kd" / "text.py").read_text() + "\n# changed\n")
    (checkout / "kd" / "new.py").write_text("")
    try:
        with pytest.raises(
            UserError, match=r"2 files here are not as they are committed: kd/text.py, kd/new.py.*--dirty"
        ):
            stage("anna/distillery", None, root=checkout)
        staged = stage("anna/distillery", None, is_dirty_allowed=True, root=checkout)
        assert staged.is_dirty and staged.files["kd/text.py"].read_text() == text
        assert "kd/new.py" not in staged.files  # what git does not track is never sent
    finally:
        subprocess.run(["git", "checkout", "-q", "."], cwd=checkout, check=True)
        (checkout / "kd" / "new.py").unlink()


def test_a_copy_that_is_no_checkout_is_refused_in_words(tmp_path, checkout):
    shutil.copytree(checkout / "kd", tmp_path / "kd")
    for folder in (tmp_path, checkout / "kd"):
        with pytest.raises(UserError, match=r"is no git checkout .*installed cannot be deployed"):
            stage("anna/distillery", None, root=folder)


def test_nothing_that_git_does_not_track_is_needed_but_the_runtime():
    for path in (
        "tests/conftest.py",
        ".ci/run",
        "Makefile",
        ".gitignore",
        "pyproject.toml",
        "assets/studies/default.json",
    ):
        assert not is_needed(path)
    for path in ("assets/sample/train.parquet", "assets/example/gallery/0.webp", "kd/ui/static/page.css"):
        assert is_needed(path)
