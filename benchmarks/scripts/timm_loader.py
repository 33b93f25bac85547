"""Labels for a folder with timm, with its loader and batches, as its own inference.py does.

python timm_loader.py NETWORK CLASSES WEIGHTS IMAGES LABELS.json
"""

# mypy: disable-error-code="attr-defined, no-untyped-call"
from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config


def main(name: str, classes: str, weights: str, images: str, output: str) -> None:
    model = timm.create_model(name, num_classes=int(classes), checkpoint_path=weights).eval()
    data_config = resolve_data_config({}, model=model)
    dataset = create_dataset("", root=images)
    loader = create_loader(
        dataset,
        batch_size=32,
        use_prefetcher=False,
        num_workers=len(os.sched_getaffinity(0)),
        device=torch.device("cpu"),
        **data_config,
    )
    labels: list[int] = []
    with torch.inference_mode():
        for batch, _ in loader:
            labels += model(batch).softmax(-1).topk(1).indices[:, 0].tolist()
    names = dataset.filenames(basename=True)
    Path(output).write_text(json.dumps([label for _, label in sorted(zip(names, labels, strict=True))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
