"""Bring pictures, check them, list and delete what was brought."""

import asyncio
import time
from typing import Any

import gradio as gr

from kd import limits
from kd.config import CHECKED, DistillConfig
from kd.data.library.store import UPLOAD_PREFIX, Upload
from kd.errors import UserError
from kd.evaluation import dataset_report
from kd.system.ids import owner_hash
from kd.ui import dataset_check, datasets
from kd.ui.access import own_upload, own_uploads
from kd.ui.api.endpoints import in_callers_names, token_for, wait_until
from kd.ui.api.files import is_data_url, kept

# Of a long list an answer has so many.
MOST_LISTED = 20


async def import_pictures(
    file: str = "", name: str = "", token: str = "", timeout: float = 30, request: gr.Request | None = None
) -> dict[str, Any]:
    """Bring your own pictures: a zip (or tar) of class folders, with or without train, validation and test, or of pictures without labels. They become a dataset that start_run and check_dataset take by its name. Large archives take minutes: while status is running, call again with an empty file to wait on.

    Args:
        file: The archive: a data: URL (data:application/zip;base64,...), the address or path that an upload to this server answered with, or empty to wait for the import that is under way.
        name: What to call the dataset; empty for the archive's own name.
        token: On a shared server, the token of an earlier answer; empty for a new one.
        timeout: Seconds to wait for the end, 0 to 50.

    Returns:
        status (running or done), line (in words), dataset (upload:ID, once done), name, pictures (split, class, count), skipped (how many files could not be read, and the first of them), token (keep it: it owns the dataset on a shared server), next (what to do now).
    """
    token = token_for(token)
    # In a thread: a large file is decoded there, while others are answered.
    begun = file and await asyncio.to_thread(_begun, file, name, token, request)
    one = begun or datasets.last_import(token)
    if one is None:
        raise UserError("No import is under way. Give the archive as file.")
    await wait_until(lambda: one.over, timeout)
    if not one.over:
        go_on = "Call import_pictures with this token and an empty file to wait on."
        return {"status": "running", "line": one.words(), "token": token, "next": go_on}
    if not one.dataset:
        raise UserError(" ".join([one.words(), *(f"{file}: {why}." for file, why in one.skipped[:5])]))
    dataset = f"{UPLOAD_PREFIX}{one.dataset}"
    return {
        "status": "done", "line": one.words(), **_described(own_upload(dataset, token)), "token": token,
        "next": f"Check the pictures: check_dataset({dataset!r}). A teacher has to know these classes; if there is none, make_teacher makes one.",
    }  # fmt: skip


def _begun(file: Any, name: str, token: str, request: Any) -> datasets.Import:
    """Start the import of a file, which is removed once it is read."""
    if not isinstance(name, str):
        raise UserError(f"name is {str(name)[:40]!r}; expected text.")
    if (last := datasets.last_import(token)) and not last.over:
        raise UserError("Your last import is not done yet. Call import_pictures with an empty file to wait for it.")
    path = kept(file, request, limits.current().upload_mb, "archive")
    try:
        return datasets.start_import(path, name or ("My pictures" if is_data_url(file) else ""), token)
    except UserError:
        if is_data_url(file):
            path.unlink()
        raise


def list_datasets(token: str = "") -> dict[str, Any]:
    """List the datasets that you have brought, newest first.

    Args:
        token: On a shared server, the token that owns them.

    Returns:
        datasets, each with dataset (upload:ID), name, pictures (split, class, count), skipped, created and megabytes.
    """
    return {"datasets": [_described(one) for one in own_uploads(token)[:MOST_LISTED]]}


def _described(upload: Upload) -> dict[str, Any]:
    info = upload.info()
    return {
        "dataset": f"{UPLOAD_PREFIX}{upload.id}",
        "name": info["name"],
        "pictures": info["pictures"],
        "skipped": {"count": info["skipped"], "first": info["examples"][:5]},
        "notes": info["notes"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info["created"])),
        "megabytes": round(upload.bytes() / 1e6, 1),
    }


async def check_dataset(
    dataset: str, settings: dict[str, Any] | None = None, token: str = "", timeout: float = 30
) -> dict[str, Any]:
    """Say what is wrong with pictures before anything is trained on them: duplicates across splits, doubtful labels, small classes, unreadable files, what a teacher does not know. While status is running, call again with the same arguments to wait on.

    Args:
        dataset: upload:ID of import_pictures, a Hub id or, on your own machine, a folder.
        settings: Settings that matter to a check, by name: teacher (is asked too), label_map, the splits and columns; see list_options.
        token: On a shared server, the token that owns the dataset.
        timeout: Seconds to wait for the end, 0 to 50.

    Returns:
        status (running or done), line, problems (rank, what, why, do; the worst first), counts (class and pictures of each split), duplicates and unreadable (how many, and the first), teacher (accuracy and what it mixes up), next.
    """
    settings = settings or {}
    if not isinstance(settings, dict) or not isinstance(dataset, str):
        raise UserError('dataset is text and settings are names and values, as in {"teacher": "run:ID"}.')
    if unknown := sorted(map(str, set(settings) - set(CHECKED))):
        raise UserError(f"{unknown[0]!r} does not matter to a check. What does: {', '.join(CHECKED)}.")
    token = token_for(token)
    config = DistillConfig.preset("custom", **{**settings, "dataset": dataset})
    wanted = dataset_check.Wanted.of(config, token, "teacher" in settings)
    asker = f"api {owner_hash(token)[:32]}"
    now: list[dict[str, Any] | str] = []

    def is_over() -> bool:
        now[:] = [dataset_check.find_check(wanted, asker)]
        return isinstance(now[0], dict)

    await wait_until(is_over, timeout)
    if isinstance(now[0], str):
        return {"status": "running", "line": now[0], "next": "Call check_dataset with the same arguments to wait on."}
    return {"status": "done", **_findings(now[0])}


def _findings(found: dict[str, Any]) -> dict[str, Any]:
    """Return the findings of a check in an answer's length."""
    problems = [
        {"rank": dataset_report.ranked(one["points"])[1].lower(), **{key: in_callers_names(one[key]) for key in ("what", "why", "do")}}
        for one in found["problems"][:MOST_LISTED]
    ]  # fmt: skip
    pairs, unreadable, teacher = found["duplicates"], found["unreadable"], found["teacher"]
    asked = teacher and not teacher["problem"] and teacher["accuracy"] is not None
    splits = list(found["counts"])
    return {
        "line": dataset_report.lead(found),
        "notes": [in_callers_names(note) for note in found["notes"]],
        "problems": problems,
        "counts": [
            {"class": row[0], **dict(zip(splits, row[1:], strict=True))} for row in dataset_report.counts_table(found)[:200]
        ],
        "duplicates": {
            "count": len(pairs),
            "first": [[dataset_report.image_words(pair[side]) for side in ("one", "other")] for pair in pairs[:5]],
        },
        "unreadable": {
            "count": len(unreadable),
            "first": [f"{dataset_report.place(one)}: {one['reason']}" for one in unreadable[:5]],
        },
        "teacher": {"accuracy": dataset_report.accuracy(teacher), "mixes_up": dataset_report.confused(teacher)[:5]}
        if asked
        else None,
        "next": "Mend what is serious, bring the pictures again, or start_run as they are."
        if problems
        else "The pictures are in order. start_run, or make_teacher where no teacher knows these classes.",
    }  # fmt: skip
