"""Results as JSON: every section with the machine, versions and date that it was measured with.

A section can so be measured again alone, or on another machine, and what stands about the others stays true.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar, check

__all__ = ["Report"]


class Report:
    """Sections of one run or of several.

    Attributes:
        sections: Name -> results.
        measured: Name -> date, machine, versions, effort and seconds of the section.

    Args:
        sections: As above.
        measured: As above.
    """

    def __init__(
        self, sections: Mapping[str, Any] | None = None, measured: Mapping[str, Any] | None = None
    ) -> None:
        self.sections, self.measured = dict(sections or {}), dict(measured or {})

    @classmethod
    def read(cls, path: Path) -> Report:
        """The report in a file; an empty one where there is no file.

        Raises:
            ValueError: It is no JSON, or that of another program.
        """
        if not path.is_file():
            return cls()
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or not {"sections", "measured"} <= data.keys():
            raise ValueError(f"{path.name} holds no results of this program; name another file")
        return cls(data["sections"], data["measured"])

    def add(self, name: str, results: Mapping[str, Any], **measured: Any) -> None:
        """Put a section in, in place of an older one.

        Args:
            name: Of the section.
            results: What was found; nothing leaves the older one.
            measured: With what, as in `measured`.
        """
        if results:
            self.sections[name], self.measured[name] = dict(results), measured

    def take(self, other: Report) -> None:
        """Put all sections of another report in."""
        for name, results in other.sections.items():
            self.add(name, results, **other.measured[name])

    def bars(self) -> list[Bar]:
        """What must hold, and whether it does."""
        return check(self.sections)

    def write(self, path: Path, order: Iterable[str]) -> None:
        """Write it as JSON.

        Args:
            path: Its folder is made if it is not there.
            order: Of the sections; others are left out.
        """
        names = [name for name in order if name in self.sections]
        content = {
            "sections": {name: self.sections[name] for name in names},
            "measured": {name: self.measured[name] for name in names},
            "bars": [asdict(bar) for bar in self.bars()],
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
