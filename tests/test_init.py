"""The names of the package itself."""

import subprocess
import sys


def test_compare_and_distill_are_functions_also_after_their_modules_were_imported():
    code = "import kd.evaluation.compare, kd.distill; from kd import compare, distill; print(callable(compare), callable(distill))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "True True"
