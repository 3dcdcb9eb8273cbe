"""`run_calibration`: what steps cost on this machine, which widths share their bits, and the speed that is foreseen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nptool.decoding.adaptive.cost import Calibration
from nptool.decoding.adaptive.gains import first_gains, power_with_bend
from nptool.decoding.proposers.methods import JACOBI, find_method
from nptool.decoding.text_model import TextModel
from nptool.provenance import machine, provenance


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration and what follows from it."""

    model: str
    model_description: str
    machine: dict[str, Any]
    threads: int
    gpu_layers: int
    flash_attention: bool
    """Whether llama.cpp's fused kernel was used, also where nobody chose."""
    calibration: Calibration
    exponent: float
    """Tokens of a step of w rows are foreseen to be w to this power, up to 16 rows, and ever less more beyond."""
    provenance: dict[str, Any]

    def cost_ratio(self, width: int) -> float:
        """t(w) / t(1) behind the shorter text: so many tokens a step of this width must bring to be worth it."""
        times, context = self.calibration, self.calibration.contexts[0]
        return times.at(width, context) / times.at(1, context)

    def predicted_speedup(self, width: int) -> float:
        """Over autoregressive decoding, if the model is as its file says."""
        return power_with_bend(width, self.exponent) / self.cost_ratio(width)

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        widths = self.calibration.widths
        return {
            **{name: value for name, value in vars(self).items() if name != "calibration"},
            "calibration": self.calibration.to_json(),
            "cost_ratio": {str(width): self.cost_ratio(width) for width in widths},
            "predicted_speedup": {str(width): self.predicted_speedup(width) for width in widths},
        }


def run_calibration(
    path: Path,
    *,
    gpu_layers: int = 0,
    context_length: int | None = None,
    threads: int | None = None,
    flash_attention: bool | None = None,
) -> CalibrationReport:
    """Measure anew, whatever the cache holds, and keep the result there.

    Raises:
        GgufError: the model cannot be used.
        ContextError: there is no memory for its cache.
    """
    with TextModel(
        path,
        gpu_layers=gpu_layers,
        context_length=context_length,
        threads=threads,
        flash_attention=flash_attention,
    ) as model:
        calibration = model.store.calibrate()
        engine = model.contexts.trunk(1)
        return CalibrationReport(
            model=str(path),
            model_description=model.model.description,
            machine=machine(),
            threads=engine.threads,
            gpu_layers=gpu_layers,
            flash_attention=engine.settings.flash_attention,
            calibration=calibration,
            exponent=first_gains(model.model.header.metadata, find_method(JACOBI)).exponent,
            provenance=provenance(),
        )
