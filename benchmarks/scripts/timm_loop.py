"""Labels for a folder with timm, image by image, as its documentation shows.

python timm_loop.py NETWORK CLASSES WEIGHTS IMAGES LABELS.json
"""

# mypy: disable-error-code="attr-defined, no-untyped-call"
from __future__ import annotations

import json
import sys
from pathlib import Path

import timm
import torch
from PIL import Image


def main(name: str, classes: str, weights: str, images: str, output: str) -> None:
    model = timm.create_model(name, num_classes=int(classes), checkpoint_path=weights)
    model = model.eval()
    data_config = timm.data.resolve_model_data_config(model)
    transforms = timm.data.create_transform(**data_config, is_training=False)
    labels = []
    with torch.inference_mode():
        for path in sorted(Path(images).iterdir()):
            img = Image.open(path).convert("RGB")
            output_ = model(transforms(img).unsqueeze(0))
            labels.append(int(output_.softmax(dim=1).argmax()))
    Path(output).write_text(json.dumps(labels))


if __name__ == "__main__":
    main(*sys.argv[1:])
