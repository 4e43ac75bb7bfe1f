"""The page. ``python app.py``, then open the address it prints.

``KD_RUNS_DIR`` is where runs are kept (default: ``runs``); ``GRADIO_SERVER_NAME`` and ``GRADIO_SERVER_PORT`` are host
and port; ``KD_SHARED=1``, or ``--shared``, keeps visitors apart as on a Space. ``python -m kd limits`` lists the variables
that set limits.
"""

import os
import sys

SWITCH_SECONDS = 0.0005
"""How long a thread that computes may keep another waiting: Python's own 5 ms make a poll wait at each of its many turns."""

# Imported here, and not above: the process that runs the models (``kd.evaluation.worker``) imports this file too, and
# needs none of it.
if __name__ == "__main__":
    if "--shared" in sys.argv[1:]:
        os.environ["KD_SHARED"] = "1"
    from kd.ui.access import keep_clean
    from kd.ui.page import build, launch_options

    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        options = launch_options()
    except ValueError as problem:  # a limit in the environment that is no number
        sys.exit(f"distillery: {problem}")
    keep_clean()
    build().launch(**options)
