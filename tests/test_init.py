"""The names of the package itself."""

import importlib


def test_compare_and_distill_are_functions_also_after_their_modules_were_imported():
    for module in ("kd.evaluation.compare", "kd.distill"):
        importlib.import_module(module)
    from kd import compare, distill

    assert callable(compare) and callable(distill)
