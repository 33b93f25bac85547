"""Labels for a folder with torchvision, image by image, as its documentation shows.

python torchvision_loop.py NETWORK CLASSES WEIGHTS IMAGES LABELS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torchvision.io import ImageReadMode, decode_image
from torchvision.models import get_model, get_model_weights


def main(name: str, classes: str, weights: str, images: str, output: str) -> None:
    model = get_model(name, num_classes=int(classes))
    model.load_state_dict(load_file(weights))
    model.eval()
    preprocess = get_model_weights(name).DEFAULT.transforms()
    labels = []
    with torch.inference_mode():
        for path in sorted(Path(images).iterdir()):
            img = decode_image(str(path), ImageReadMode.RGB)
            batch = preprocess(img).unsqueeze(0)
            labels.append(int(model(batch).squeeze(0).softmax(0).argmax()))
    Path(output).write_text(json.dumps(labels))


if __name__ == "__main__":
    main(*sys.argv[1:])
