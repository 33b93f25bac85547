"""Write docs/benchmarks.md from what `make bench` measured, and put it beside the results in the docs' menu.

python tools/make_benchmark_page.py [RESULTS.json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "inference.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MENU = ROOT / "mkdocs.yml"
RESULTS_ENTRY = "  - Results: results.md\n"
ENTRY = "  - Benchmarks: benchmarks.md\n"
OURS = "phiscale"
MIB = 2**20
LARGEST_PACKAGES = 4

Row = Mapping[str, Any]

INTRODUCTION = """# Benchmarks

This project beside its peers, measured by `make bench`, which also writes this page. No figure here is typed
in. What a table compares was measured in one run.

Everybody runs the same networks with the same weights: B4 with random weights, B0 with the filters of Lite0
and random gates, both with norm statistics of photographs and a classifier that is fitted to tell ten of
them apart, Lite0 with its authors' ImageNet weights. Contenders take turns, in an order that changes from
round to round; times are medians over the rounds. The peers' images are normalised before the clock starts,
ours are bytes and normalised in the network; ours end with probabilities, theirs with logits.
"""

MACHINE = """| | |
|---|---|
| measured | {names} |
| date | {date} |
| processor | {processor}, {cores} cores: {instructions} |
| threads | {threads} of every engine |
| memory | {memory} GiB |
| load before the run | {load} |
| versions | Python {python}, {versions} |
"""

BARS = """## What must hold

{table}
"""

ROOFLINE = """## The limit

The best product of square matrices on all threads, and a copy of {copy}: {fp32:.0f} GFLOP/s in fp32,
{bf16:.0f} in bf16, {int8:.0f} GOP/s in int8, {gigabytes:.0f} GB/s. A network of M multiply-adds takes at
least 2 M divided by that: "of limit" is this least time as a share of the measured one. No network reaches
it: depthwise convolutions do little arithmetic for what they read.
"""

LIMIT = """The limit in this run: {fp32:.0f} GFLOP/s in fp32, {bf16:.0f} in bf16, {int8:.0f} GOP/s in int8;
{rounds} rounds.
"""

LATENCY = """## One image at a time

"difference" is the largest difference of a logit from timm's own, without the mean of each answer, as a
part of the largest one, over a few crops of photographs; "same top-1" counts the images with the same most
likely class, and "where sure" only those whose first class is twice as likely as the second in timm's own
answer. Lite0's {lite_images} images are crops and emoji, of which it has no class for many. int8 moves the
answers of random weights far more than those of trained ones. Libraries that pad as TensorFlow does are
compared with our network of that padding.
"""

THROUGHPUT = """## Many images

Batches of {batch}. "async" has that many single images under way on one stream per thread, which is how
OpenVINO's makers advise. Ours runs as in `phiscale predict`: a thread per core, each with a few images.
"""

ALONE = """The same, each in a process that has done nothing else, in turn. There PyTorch gives every large
activation back to the system and faults it in again with the next batch, which is what its users see; in the
process of the table above, which had run everything else before, it did not, and why is not known.
"""

FOLDER = """## A folder of JPEGs

{count} JPEGs of 500×375 pixels, crops of photographs, to labels on disk: a process of its own each, start
and imports included, the median of {rounds}. The peers' programs are those of their documentation, in
`benchmarks/scripts/`; ours has exports in fp32 and bf16 to choose from, and for Lite0 in int8. "same
labels" counts those of `phiscale predict` with the same padding, "right labels" those that say which
photograph it is. Memory is the peak of a process's resident memory.

{table}

Lite0, whose thousand classes crops leave in doubt more often:

{lite_table}
"""

COLD = """## Cold start

One image, from the start of the process to its label on disk.

{table}
"""

PACKAGES = """## Packages

Bytes of the packages that a program has imported when it is done with one image; Python's own library is
not counted.

{table}
"""

TRAINING = """## Training step

B0 at {size} px, batch {batch}, SGD with momentum, each library as it comes.

{table}
"""

GPU = """## GPU

{name}, {memory_gib} GiB, CUDA {cuda}, cuDNN {cudnn}, TF32 of convolutions {tf32}. B0, weights:
{weights}; times against timm in fp32 as it comes, at each batch. torch.compile is tried for some batches.

{table}
"""


def main(path: Path = RESULTS) -> None:
    """Write the page."""
    if not path.is_file():
        sys.exit(f"there are no results in {path.name}; run: make bench")
    PAGE.write_text(page(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    MENU.write_text(in_menu(MENU.read_text(encoding="utf-8")), encoding="utf-8")


def in_menu(menu: str) -> str:
    """mkdocs.yml with the page behind the results; a menu must not name a page that is not there yet."""
    return menu if ENTRY in menu else menu.replace(RESULTS_ENTRY, RESULTS_ENTRY + ENTRY)


def page(report: Mapping[str, Any]) -> str:
    """The whole page; sections that were not measured are left out."""
    sections: Mapping[str, Any] = report["sections"]
    parts = [INTRODUCTION, *_machines(report["measured"]), BARS.format(table=_bars(report["bars"]))]
    writers = {
        "roofline": _roofline,
        "latency": _latency,
        "throughput": _throughput,
        "folder": _folder,
        "cold_start": _cold,
        "packages": _packages,
        "training": _training,
        "gpu": _gpu,
    }
    parts += [write(sections[name]) for name, write in writers.items() if sections.get(name)]
    return "\n".join(parts)


def _machines(measured: Mapping[str, Row]) -> list[str]:
    """A table per machine and set of versions, with the sections that were measured with them."""
    groups: dict[str, dict[str, Row]] = {}
    for name, section in measured.items():
        # The load is another at each start, and no other machine.
        fixed = {key: value for key, value in section["machine"].items() if key != "load_before"}
        key = json.dumps([fixed, section["versions"]], sort_keys=True)
        groups.setdefault(key, {})[name] = section
    return [_machine(sections) for sections in groups.values()]


def _machine(sections: Mapping[str, Row]) -> str:
    first = next(iter(sections.values()))
    machine, versions = first["machine"], first["versions"]
    loads = {section["machine"]["load_before"] for section in sections.values()}
    return MACHINE.format(
        names=", ".join(name.replace("_", " ") for name in sections),
        threads=machine["threads"],
        date=" and ".join(sorted({section["date"] for section in sections.values()})),
        processor=f"{machine['processor']} ({machine['details']})",
        cores=machine["cores"],
        instructions=", ".join(machine["instructions"]) or "no wide ones",
        memory=machine["memory_gib"],
        load=" and ".join(sorted(str(load) for load in loads)),
        python=machine["python"],
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )


def _bars(bars: Iterable[Row]) -> str:
    return _markdown(
        ["", "must be", "is", ""],
        [[bar["what"], bar["wanted"], bar["found"] or "–", bar["verdict"]] for bar in bars],
    )


def _roofline(section: Row) -> str:
    return ROOFLINE.format(copy="256 MiB", **section)


def _latency(section: Row) -> str:
    rows: Sequence[Row] = section["rows"]
    networks = dict.fromkeys(row["network"] for row in rows)
    lite_images = max((row["images"] for row in rows if "lite" in row["network"]), default=0)
    tables = [_network(name, [row for row in rows if row["network"] == name]) for name in networks]
    return "\n".join([LATENCY.format(lite_images=lite_images), _limit(section), *tables])


def _network(name: str, rows: Sequence[Row]) -> str:
    return f"### {name} at {rows[0]['image_size'][0]} px\n\n{_contenders(rows)}\n"


def _throughput(section: Row) -> str:
    rows: Sequence[Row] = section["rows"]
    text = THROUGHPUT.format(batch=rows[0]["batch"])
    return "\n".join([text, _limit(section), f"{_contenders(rows)}\n", _alone(section.get("alone", ()))])


def _alone(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = [
        [
            _bold(row, row["name"]),
            f"{row['median_ms']:.0f}",
            f"{row['images_per_second']:.0f}",
            f"{rows[0]['median_ms'] / row['median_ms']:.2f}",
        ]
        for row in rows
    ]
    return f"{ALONE}\n{_markdown(['', 'ms', 'images/s', '×'], lines)}\n"


def _limit(section: Row) -> str:
    """What the shares of the limit are shares of: a section may have been measured alone."""
    return LIMIT.format(rounds=len(section["rows"][0]["rounds_ms"]), **section["roofline"])


def _contenders(rows: Sequence[Row]) -> str:
    """A line per contender, times against the first, which is timm as it comes."""
    first = rows[0]["median_ms"]
    single = rows[0]["batch"] == 1
    head = [
        "",
        "ms",
        "p90",
        *([] if single else ["images/s"]),
        "×",
        "of limit",
        "difference",
        "same top-1",
        "where sure",
    ]
    lines = [
        [
            _bold(row, row["name"]),
            f"{row['median_ms']:.2f}",
            f"{row['p90_ms']:.2f}",
            *([] if single else [f"{row['images_per_second']:.0f}"]),
            f"{first / row['median_ms']:.2f}",
            f"{row['share_of_limit']:.0%}",
            f"{row['difference']:.0e}",
            f"{row['agreement']:.1%}",
            "–" if row["agreement_sure"] is None else f"{row['agreement_sure']:.1%}",
        ]
        for row in rows
    ]
    return _markdown(head, lines)


def _folder(section: Row) -> str:
    rows: Sequence[Row] = section["rows"]
    return FOLDER.format(
        count=rows[0]["images"],
        rounds=len(rows[0]["rounds_seconds"]),
        table=_programs(rows),
        lite_table=_programs(section["lite_rows"]),
    )


def _programs(rows: Sequence[Row]) -> str:
    right = any("right_labels" in row for row in rows)
    head = ["", "s", "images/s", "MiB", "same labels", *(["right labels"] if right else [])]
    lines = [
        [
            _bold(row, row["name"]),
            f"{row['seconds']:.2f}",
            f"{row['images_per_second']:.0f}",
            f"{row['max_rss_bytes'] / MIB:.0f}",
            f"{row['same_labels']:.1%}",
            *([f"{row['right_labels']:.1%}"] if right else []),
        ]
        for row in rows
    ]
    return _markdown(head, lines)


def _cold(section: Row) -> str:
    lines = [
        [_bold(row, row["name"]), f"{row['seconds']:.2f}", f"{row['max_rss_bytes'] / MIB:.0f}"]
        for row in section["rows"]
    ]
    return COLD.format(table=_markdown(["", "s", "MiB"], lines))


def _packages(section: Row) -> str:
    lines = []
    for row in section["rows"]:
        largest = list(row["packages"].items())[:LARGEST_PACKAGES]
        listed = ", ".join(f"{name} {size / MIB:.0f}" for name, size in largest)
        lines.append([_bold(row, row["name"]), f"{row['bytes'] / MIB:.0f}", listed])
    return PACKAGES.format(table=_markdown(["", "MiB", "the largest"], lines))


def _training(section: Row) -> str:
    rows: Sequence[Row] = section["rows"]
    first = next(row for row in rows if row["name"] == "timm")["median_ms"]
    lines = [
        [
            f"**{row['name']}**" if row["name"] == OURS else row["name"],
            f"{row['median_ms']:.1f}",
            f"{1000 * row['batch'] / row['median_ms']:.1f}",
            f"{first / row['median_ms']:.2f}",
        ]
        for row in rows
    ]
    return TRAINING.format(
        size=rows[0]["image_size"][0],
        batch=rows[0]["batch"],
        table=_markdown(["", "ms", "images/s", "×"], lines),
    )


def _gpu(section: Row) -> str:
    head = ["batch", "", "", "ms", "images/s", "×", "difference"]
    values = {
        **section["gpu"],
        "tf32": "on" if section["gpu"]["tf32_convolutions"] else "off",
        "weights": section["weights"],
    }
    return GPU.format(table=_markdown(head, [_gpu_line(row) for row in section["rows"]]), **values)


def _gpu_line(row: Row) -> list[str]:
    start = [str(row["batch"]), _bold(row, row["library"])]
    if "error" in row:
        return [*start, f"{row['way']}: {row['error'].replace('|', '/')}", *(4 * ["–"])]
    return [
        *start,
        row["way"],
        f"{row['median_ms']:.3f}",
        f"{row['images_per_second']:.0f}",
        f"{row['times_timm']:.2f}",
        f"{row['difference']:.0e}",
    ]


def _bold(row: Row, text: str) -> str:
    return f"**{text}**" if row["library"] == OURS else text


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table, text to the left and figures to the right."""
    rows = [list(line) for line in lines]
    marks = ["---" if index == 0 or not _is_figure(rows, index) else "---:" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, marks, *rows])


def _is_figure(rows: Sequence[Sequence[str]], index: int) -> bool:
    return all(row[index][:1].isdigit() or row[index] == "–" for row in rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
