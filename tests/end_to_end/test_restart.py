"""A Space with a bucket restarts: its disk is lost, and its visitors find what they had."""

import shutil
import signal
import tarfile
from pathlib import Path

import httpx
import pytest

from kd.config import DistillConfig
from kd.data.library.store import Library, import_dataset
from kd.devtools.chaos import Page
from kd.distill import execute
from kd.export.bundle import export_student
from kd.runs.backup import KEPT
from kd.runs.bucket import Copy
from kd.runs.run import Run
from kd.runs.store import create_run
from kd.system.ids import owner_hash
from tests.support.pages import Site, until
from tests.support.paths import ROOT
from tests.support.uploads import PNG, packed

ANNA = "aa" * 16
PICTURE = ROOT / "assets" / "examples" / "coat-1.png"


def trained(settings: dict, folder: Path) -> Run:
    run = create_run(DistillConfig.from_dict(settings), folder, ANNA)
    execute(run)
    assert run.status() == "done"
    return run


def lose_server_and_disk(site: Site) -> None:
    """As a Space's container ends: at once, and with all that was on its disk."""
    site.process.send_signal(signal.SIGKILL)
    site.process.wait(20)
    shutil.rmtree(site.folder)
    site.folder.mkdir()


def rows(site: Site) -> dict:
    return site.call("runs", "rows", {"owner": ANNA})


@pytest.mark.slow
def test_after_a_restart_a_visitor_finds_runs_names_and_pictures_and_can_compare_and_export(small, tmp_path):
    folder, bucket = tmp_path / "runs", tmp_path / "bucket"
    folder.mkdir()
    bucket.mkdir()
    # --- A Space with a finished run that got a name, one that was deleted, a dataset, and a run at work
    site = Site(folder, SPACE_ID="anna/distillery", KD_BUCKET=str(bucket), GRADIO_SERVER_NAME="127.0.0.1")
    site.start()
    try:
        run = trained({**small, "epochs": 1}, folder)
        deleted = create_run(DistillConfig.from_dict(small), folder, ANNA)
        deleted.append("stopped", message="")
        archive = packed(tmp_path / "pets.zip", {f"{name}/{n}.png": PNG + bytes(n) for name in "ab" for n in range(4)})
        upload = import_dataset(archive, "my pets", Library(folder, ANNA))
        live = create_run(DistillConfig.from_dict(small), folder, ANNA)
        with live.work():  # as the process does that works on it
            live.append("started", pid=1)
            until(lambda: Copy.of(deleted.path, bucket).index.exists(), 60)
            act = {"owner": ANNA, "run": run.id, "do": "rename", "name": "Anna's best"}
            assert site.call("runs", "act", act) == {}
            assert site.call("runs", "act", {**act, "run": deleted.id, "do": "delete"}) == {}
            until(lambda: (Copy.of(run.path, bucket).read() or {}).get("small", {}).get("name") == "Anna's best", 60)
            until(lambda: Copy.of(upload.path, bucket).index.exists(), 60)
            assert not Copy.of(deleted.path, bucket).index.exists()
            assert not Copy.of(live.path, bucket).index.exists() and live.status() == "running"
            report, secret = run.report(), (folder / ".owner").read_text()
            lose_server_and_disk(site)
        # --- The same Space with an empty disk
        site.start()
        until(lambda: run.path.exists() and upload.path.exists(), 60)
        shown = until(lambda: (found := rows(site))["lost"] == KEPT and found, 60)
        assert "Anna&#39;s best" in shown["html"] and live.id not in shown["html"] and deleted.id not in shown["html"]
        assert run.report() == report and run.owner() == owner_hash(ANNA)
        assert (folder / ".owner").read_text() == secret
        assert "my pets" in str(site.call("data", "offered", {"owner": ANNA}))
        sent = httpx.post(f"{site.url}/gradio_api/upload", files={"files": PICTURE.open("rb")})
        image = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
        answer = Page(site.process, site.port).call("compare", run.id, [image], ANNA)
        assert "error" not in answer["pictures"][0]
        asked = {"owner": ANNA, "run": run.id}
        assert site.call("live", "export_state", asked)["missing"]  # it is theirs, and can be exported
        export_student(run)
        # --- What was made after the restart is kept too
        until(lambda: "export/" in str(archive_names(Copy.of(run.path, bucket))), 60)
    finally:
        site.stop()


def archive_names(copy: Copy) -> list[str]:
    with tarfile.open(copy.folder / copy.read()["archive"]) as archive:
        return archive.getnames()
