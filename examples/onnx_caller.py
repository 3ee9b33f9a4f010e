"""Enlarge a picture with the files of ``diinn-fast export onnx/``: numpy and onnxruntime only.

pip install onnxruntime pillow numpy
python examples/onnx_caller.py onnx/ photo.jpg large.png 3.7
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import PIL.Image

TILE = 256


def main(folder: str, source: str, target: str, scale: float) -> None:
    """Enlarge the picture ``source`` into ``target`` by the two graphs of a folder."""
    project = onnxruntime.InferenceSession(f"{folder}/project.onnx")
    decode = onnxruntime.InferenceSession(f"{folder}/decode.onnx")
    samples = np.asarray(PIL.Image.open(source).convert("RGB"), np.float32) / 255
    # once per picture: [1, 3, h, w] in [0, 1] to content [1, L*W, h, w]
    content = project.run(None, {"picture": samples.transpose(2, 0, 1)[None]})[0]
    lr = np.array(content.shape[2:])
    size = np.maximum(1, np.floor(lr * scale + 0.5)).astype(np.int64)
    large = np.empty((*size, 3), np.uint8)
    # any windows: those that are needed, as large as memory allows (4 KB per pixel)
    for y in range(0, size[0], TILE):
        for x in range(0, size[1], TILE):
            rows = np.arange(y, min(y + TILE, size[0]))
            columns = np.arange(x, min(x + TILE, size[1]))
            window = {"rows": rows, "columns": columns, "size": size}
            whole = {"content": content, "lr": lr, "origin": np.array([0, 0])}
            rgb = decode.run(None, {**window, **whole})[0][0]
            large[y : y + TILE, x : x + TILE] = np.round(rgb.transpose(1, 2, 0) * 255)
    PIL.Image.fromarray(large).save(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
