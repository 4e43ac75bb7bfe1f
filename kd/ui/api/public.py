"""The public API: every function that ``gradio_client``, ``curl`` and an MCP client can call, the same for all."""

import gradio as gr

from kd.ui.api.endpoints import endpoint
from kd.ui.api.options import list_options
from kd.ui.api.pictures import check_dataset, import_pictures, list_datasets
from kd.ui.api.runs import delete, get_run, list_runs, make_teacher, resume_run, start_run, stop_run, wait_for_run
from kd.ui.api.students import compare, export_student, get_student

# In the order in which somebody who distils their own pictures needs them.
FUNCTIONS = (
    list_options, import_pictures, list_datasets, check_dataset, make_teacher, start_run, wait_for_run, list_runs, get_run,
    compare, export_student, get_student, stop_run, resume_run, delete,
)  # fmt: skip


def add() -> None:
    """Make the functions endpoints. Only ``compare`` computes, so the others need no place in the queue."""
    for function in FUNCTIONS:
        # One after the other, or any number at once: those that wait must not keep others waiting.
        place = (
            {"concurrency_id": "compare", "concurrency_limit": 1}
            if function is compare
            else {"queue": False, "concurrency_limit": None}
        )
        gr.api(endpoint(function), api_name=function.__name__, **place)
