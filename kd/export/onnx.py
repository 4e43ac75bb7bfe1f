"""Turn a saved model into an ONNX file, and open such files.

PyTorch has two exporters. The older, which traces the model, takes half a second for our students where the newer takes
seven, and gives graphs of the same size with the same answers: it goes first. The newer has its turn where the older fails,
or where what it made answers otherwise than the model does.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from kd.errors import UserError
from kd.system import memory

# The first version of the operators in which Resize has ``antialias``, as Pillow's resizing does.
OPSET = 18
# The answers of model and file may differ by this, as a share of the largest logit: the order of sums differs.
CLOSE = 1e-3
# Numbers of images that a fresh file is tried with. None is that of the example with which the model was traced.
TRIED_BATCHES, EXAMPLE = (1, 3), 2


class Logits(nn.Module):
    """A classifier of transformers that returns its logits ``[B, C]`` alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits


def export_model(model: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Write a model to ``path`` as ONNX: ``pixel_values`` float32 ``[batch, 3, H, W]`` -> ``logits`` float32 ``[batch, C]``.

    ``model`` is one that was loaded from its folder: what was repaired for training may count its images in Python,
    which a trace makes a constant. The number of images is free; ``size`` (height, width) is fixed.

    Raises ``UserError``, "... cannot be exported: ...", where neither exporter makes a file that answers as the model does.
    """
    model = Logits(model).cpu().eval()  # the whole of it: an exporter puts back the mode that it finds
    reasons = []
    for export in (_traced, _captured):
        try:
            export(model, torch.rand(EXAMPLE, 3, *size), path)
            _clear(path)
            _check(model, size, path)
            return
        except Exception as error:  # an exporter raises whatever the model's own code does when it is traced
            if memory.ran_out(error) or isinstance(error, OSError):
                raise
            reasons.append(_first_line(error))
    raise UserError(
        f"The model cannot be exported: PyTorch's two exporters to ONNX say: {reasons[0]}; and: {reasons[1]}.",
        kind="not exportable",
    )


def _traced(model: nn.Module, example: Tensor, path: Path) -> None:
    axes = {"pixel_values": {0: "batch"}, "logits": {0: "batch"}}
    _quietly(
        lambda: torch.onnx.export(
            model, (example,), str(path), dynamo=False, opset_version=OPSET, dynamic_axes=axes, **_names()
        )
    )


def _captured(model: nn.Module, example: Tensor, path: Path) -> None:
    shapes = {"pixel_values": {0: "batch"}}
    _quietly(
        lambda: torch.onnx.export(
            model, (example,), str(path), dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False,
            **_names(),
        )
    )  # fmt: skip


def _names() -> dict[str, Any]:
    return {"input_names": ["pixel_values"], "output_names": ["logits"]}


def _quietly(call: Callable[[], Any]) -> None:
    """Call without the warnings of a trace, which tell of code that is checked by ``_check`` afterwards."""
    import logging

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            call()
        finally:
            logging.disable(logging.NOTSET)


def _clear(path: Path) -> None:
    """Remove what the exporter notes of where each node came from: a sixth of a small file, and paths of this machine."""
    model = onnx.load(path)
    for node in [model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info]:
        if hasattr(node, "metadata_props"):
            del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    onnx.save(model, path)


def _check(model: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Raise ``ValueError`` where a file has a fixed number of images, or answers otherwise than the model."""
    axis = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[0]
    if not axis.dim_param:
        raise ValueError(f"the number of pictures was fixed at {axis.dim_value}")
    session = open_session(path)
    for batch in TRIED_BATCHES:
        values = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(batch)) * 2 - 1
        with torch.inference_mode():
            expected = model(values).numpy()
        found = session.run(None, {"pixel_values": values.numpy()})[0]
        if found.shape != expected.shape:
            raise ValueError(f"for {batch} pictures it gives answers of shape {found.shape}, not {expected.shape}")
        off = float(np.abs(found - expected).max())
        if not off <= CLOSE * max(1.0, float(np.abs(expected).max())):
            raise ValueError(f"its answers differ from the model's by {off:.2g}")


def _first_line(error: Exception) -> str:
    """Return what an exporter says, without the pages that may follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "nothing"
    return f"{type(error).__name__}: {text[:200].rstrip('.')}"


def open_session(model: Path | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open an ONNX file, or its bytes, in ONNX Runtime on the CPU with so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def cpu_threads() -> int:
    """Return how many threads this process may use at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
