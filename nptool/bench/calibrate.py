"""`run_calibration`: step costs on this machine, widths with identical bits, and the predicted speed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nptool.bench.advice import Advice, advise
from nptool.bench.prediction import Prediction, plain, predict
from nptool.decoding.adaptive.cost import Calibration
from nptool.decoding.adaptive.gains import power_with_bend
from nptool.decoding.expectations import first_gains
from nptool.decoding.proposers.methods import JACOBI, METHODS
from nptool.decoding.text_model import TextModel
from nptool.llama.gguf_summary import summarize
from nptool.llama.loading import LoadOptions
from nptool.provenance import machine, provenance


@dataclass(frozen=True)
class CalibrationReport:
    model: str
    model_description: str
    machine: dict[str, Any]
    threads: int
    gpu_layers: int
    flash_attention: bool
    """Whether llama.cpp's fused kernel was used."""
    calibration: Calibration
    exponent: float
    """A step of w rows is expected to give w to this power tokens; beyond 16 rows with diminishing returns."""
    advice: Advice
    provenance: dict[str, Any]

    def cost_ratio(self, width: int) -> float:
        """t(w) / t(1) after the shorter prefix: the tokens per step from which this width pays off."""
        times, context = self.calibration, self.calibration.contexts[0]
        return times.at(width, context) / times.at(1, context)

    @property
    def plain_rate(self) -> float:
        """Tokens per second of autoregressive decoding."""
        return plain(self.calibration).rate

    def predicted_speedup(self, width: int) -> float:
        """Over autoregressive decoding, at the exponent that the file's metadata suggests."""
        return power_with_bend(width, self.exponent) / self.cost_ratio(width)

    def to_json(self) -> dict[str, Any]:
        """A value for `json.dumps`."""
        widths = self.calibration.widths
        return {
            **vars(self),
            "calibration": asdict(self.calibration),
            "advice": asdict(self.advice),
            "cost_ratio": {str(width): self.cost_ratio(width) for width in widths},
            "predicted_speedup": {str(width): self.predicted_speedup(width) for width in widths},
        }


def run_calibration(path: Path, options: LoadOptions | None = None) -> CalibrationReport:
    """Measure again, whatever the cache folder holds, and save the result there.

    Raises:
        GgufError: the model cannot be used.
        ContextError: there is no memory for its cache.
    """
    with TextModel(path, options) as model:
        calibration = model.store.calibrate()
        own = tuple(found for found in predict(model, calibration) if found.measured)
        engine = model.contexts.trunk(1)
        return CalibrationReport(
            model=str(path),
            model_description=model.model.description,
            machine=machine(),
            threads=engine.threads,
            gpu_layers=model.options.gpu_layers,
            flash_attention=engine.settings.flash_attention,
            calibration=calibration,
            exponent=first_gains(model.model.header.metadata, METHODS[JACOBI]).exponent,
            advice=_advise(path, calibration, own, on_gpu=model.options.gpu_layers != 0),
            provenance=provenance(),
        )


def _advise(path: Path, calibration: Calibration, own: tuple[Prediction, ...], *, on_gpu: bool) -> Advice:
    seconds = {width: calibration.at(width, calibration.contexts[0]) for width in calibration.widths}
    return advise(seconds, summarize(path).parts[0], own, on_gpu=on_gpu)
