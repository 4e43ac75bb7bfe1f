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
            quant_pre_process(str(source), str(prepared))
            quantize_static(
                str(prepared), str(target), _Inputs(inputs), quant_format=QuantFormat.QDQ, per_channel=True,
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
