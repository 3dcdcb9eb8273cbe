"""What is known of a loaded model on this machine: what its steps cost, and what decoding by each method has shown.

Both are kept in the user's cache folder, so that a process begins where the one before ended. Decodes nothing itself.
"""

from __future__ import annotations

from functools import cached_property
from statistics import median
from typing import Any

from nptool.decoding.adaptive.calibration import BUDGET, Calibration, calibrate, fitting
from nptool.decoding.adaptive.calibration_cache import forget_calibration, load_calibration, store_calibration
from nptool.decoding.adaptive.experience import Experience
from nptool.decoding.adaptive.learnt import Learnt
from nptool.decoding.adaptive.learnt_cache import load_learnt, store_learnt
from nptool.decoding.adaptive.priors import prior_of, reach_of
from nptool.decoding.contexts import Contexts
from nptool.decoding.proposers.methods import Method, find_method
from nptool.llama.context import DEFAULT_WIDTH
from nptool.llama.digest import identity

# Calibrating a model that takes long to load may take this share of it.
LOADING_SHARE = 0.25
# Steps that take less than this share of what was calibrated: something else ran then.
_DISTURBED = 0.5


class Knowledge:
    """Of one model."""

    def __init__(self, contexts: Contexts, loading_seconds: float = 0.0) -> None:
        """Args: `loading_seconds` is what loading the model took."""
        self._contexts = contexts
        self._loading_seconds = loading_seconds
        self._experiences: dict[tuple[str, int, str], Experience] = {}

    @cached_property
    def calibration(self) -> Calibration:
        """What steps cost: measured at the first use of the file on this machine."""
        return load_calibration(self._key) or self.calibrate()

    def calibrate(self) -> Calibration:
        """Measure what steps cost, and keep it for the next use."""
        budget = max(BUDGET, LOADING_SHARE * self._loading_seconds)
        found = calibrate(self._contexts.scratch(DEFAULT_WIDTH), budget=budget)
        store_calibration(self._key, found)
        return found

    def experience(self, method: str, widest: int, purpose: str = "") -> Experience:
        """What decoding by a method in steps of up to `widest` rows has shown, from text to text.

        Args:
            purpose: keeps what was seen apart, so that one way to decode does not learn from another; such a one
                begins at the model's stored figures, and is not kept.
        """
        key = (method, widest, purpose)
        if key not in self._experiences:
            learnt = None if purpose else load_learnt(self._key, method)
            self._experiences[key] = self._begin(find_method(method), widest, learnt)
        return self._experiences[key]

    def keep(self) -> None:
        """Keep what was learnt since the beginning for the next process.

        A calibration that was made while something else ran is not kept any longer: its times are wrong, and it may
        have run out of time before the wide steps.
        """
        used = {
            method: experience
            for (method, _, purpose), experience in self._experiences.items()
            if experience.used and not purpose
        }
        paces = [experience.pace for experience in used.values() if experience.pace is not None]
        if paces and median(paces) < _DISTURBED and load_calibration(self._key) == self.calibration:
            forget_calibration(self._key)
        for method, experience in used.items():
            store_learnt(self._key, method, experience.learnt())

    def _begin(self, method: Method, widest: int, learnt: Learnt | None) -> Experience:
        drafting, heads, shares = None, 1, None
        if method.heads:
            shares, heads = self._contexts.parts.shares, self._contexts.count_heads()
            if learnt is None:
                drafting = self._contexts.time_draft(widest if method.counts_heads else heads)
        return Experience(
            self.calibration,
            widest,
            prior_of(self._contexts.metadata, method.name),
            drafts=method.drafts,
            reach=reach_of(method.name, heads, shares),
            drafting=drafting,
            learnt=learnt,
        )

    @cached_property
    def _key(self) -> dict[str, Any]:
        context = self._contexts.scratch(DEFAULT_WIDTH)
        return identity(context, self._contexts.gpu_layers) | {"contexts": list(fitting(context))}
