"""Several training processes under `accelerate launch`: only the main one may write files or print."""

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
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def best_device() -> torch.device:
    """A CUDA GPU if there is one, else the CPU; for work of a single process."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block in the main process first, then in the others, which can read what it wrote."""
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
    """Leave the process group before Python ends its threads, which would abort this process."""
    import torch.distributed

    @atexit.register
    def leave() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
