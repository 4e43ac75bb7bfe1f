"""Say what is in a picture: ``python predict.py picture.jpg``. It needs onnxruntime, Pillow and numpy."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 2:
    sys.exit("usage: python predict.py PICTURE [student_int8.onnx]")
name = sys.argv[2] if len(sys.argv) > 2 else "student.onnx"
session = onnxruntime.InferenceSession(str(Path(__file__).parent / name), providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
picture = ImageOps.exif_transpose(Image.open(sys.argv[1]))  # upright, as phones mean it
if picture.has_transparency_data:
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
(probabilities,) = session.run(None, {"picture": np.asarray(picture.convert("RGB"))})
for index in np.argsort(-probabilities)[:5]:
    print(f"{probabilities[index]:6.1%}  {classes[index]}")
