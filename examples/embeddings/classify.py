"""What is in a picture? `python examples/embeddings/classify.py PICTURE [--top 5]`

The gateway answers with the best classes only (`classification`), not with a thousand numbers.
Needs Pillow and tritonclient[http].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

ADDRESS, MODEL, SIDE = "127.0.0.1:8084", "efficientnet", 224


def pixels(path: Path) -> np.ndarray:
    """[1, SIDE, SIDE, 3] bytes: the middle of the picture."""
    with Image.open(path) as picture:
        short = min(picture.size)
        left, top = ((size - short) // 2 for size in picture.size)
        square = picture.convert("RGB").crop((left, top, left + short, top + short))
        return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.uint8)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Classify a picture.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--top", type=int, default=5, help="classes to show (default: 5)")
    parser.add_argument("--address", default=ADDRESS, help=f"default: {ADDRESS}")
    options = parser.parse_args()
    image = triton.InferInput("image", [1, SIDE, SIDE, 3], "UINT8")
    try:
        image.set_data_from_numpy(pixels(options.picture))
    except OSError as error:
        parser.error(str(error))
    wanted = triton.InferRequestedOutput("probabilities", class_count=options.top)
    client = triton.InferenceServerClient(options.address)
    try:
        best = client.infer(MODEL, [image], outputs=[wanted]).as_numpy("probabilities")
    except (OSError, InferenceServerException) as error:
        parser.exit(1, f"{options.address}: {error}\n")
    for line in best.reshape(-1):
        probability, number, *label = line.decode().split(":", 2)
        print(f"{float(probability):7.1%}  {label[0] if label else f'class {number}'}")


if __name__ == "__main__":
    main()
