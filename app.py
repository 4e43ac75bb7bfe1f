"""The page. ``python app.py``, then open the address it prints.

A Space runs this file. It does the same as ``kd app``, which has flags for host and port; here they are read from
``GRADIO_SERVER_NAME`` and ``GRADIO_SERVER_PORT``. ``KD_RUNS_DIR`` is where runs are kept (default: ``runs``);
``KD_SHARED=1``, or ``--shared``, keeps visitors apart as on a Space. ``kd limits`` lists the variables that set limits.
"""

import sys

# Imported here, and not above: the process that runs the models (``kd.evaluation.worker``) imports this file too, and
# needs none of it.
if __name__ == "__main__":
    from kd.errors import UserError
    from kd.ui.page import serve

    try:
        serve(shared="--shared" in sys.argv[1:])
    except (UserError, ValueError) as problem:  # the second: a limit in the environment that is no number
        sys.exit(f"distillery: {problem}")
