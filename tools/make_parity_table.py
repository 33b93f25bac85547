"""Measure parity with everybody's libraries, and write docs/weights-parity.md.

Runs the parity tests, the slow ones too, and puts what they measured into the page; arguments go to pytest:

    python tools/make_parity_table.py --numprocesses 2
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "weights" / "test_round_trip.py"
PAGE = ROOT / "docs" / "weights-parity.md"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "weights")]

from publishers_nets import ODD_SIDE, PARITY_FOLDER, PUBLISHERS, TOLERANCE, rows  # noqa: E402

from phiscale.families import get_spec  # noqa: E402

Errors = dict[tuple[str, str, int], float]

TEXT = """# Parity with other libraries

How far this project's logits are from those of the publishers' own networks, measured by the tests of
`make parity`, which also write this page.

Each row starts with a network of the library, with random weights, and batch norm statistics that are
calibrated on images and then moved. It is stored as the library stores it. `create_model(weights=...)` reads
that file; `convert_weights` takes it to this project's layout and back, and every tensor must be the same,
bit for bit. The library's network then reads the file that came back, and both networks answer two random
images, in float32 on the CPU. The error is the largest difference of the logits, as a part of the largest
logit of the library. All must be at most {tolerance}; rounding makes 1e-7 to 1e-5, another padding more
than 1e-2.

## At the native side

{native}

## At {odd} px

No stride divides it, so every padding counts.

{odd_table}

## Notes

{notes}

Measured with {versions}, Python {python}, on {processor}: `{command}`, {minutes:.0f} minutes, {threads} to a
process.
"""


def main(arguments: list[str]) -> int:
    """Measure and write; returns the exit status of the tests."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", str(TESTS), "-k", "test_parity", "-m", "slow or not slow"]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, PARITY_FOLDER: folder}
        status = subprocess.run([*command, *arguments], cwd=ROOT, env=environment).returncode
        errors = read(Path(folder))
    if status == 0:
        minutes = (time.monotonic() - start) / 60
        PAGE.write_text(page(errors, minutes=minutes, arguments=arguments), encoding="utf-8")
    return status


def read(folder: Path) -> Errors:
    """What the tests left: publisher, variant and side -> error."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return {(item["publisher"], item["variant"], item["side"]): item["error"] for item in contents}


def page(errors: Errors, *, minutes: float, arguments: list[str]) -> str:
    """The whole page."""
    packages = dict.fromkeys(publisher.package for publisher in PUBLISHERS.values())
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return TEXT.format(
        tolerance=short(TOLERANCE),
        odd=ODD_SIDE,
        native=table({(who, name): errors[who, name, sides[0]] for who, name, sides in rows()}),
        odd_table=table(
            {(who, name): errors[who, name, ODD_SIDE] for who, name, sides in rows() if ODD_SIDE in sides},
            side=ODD_SIDE,
        ),
        notes="\n".join(f"- {p.name}: {p.note}" for p in PUBLISHERS.values() if p.note),
        versions=", ".join(f"{package} {version(package)}" for package in ("torch", *packages)),
        python=platform.python_version(),
        processor=processor(),
        minutes=minutes,
        threads=f"{threads} thread" if threads == "1" else f"{threads} threads",
        command=" ".join(["python tools/make_parity_table.py", *arguments]),
    )


def table(errors: dict[tuple[str, str], float], *, side: int | None = None) -> str:
    """A row per network, a column per publisher.

    Args:
        errors: Publisher and network -> error.
        side: Of all images, in pixels; None means each network's native one.
    """
    publishers = list(dict.fromkeys(publisher for publisher, _ in errors))
    lines = [["Network", "Side (px)", *publishers], ["---"] * (2 + len(publishers))]
    for name in dict.fromkeys(name for _, name in errors):
        cells = [short(errors[key]) if (key := (p, name)) in errors else "–" for p in publishers]
        lines.append([name, str(side or get_spec(name).image_size[0]), *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def short(error: float) -> str:
    """Such as 1.5e-6.

    Examples:
        >>> short(1.46e-6), short(1e-5), short(0.0)
        ('1.5e-6', '1e-5', '0')
    """
    digits, _, exponent = f"{error:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}" if error else "0"


def processor() -> str:
    """What the system calls the machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
