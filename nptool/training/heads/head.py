"""What every kind of heads is to training, and Meta's: one layer for each head (arXiv 2404.19737).

Another kind is a module beside this one with a class of `ExtraHeads`, entered in `KINDS` of
`nptool.training.heads.model`. The final norm and the unembedding after a head are the model's.

Legend: B batch, T tokens, D hidden, M positions of one head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from nptool.heads import NEXTN, SEPARATE, SHARED, head_tensor
from nptool.training.estimate import Shape


@dataclass(frozen=True)
class TrunkOutput:
    """What the heads read."""

    z_BTD: Tensor
    """Input of the model's last layer."""
    arguments: dict[str, Any]
    """Mask, rotary embeddings and whatever else the model passes to its last layer."""
    ids_BT: Tensor


class ExtraHeads(nn.Module):
    """Heads 2..n of a model; head k is number k - 2 here."""

    KIND: ClassVar[str]
    """Name in `heads.json`."""

    @classmethod
    def make(cls, base: Any, count: int, rank: int) -> Self:
        """`count` new heads for a model, which `start` prepares for training.

        Args:
            rank: of the matrices that tell the depths of a shared layer apart; not used by other kinds.
        """
        raise NotImplementedError

    def start(self, z_ND: Tensor) -> None:
        """Prepare new heads for training, given layer inputs of some trained positions."""

    @property
    def count(self) -> int:
        """n - 1."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """See `make`; 0 where it is not used."""
        return 0

    def hidden_states(self, number: int, trunk: TrunkOutput, positions_M: Tensor) -> Tensor:
        """Output (M, D) of one head before the norm.

        Args:
            positions_M: ascending, in the flattened batch.
        """
        raise NotImplementedError

    def weights(self, number: int) -> list[nn.Parameter]:
        """Weights that one head uses, without the norm's."""
        raise NotImplementedError

    def own_norm(self) -> nn.Module | None:
        """The norm after the heads; None is the model's final norm."""
        return None

    def loss_weights(self) -> Sequence[float]:
        """Of each head's loss; head 1 has 1."""
        return [1.0] * self.count

    def fast_weights(self) -> Iterable[nn.Parameter]:
        """Weights that are trained at a higher learning rate than the others."""
        return ()

    def file_name(self, name: str) -> str:
        """Name in `heads.safetensors` of an entry of `state_dict`."""
        raise NotImplementedError


class SeparateHeads(ExtraHeads):
    """One layer with the architecture of the model's last layer for each head."""

    KIND = SEPARATE

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @classmethod
    def make(cls, base: Any, count: int, rank: int) -> Self:
        return cls(deepcopy(base.base_model.layers[-1]) for _ in range(count))

    @property
    def count(self) -> int:
        return len(self.layers)

    def hidden_states(self, number: int, trunk: TrunkOutput, positions_M: Tensor) -> Tensor:
        output_BTD: Tensor = self.layers[number](trunk.z_BTD, **trunk.arguments)
        return output_BTD.flatten(0, 1)[positions_M]

    def weights(self, number: int) -> list[nn.Parameter]:
        return [*self.layers[number].parameters()]

    def file_name(self, name: str) -> str:
        _, number, tensor = name.split(".", 2)
        return head_tensor(int(number) + 2, tensor)


def extra_parameters(shape: Shape, kind: str, heads: int, rank: int) -> int:
    """Parameters of heads 2..`heads` on a model of `shape`."""
    layer = replace(shape, layers=shape.layers + 1).parameters - shape.parameters
    depths = heads - 1
    if kind == NEXTN:
        return layer + (2 * shape.hidden_size + 3) * shape.hidden_size
    return layer + depths * (1 + 2 * rank) * shape.hidden_size if kind == SHARED else depths * layer
