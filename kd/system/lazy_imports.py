"""Import what takes seconds and stays loaded (torch, transformers, gradio) at the lowest cost."""

import gc
import sys
from importlib import import_module


def load(*modules: str) -> None:
    """Import modules that are not imported yet, and exempt all objects from garbage collection then (``gc.freeze``).

    Such imports make a million objects that are never garbage, which the collector would go through again and again. Where
    torch is imported already, as in a notebook, somebody's models may be in memory too: then nothing is exempted.
    """
    if sys.modules.keys() >= set(modules):
        return
    if "torch" in sys.modules:
        for name in modules:
            import_module(name)
        return
    gc.collect()  # what is garbage now would stay too
    enabled = gc.isenabled()
    gc.disable()
    try:
        for name in modules:
            import_module(name)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
