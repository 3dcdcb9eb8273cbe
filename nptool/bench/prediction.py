"""The speed of a file on this machine by t(w) and the tokens per forward that its metadata say were measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nptool.decoding.adaptive.cost import Calibration
from nptool.decoding.expectations import first_gains
from nptool.decoding.proposers.methods import AUTOREGRESSIVE, METHODS
from nptool.decoding.text_model import TextModel
from nptool.heads import accuracy_in
from nptool.heads_sample import figures_in
from nptool.method_note import measured_in


@dataclass(frozen=True)
class Prediction:
    """One method at the width that promises most."""

    method: str
    width: int
    tokens: float
    """Per forward."""
    seconds: float
    """Of a step, with its draft."""
    measured: bool
    """Whether `tokens` follows from a measurement in the file; otherwise it is what such models usually reach."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def plain(calibration: Calibration) -> Prediction:
    """Autoregressive decoding."""
    return Prediction(AUTOREGRESSIVE, 1, 1.0, calibration.at(1, calibration.contexts[0]), measured=True)


def predict(model: TextModel, calibration: Calibration) -> list[Prediction]:
    """Each parallel method that the file was trained for, the fastest first. Times the heads' drafts.

    Raises:
        GgufError: its heads are damaged.
    """
    return sorted(_predict(model, calibration), key=lambda found: found.rate, reverse=True)


def _predict(model: TextModel, calibration: Calibration) -> Iterator[Prediction]:
    metadata, length = model.contexts.metadata, calibration.contexts[0]
    wider = [width for width in calibration.widths if width > 1]
    for method in (METHODS[name] for name in model.trained_methods()):
        if not method.parallel or not wider:
            continue
        heads = model.contexts.count_heads() if method.heads else 1
        alike, each = model.contexts.time_draft(heads) if method.heads else (0.0, 0.0)
        widths = [width for width in wider if width <= heads or not method.heads]
        gains = first_gains(metadata, method)
        tokens = gains.tokens(widths, {}, gains.exponent)
        seconds = {width: calibration.at(width, length) + alike + each * width for width in widths}
        best = max(widths, key=lambda width: tokens[width] / seconds[width])
        known = (figures_in(metadata) or accuracy_in(metadata)) if method.heads else measured_in(metadata)
        yield Prediction(method.name, best, tokens[best], seconds[best], measured=known is not None)
