"""One process or several: who writes and prints, who goes first, and on what device.

Under `accelerate launch` every process runs the same program; only the main one may write files or print.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def process_count() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def best_device() -> torch.device:
    """A CUDA GPU if there is one, else the CPU; for work of one process."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the block, then the others: what it writes, they read."""
    if process_count() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    _leave_group_at_exit()
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        yield


@cache
def _leave_group_at_exit() -> None:
    """Let this process leave the group of processes before Python takes its threads down, which would abort it."""
    atexit.register(_leave_group)


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
