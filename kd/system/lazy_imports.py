"""Modules that take seconds to import and stay: torch, transformers, gradio."""

import gc
import sys
from importlib import import_module


def load(*modules: str) -> None:
    """Import these, unless they are there, and have the garbage collector leave out what is there then (``gc.freeze``).

    They make a million objects that are never garbage. By default it looks through them again and again, while they are made
    and as long as the process lives. Where torch is there already, as in a notebook, somebody's models may be too: then
    nothing is left out.
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
