"""Start this program again in a process of its own."""

import os
import site
import sys

from kd.system.files import ROOT


def kd_command(*arguments: str) -> list[str]:
    """Return the command line of ``python -m kd`` with these arguments.

    ``-P`` keeps Python from importing files of the working folder, which is the user's, in the place of libraries.
    """
    return [sys.executable, "-P", "-m", "kd", *arguments]


def kd_environment() -> dict[str, str]:
    """Return this process's environment, so changed that ``kd_command`` runs the code that runs here.

    Python finds an installed package without help, and a folder of packages on ``PYTHONPATH`` would come before the
    standard library. A checkout, or a folder that only this process knows, has to be named.
    """
    environment = dict(os.environ)
    if str(ROOT) not in (*site.getsitepackages(), site.getusersitepackages()):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    return environment
