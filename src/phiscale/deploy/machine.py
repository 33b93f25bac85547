"""What machine this is, as far as the time of a network depends on it."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from phiscale.deploy.runtimes.base import cores

__all__ = ["Machine", "this_machine"]

CPU_INFO = Path("/proc/cpuinfo")
# x86 and ARM name them differently; family, model and stepping tell processors of one marketing name apart.
FIELDS = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "flags", "Features")
# What a reader wants to know of the many flags: the widest arithmetic.
SHOWN_FLAGS = ("amx_int8", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "asimd")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A processor, and how much of it this process may use.

    Attributes:
        processor: Its name.
        cores: Cores that this process may use.
        flags: Its instruction sets, sorted.
        details: Family, model and stepping, or what the system says instead.
    """

    processor: str
    cores: int
    flags: tuple[str, ...]
    details: str

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits; equal where the same times are expected."""
        text = "\n".join((self.processor, str(self.cores), " ".join(self.flags), self.details))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        shown = [flag for flag in SHOWN_FLAGS if flag in self.flags]
        unit = "core" if self.cores == 1 else "cores"
        return f"{self.processor}, {self.cores} {unit}" + (f", {' '.join(shown)}" if shown else "")


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """The machine that this process runs on."""
    try:
        return parse_cpu_info(CPU_INFO.read_text(encoding="utf-8", errors="replace"), cores=cores())
    except OSError:  # not Linux
        return parse_cpu_info("", cores=cores())


def parse_cpu_info(text: str, *, cores: int) -> Machine:
    """A machine from the text of ``/proc/cpuinfo``, of which the first processor counts.

    Args:
        text: The text; what it does not say is asked of the `platform` module.
        cores: Cores that this process may use.
    """
    found: dict[str, str] = {}
    for name, value in re.findall(r"^([^\n:]+?)[ \t]*:[ \t]*(.*)$", text, re.MULTILINE):
        found.setdefault(name, value.strip())
    fields = {name: found[name] for name in FIELDS if found.get(name)}
    flags = fields.pop("flags", "") or fields.pop("Features", "")
    name = fields.pop("model name", "") or platform.processor() or platform.machine() or "unknown processor"
    details = " ".join(f"{key}={value}" for key, value in fields.items())
    return Machine(
        processor=name,
        cores=cores,
        flags=tuple(sorted(flags.split())),
        details=f"{platform.system()} {platform.machine()} {details}".strip(),
    )
