"""Several processes of this machine in one process group, by gloo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch
import torch.distributed as dist


def run_together(
    work: Callable[[Path], None], out: Path, *, count: int, folder: Path, fails: bool = False
) -> None:
    """Call `work` in `count` processes of one group; with `fails`, the others end when the first is gone."""
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    # Its processes start in a moment: torch is imported once.
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["phiscale.training.train"])
    processes = [
        context.Process(target=_join, args=(rank, count, meeting, work, out)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes[:1] if fails else processes:
        process.join(timeout=120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    assert codes[0] == 0
    assert fails or codes == [0] * count


def _join(rank: int, count: int, meeting: Path, work: Callable[[Path], None], out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=count)
    try:
        work(out)
    finally:
        dist.destroy_process_group()
