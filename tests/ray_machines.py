"""Ray on this machine for a test, alone or as several machines."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

TOKEN = secrets.token_hex(16)
MEMORY = 80 * 2**20  # about the least that Ray takes for its objects


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Processes that are started within find what the tests import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(folder for folder in sys.path if folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Otherwise Ray writes a token into the home folder.
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        yield


def clear_up() -> None:
    """Let go of files and processes that Ray leaves open, before a later test is blamed for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@contextlib.contextmanager
def three_machines() -> Iterator[Any]:
    """A cluster of three machines with a core each, as processes of this one; the first is the head."""
    utilities = pytest.importorskip("ray.cluster_utils", reason="the cluster extra is not installed")
    options = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    with importable():
        cluster = utilities.Cluster(initialize_head=True, head_node_args=options)
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()
            clear_up()
