"""The model card, ``README.md`` of a model directory: a part that is written anew, and a part that stays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from phiscale.preprocess import Preprocess
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec

__all__ = ["describe", "is_card", "merge"]

_BEGIN = "<!-- phiscale: this part is written by the program; text outside of it is kept -->"
_END = "<!-- phiscale: end -->"
# No license key: whose the weights are is not for a program to say.
_FRONT = """\
---
library_name: phiscale
pipeline_tag: image-classification
tags:
- image-classification
- efficientnet
---

"""
_SHOWN_CLASSES = 30
_METRIC_ROWS = (
    ("Top-1 accuracy", "top1", "{:.2%}"),
    ("Top-5 accuracy", "top5", "{:.2%}"),
    ("Balanced accuracy", "balanced_accuracy", "{:.2%}"),
    ("Negative log-likelihood", "nll", "{:.4f}"),
    ("Expected calibration error", "ece", "{:.4f}"),
)


def is_card(text: str) -> bool:
    """Whether a ``README.md`` was written here."""
    return _BEGIN in text or "library_name: phiscale" in text[:1000]


def merge(old: str | None, block: str) -> str:
    """Put the generated part in the place of the old one; a card whose markers are gone stays as it is.

    Args:
        old: Text of the present card, or None.
        block: The generated part, from `describe`.
    """
    part = f"{_BEGIN}\n{block}{_END}\n"
    if old is None:
        return _FRONT + part
    before, begin, rest = old.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        return old
    return before + part + after.removeprefix("\n")


def describe(
    *,
    spec: NetworkSpec,
    classes: Sequence[str],
    preprocess: Preprocess,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
) -> str:
    """The generated part of the card, in Markdown.

    Args:
        spec: The network.
        classes: Names of its classes.
        preprocess: Its preprocessing.
        provenance: Versions and training facts.
        metrics: Content of ``metrics.json``, or None before an evaluation.
    """
    sections = [
        _headline(spec, classes, preprocess),
        _usage(),
        _metrics(metrics) if metrics else "",
        _classes(classes),
        _origin(provenance),
    ]
    return "\n".join(section for section in sections if section)


def _headline(spec: NetworkSpec, classes: Sequence[str], preprocess: Preprocess) -> str:
    cost = complexity(spec)
    height, width = preprocess.size
    return f"""\
# {_plain(spec.name)}

An image classifier of {len(classes)} classes.

| | |
|---|---|
| Parameters | {cost.params:,} |
| Multiply-adds per image | {cost.macs:,} |
| Network input | {spec.image_size[0]} × {spec.image_size[1]} px, {spec.in_channels} channels |
| Preprocessing | {preprocess.resize} to {height} × {width} px, {preprocess.interpolation} |
"""


def _usage() -> str:
    return """\
## How to use it

```python
import phiscale as ps

model = ps.load("path/of/this/directory")
for prediction in model.predict(["image.jpg"], top_k=5):
    print(prediction.labels, prediction.scores)
```

```sh
phiscale predict path/of/this/directory image.jpg
```
"""


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = [
        f"| {label} | {form.format(metrics[key])} |"
        for label, key, form in _METRIC_ROWS
        if isinstance(metrics.get(key), int | float)
    ]
    data = metrics.get("data")
    split = data.get("split") if isinstance(data, Mapping) else None
    where = f", split {_code(split)}" if split else ""
    count = metrics.get("num_images")
    return "\n".join(
        [
            "## Metrics",
            "",
            f"Measured on {count} images{where}; `metrics.json` has the rest.",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _classes(classes: Sequence[str]) -> str:
    shown = ", ".join(_code(name) for name in classes[:_SHOWN_CLASSES])
    rest = len(classes) - _SHOWN_CLASSES
    more = f" and {rest} more, in `config.json`" if rest > 0 else ""
    return f"## Classes\n\n{shown}{more}\n" if classes else ""


def _origin(provenance: Mapping[str, Any]) -> str:
    facts = [
        f"- {_plain(key)}: {_code(value if isinstance(value, str) else json.dumps(value))}"
        for key, value in provenance.items()
        if isinstance(value, bool | int | float | str)
    ]
    return "\n".join(["## Origin", "", *facts, "", "`config.json` has every setting.", ""])


def _code(value: object) -> str:
    """Text as a code span, in which nothing is markup, whatever a folder was called."""
    text = " ".join(str(value).split()).replace("`", "'")
    return f"`{text}`"


def _plain(text: str) -> str:
    return "".join(char if char.isalnum() or char in " ._-+()=," else " " for char in text)
