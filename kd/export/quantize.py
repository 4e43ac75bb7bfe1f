"""Turn an ONNX model into one that computes with whole numbers of eight bits.

Static quantisation: how large the values between the layers are is measured on training images beforehand. (Dynamic
quantisation measures anew for every picture, which takes four times as long as no quantisation, and half-precision floats
are slower on a CPU.)
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from kd.errors import UserError
from kd.system import memory

# Training images on which the values are measured.
CALIBRATION_IMAGES = 256


class _Inputs(CalibrationDataReader):
    """The inputs ``[1, 3, H, W]`` of some images, as ONNX Runtime asks for them."""

    def __init__(self, inputs: Iterable[np.ndarray]) -> None:
        self.inputs: Iterator[np.ndarray] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        values = next(self.inputs, None)
        return None if values is None else {"pixel_values": values}


def quantize(source: Path, target: Path, inputs: Iterable[np.ndarray]) -> None:
    """Write the model in ``source`` to ``target`` with weights and activations of eight bits.

    ``inputs`` are what the processor makes of training images, each float32 ``[1, 3, H, W]``. Raises ``UserError``,
    "... cannot be exported: ...", where ONNX Runtime cannot quantise it.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        logging.disable(logging.WARNING)
        try:
            # Its other inference of shapes fails on some graphs, and leaves them in the current folder.
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            _pool_whole_images(prepared)
            quantize_static(
                str(prepared), str(target), _Inputs(inputs), quant_format=QuantFormat.QDQ, per_channel=True,
                op_types_to_quantize=_operators(prepared),
                weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )  # fmt: skip
        except Exception as error:  # whatever shape inference and calibration stumble over in a stranger's graph
            if memory.ran_out(error) or isinstance(error, OSError):
                raise
            raise UserError(
                f"The student cannot be exported to int8: ONNX Runtime says {type(error).__name__}: "
                f"{str(error).strip().splitlines()[0][:200] if str(error).strip() else 'nothing'}.",
                kind="not exportable",
            ) from error
        finally:
            logging.disable(logging.NOTSET)


def _operators(path: Path) -> list[str] | None:
    """Return the operators that are to compute with whole numbers; ``None`` means each that can.

    In a transformer these are the layers with weights: eight bits are too coarse for attention's shares and for what is
    normalised. Where all is convolution, numbers that stay whole from layer to layer are the faster ones.
    """
    used = {node.op_type for node in onnx.load(path).graph.node}
    return ["Conv", "Gemm", "MatMul"] if used & {"Softmax", "LayerNormalization"} else None


def _pool_whole_images(path: Path) -> None:
    """Make every average over a window larger than its image an average over the image, which is the same number.

    EfficientNet ends in such a window, of its number of channels, and ONNX Runtime's average of eight-bit numbers divides by
    the size of the window instead of that of the image: all its answers would be 0.
    """
    model = onnx.load(path)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type != "AveragePool":
            continue
        given = {attribute.name: list(attribute.ints) for attribute in node.attribute}
        sizes = [dimension.dim_value for dimension in shapes.get(node.input[0], ())][2:]
        whole = sizes and all(window >= size > 0 for window, size in zip(given["kernel_shape"], sizes, strict=True))
        if whole and not any(given.get("pads", ())):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
    onnx.save(model, path)
