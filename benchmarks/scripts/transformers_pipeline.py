"""Labels for a folder with the pipeline of transformers.

python transformers_pipeline.py MODEL_FOLDER IMAGES LABELS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import pipeline


def main(model: str, images: str, output: str) -> None:
    classifier = pipeline("image-classification", model=model, device="cpu")
    paths = sorted(str(path) for path in Path(images).iterdir())
    answers = classifier(paths, top_k=1)
    labels = [int(answer[0]["label"].removeprefix("LABEL_")) for answer in answers]
    Path(output).write_text(json.dumps(labels))


if __name__ == "__main__":
    main(*sys.argv[1:])
