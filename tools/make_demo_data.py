"""Make the demo's images from the npm package emoji-datasource-google.

Run once, by hand:

    npm pack emoji-datasource-google@16.0.0
    python tools/make_demo_data.py emoji-datasource-google-16.0.0.tgz src/phiscale/demo_data

Six categories of Noto emoji at 64×64 px, without skin tones. A fifth of the emoji is held out. Emoji
that differ only in who is shown (woman, man, person) stay on one side, so that nothing held out has a
near copy among the training images.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from pathlib import Path

CATEGORIES = {
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Flags": "flags",
    "Smileys & Emotion": "smileys",
    "Travel & Places": "travel",
    "People & Body": "people",
}
# Woman, man, person, the female and male signs, the joiner and the presentation selector.
WHO = {"1F468", "1F469", "1F9D1", "2640", "2642", "200D", "FE0F"}
HELD_OUT = 0.2


def group(unified: str) -> str:
    """What an emoji shows, whoever does it."""
    return "-".join(part for part in unified.split("-") if part not in WHO) or unified


def is_held_out(unified: str) -> bool:
    digest = hashlib.sha256(group(unified).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < HELD_OUT


def main(archive: Path, out: Path) -> None:
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            member = tar.extractfile(f"package/{name}")
            assert member is not None
            return member.read()

        for emoji in json.loads(read("emoji.json")):
            if emoji["category"] not in CATEGORIES or not emoji["has_img_google"]:
                continue
            split = "test" if is_held_out(emoji["unified"]) else "train"
            name = emoji["short_name"].replace("/", "_")
            path = out / split / CATEGORIES[emoji["category"]] / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read(f"img/google/64/{emoji['image']}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
