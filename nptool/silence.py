"""Silence for transformers and the Hub client while nptool reports its own progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off their progress bars, and all log messages except errors, inside the block."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    bars, level, hub_level = logging.is_progress_bar_enabled(), logging.get_verbosity(), hub_logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in transformers
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # untyped in transformers
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # untyped in huggingface_hub
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in transformers
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
