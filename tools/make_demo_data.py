"""Make the demo's images from the npm package emoji-datasource-google.

Run once, by hand:

    npm pack emoji-datasource-google@16.0.0
    python tools/make_demo_data.py emoji-datasource-google-16.0.0.tgz src/phiscale/demo_data

Six categories of Noto emoji at 64×64 px, without skin tones. A fifth of the emoji is held out. Emoji
that differ only in who is shown (woman, man, person) or in the hour (the clocks) stay on one side, and
of flags that are the same picture one is kept, so that nothing held out is among the training images.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections import Counter
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
CLOCKS = {f"{code:X}" for code in range(0x1F550, 0x1F568)}
HELD_OUT = 0.2


def group(unified: str) -> str:
    """What an emoji shows, whoever does it and at whatever hour."""
    if unified in CLOCKS:
        return "clock"
    return "-".join(part for part in unified.split("-") if part not in WHO) or unified


def held_out(emoji: list[dict[str, str]]) -> set[str]:
    """The groups to hold out of one category: in an order by hash, until a fifth of its emoji is."""
    sizes = Counter(group(item["unified"]) for item in emoji)
    chosen: set[str] = set()
    taken = 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if taken + sizes[name] <= HELD_OUT * len(emoji):
            chosen.add(name)
            taken += sizes[name]
    return chosen


def main(archive: Path, out: Path) -> None:
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            member = tar.extractfile(f"package/{name}")
            assert member is not None
            return member.read()

        emoji = [item for item in json.loads(read("emoji.json")) if item["has_img_google"]]
        seen: set[bytes] = set()
        for category, folder in CATEGORIES.items():
            own = [item for item in emoji if item["category"] == category]
            test = held_out(own)
            for item in own:
                image = read(f"img/google/64/{item['image']}")
                if image in seen:
                    continue
                seen.add(image)
                split = "test" if group(item["unified"]) in test else "train"
                path = out / split / folder / f"{item['short_name'].replace('/', '_')}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
