"""Train on a folder of images with one folder per class, and ask the model about one of them.

    python examples/train_on_a_folder.py photos/ --macs 100e6 --epochs 30 --out model/

The same as `phiscale fit photos/ --macs 100M --out model/`, for those who go on in Python.
"""

import argparse
from pathlib import Path

import phiscale as ps


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on a folder of images.")
    parser.add_argument("images", type=Path, help="a folder with one folder per class")
    parser.add_argument("--macs", type=float, default=100e6, help="most multiply-adds per image")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("model"))
    arguments = parser.parse_args()

    report = ps.scan(ps.open_source(arguments.images))
    print(f"{report.images} images, {len(report.unusable)} that cannot be used")

    directory = ps.fit(
        arguments.images,
        arguments.out,
        budget=ps.Budget(macs=arguments.macs),
        overrides={"epochs": arguments.epochs},
    )
    result = ps.evaluate(directory, arguments.images)
    print(f"top-1 {result.top1:.1%} on {result.num_images} held-out images")

    model = ps.load(directory)
    source = ps.open_source(arguments.images)
    first = arguments.images / source.split("val")[0].id
    (answer,) = model.predict(first, top_k=1)
    print(f"{answer.source}: {answer.labels[0]} ({answer.scores[0]:.0%})")


if __name__ == "__main__":
    main()
