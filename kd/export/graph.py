"""Make one file of a student and all that its processor does, so that whoever runs it needs to know nothing of either.

``picture`` uint8 ``[height, width, 3]`` (RGB, upright, any size) -> ``probabilities`` float32 ``[C]``; the names of the
classes are in the file's metadata under ``classes``, a JSON list.

What a processor does is read off its settings *and tried*: each family interprets its settings differently, so each way
that they can be meant is compared with what the processor makes of pictures of odd sizes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from kd.errors import UserError
from kd.export.onnx import OPSET, open_session
from kd.models.processor import Normalization, read_normalization, run_processor

# Pillow's number of a resampling filter -> ONNX' mode.
MODES = {2: "linear", 3: "cubic"}
# Pillow's number -> its name, for those that ONNX lacks.
OTHER_FILTERS = {0: "nearest", 1: "Lanczos", 4: "box", 5: "Hamming"}
# Width and height of the pictures that a graph is tried with.
ODD_SIZES = ((61, 40), (40, 61), (20, 17), (333, 250), (301, 640))
# A pixel, from 0 to 255, may be off by one: Pillow rounds between its two passes.
MOST_OFF = 1.01
# The version of the file format.
IR_VERSION = 10


@dataclass(frozen=True)
class Geometry:
    """A resize to ``size`` (height, width), or of the short side to ``short`` pixels; then the middle ``crop`` is cut out."""

    size: tuple[int, int] | None
    short: int | None
    crop: tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """What a processor does: resize with a filter, crop, reorder the channels, ``pixel * scale + offset``."""

    geometry: Geometry
    mode: str
    normalization: Normalization


def read_preprocessing(processor: Any) -> Preprocessing:
    """Find out what a processor does, as a graph can do it; it is tried on pictures of odd sizes.

    Raises ``UserError``, "... cannot be exported: ...", for one that does what no graph of ours does.
    """
    name = type(processor).__name__
    normalization, settings = read_normalization(processor), processor.to_dict()
    if not settings.get("do_resize", True):
        raise _refused(f"its {name} leaves pictures at their own size, and one file takes pictures of any")
    number = settings.get("resample")
    filter = 2 if number is None else int(number)
    if filter not in MODES:
        shown = OTHER_FILTERS.get(filter, f"number {filter}")
        raise _refused(f"its {name} resizes with the filter {shown}, and ONNX has bilinear and bicubic ones")
    pictures = [_odd_picture(size, seed) for seed, size in enumerate(ODD_SIZES)]
    wanted = [np.asarray(run_processor(processor, [picture]))[0] for picture in pictures]
    for geometry in _ways(settings, normalization.size):
        found = Preprocessing(geometry, MODES[filter], normalization)
        if does_the_same(found, pictures, wanted):
            return found
    raise _refused(f"what its {name} does to a picture's size is none of the ways that can be put into a graph")


def does_the_same(preprocessing: Preprocessing, pictures: list[Image.Image], wanted: list[np.ndarray]) -> bool:
    """Tell whether a graph makes of ``pictures`` what the processor made (``wanted``, each float32 ``[3, H, W]``)."""
    session = open_session(preprocessing_model(preprocessing).SerializeToString())
    scale = np.abs(np.reshape(preprocessing.normalization.scale, (3, 1, 1)))
    for picture, expected in zip(pictures, wanted, strict=True):
        made = session.run(None, {"picture": np.asarray(picture)})[0][0]
        if made.shape != expected.shape or (np.abs(made - expected) / scale).max() > MOST_OFF:
            return False
    return True


def _refused(why: str) -> UserError:
    return UserError(f"The student cannot be exported: {why}.", kind="not exportable")


def _ways(settings: dict[str, Any], out: tuple[int, int]) -> list[Geometry]:
    """List the ways in which a processor's settings can be meant, where its outputs have the size ``out``."""
    size, share = settings.get("size") or {}, settings.get("crop_pct") or 1.0
    ways = []
    if size.get("height") and size.get("width"):
        ways += [Geometry((size["height"], size["width"]), None, out), Geometry(None, int(size["height"] / share), out)]
    if short := size.get("shortest_edge"):
        # As it stands; ConvNeXt's and PoolFormer's share; LeViT's; ConvNeXt's from 384 pixels on.
        ways += [Geometry(None, one, out) for one in (short, int(short / share), int(256 / 224 * short))]
        ways.append(Geometry((short, short), None, out))
    fits = [way for way in ways if min(way.size or (way.short, way.short)) > 0]
    return list(dict.fromkeys(way for way in fits if _holds(way)))


def _holds(way: Geometry) -> bool:
    """Tell whether the crop is within every resized picture, so that nothing has to be padded."""
    least = way.size or (way.short, way.short)
    return all(side >= crop for side, crop in zip(least, way.crop, strict=True))


def _odd_picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Return a picture of noise on a slope of colours: it shows a shift of a pixel, and another filter."""
    width, height = size
    slope = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    noise = np.random.default_rng(seed).normal(0, 60, (height, width, 3))
    return Image.fromarray((slope + noise).clip(0, 255).astype(np.uint8))


# --- The graph

# Every name in it begins so: the student has names of its own.
OURS = "kd_"


def self_contained(model: onnx.ModelProto, preprocessing: Preprocessing, classes: list[str]) -> onnx.ModelProto:
    """Return one model of a processor's work and a student's (``pixel_values`` -> ``logits``), with its ``classes``."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes, constants = _preprocessing_nodes(preprocessing)
    softmax = helper.make_node("Softmax", ["logits"], [f"{OURS}shares"], axis=-1)
    squeeze = helper.make_node("Squeeze", [f"{OURS}shares", f"{OURS}first"], ["probabilities"])
    constants = [*constants, numpy_helper.from_array(np.array([0]), f"{OURS}first")]
    nodes = [*nodes, *made.graph.node, softmax, squeeze]
    del made.graph.node[:], made.graph.input[:], made.graph.output[:], made.metadata_props[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(constants)
    made.graph.input.append(_picture())
    made.graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [len(classes)]))
    helper.set_model_props(made, {"classes": json.dumps(classes)})
    onnx.checker.check_model(made)
    return made


def classes_of(session: Any) -> list[str]:
    """Return the names of the classes in the metadata of an open file."""
    return json.loads(session.get_modelmeta().custom_metadata_map["classes"])


def preprocessing_model(preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return a model of a processor's work alone: ``picture`` -> ``pixel_values`` float32 ``[1, 3, H, W]``."""
    nodes, constants = _preprocessing_nodes(preprocessing)
    out = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3, *preprocessing.normalization.size])
    graph = helper.make_graph(nodes, "preprocessing", [_picture()], [out], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _picture() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("picture", TensorProto.UINT8, ["height", "width", 3])


def _preprocessing_nodes(what: Preprocessing) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes from ``picture`` to ``pixel_values``, and the constants that they use."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, values: Any, kind: type = np.int64) -> str:
        constants.append(numpy_helper.from_array(np.array(values, dtype=kind), OURS + name))
        return OURS + name

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=OURS + output, **attributes))
        return output

    resized = _resized_size(what.geometry, node, constant)
    rows = node("Transpose", ["picture"], f"{OURS}rows", perm=[2, 0, 1])
    batch = node("Unsqueeze", [rows, constant("batch_axis", [0])], f"{OURS}batch")
    sizes = node("Concat", [constant("one_image", [1, 3]), resized], f"{OURS}sizes", axis=0)
    # On whole numbers, as Pillow does it: a resize of floats would not be rounded as Pillow rounds.
    values = node(
        "Resize", [batch, "", "", sizes], f"{OURS}resized", mode=what.mode, antialias=1, exclude_outside=1,
        coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.5,
    )  # fmt: skip
    if what.geometry.size != what.geometry.crop:
        crop = constant("crop", what.geometry.crop)
        left_over = node("Sub", [resized, crop], f"{OURS}left_over")
        start = node("Div", [left_over, constant("two", [2, 2])], f"{OURS}start")
        end = node("Add", [start, crop], f"{OURS}end")
        values = node("Slice", [values, start, end, constant("image_axes", [2, 3])], f"{OURS}cropped")
    if what.normalization.channels != (0, 1, 2):
        order = constant("channels", what.normalization.channels)
        values = node("Gather", [values, order], f"{OURS}reordered", axis=1)
    floats = node("Cast", [values], f"{OURS}floats", to=TensorProto.FLOAT)
    scale, offset = (
        constant(name, np.reshape(getattr(what.normalization, name), (1, 3, 1, 1)), np.float32)
        for name in ("scale", "offset")
    )
    node("Add", [node("Mul", [floats, scale], f"{OURS}scaled"), offset], "pixel_values")
    return nodes, constants


def _resized_size(geometry: Geometry, node: Callable[..., str], constant: Callable[..., str]) -> str:
    """Return the name of int64 ``[2]``, the height and width to resize to, after adding what computes it."""
    if geometry.size:
        return constant("size", geometry.size)
    shape = node("Shape", ["picture"], f"{OURS}shape", end=2)
    least = node("ReduceMin", [shape], f"{OURS}least", keepdims=1)
    longer = node("Mul", [shape, constant("short", [geometry.short])], f"{OURS}longer")
    return node("Div", [longer, least], f"{OURS}size")  # the fraction is cut off, as the processors do
