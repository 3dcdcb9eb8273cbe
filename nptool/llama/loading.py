"""How a GGUF is loaded. Does not import llama_cpp."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

from nptool.errors import UsageError
from nptool.options import NOT_NEGATIVE, Range, option
from nptool.settings import check_fields

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
SplitMode = Literal["none", "layer", "row"]
UNQUANTIZED = frozenset({"f32", "f16", "bf16"})
DEFAULT_CONTEXT = 4096
DEFAULT_BATCH = 512
"""llama.cpp's default physical batch size."""
DEFAULT_WIDTH = 64
"""Rows that every batch has room for: the widest step whose cost is measured."""
ALL_LAYERS = -1
"""llama.cpp takes any negative number of layers as all."""
SWITCH = {"on": True, "off": False, "auto": None}


def _switch(text: str) -> bool | None:
    if text not in SWITCH:
        raise UsageError(f"--flash-attention is {text!r}; expected one of {', '.join(SWITCH)}")
    return SWITCH[text]


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _names(text))
    except ValueError as error:
        raise UsageError(f"--tensor-split is {text!r}; expected numbers separated by commas, such as 3,1") from error


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Weights, cache and devices. Names and meanings are llama.cpp's where it has the option.

    Raises:
        UsageError: a value out of range, options that exclude each other, or a quantized cache without flash attention.
    """

    gpu_layers: int = option(0, "layers on the GPU; -1 is all", "-ngl")
    context_length: int | None = option(
        None, "context in tokens", "-c", "--ctx-size", shown="the model's, at most 4096"
    )
    threads: int | None = option(None, "threads", "-t", shown="usable cores")
    flash_attention: bool | None = option(
        None,
        "llama.cpp's fused attention",
        "-fa",
        "--flash-attention",
        "--flash-attn",
        metavar="on|off|auto",
        shown="auto: on a GPU, and for very small models",
        parse=_switch,
    )
    """None is the default of `nptool.llama.attention`."""
    cache_type_k: CacheType = option("f16", "type of the keys in the cache", "-ctk")
    cache_type_v: CacheType = option("f16", "type of the values in the cache", "-ctv")
    """A quantized one needs flash attention."""
    batch_size: int = option(
        DEFAULT_BATCH, "most tokens of a prompt in one call of llama.cpp", "-b", within=Range(DEFAULT_WIDTH)
    )
    ubatch_size: int | None = option(
        None, "most tokens computed at once; less needs less memory", "-ub", shown="512", within=Range(DEFAULT_WIDTH)
    )
    """None is `DEFAULT_BATCH`, or `batch_size` if that is less."""
    split_mode: SplitMode = option("layer", "how several GPUs share the model", "-sm")
    tensor_split: tuple[float, ...] = option(
        (), "shares of the GPUs, such as 3,1", "-ts", metavar="LIST", shown="by their memory", parse=_shares
    )
    main_gpu: int = option(0, "number of the only GPU of --split-mode none", "-mg", within=NOT_NEGATIVE)
    rpc: tuple[str, ...] = option(
        (), "llama.cpp's RPC servers, as HOST:PORT with commas between", metavar="LIST", parse=_names
    )
    """Devices besides those of this machine. A process keeps them until it ends."""
    lora: tuple[Path, ...] = option((), "LoRA adapter to add, a GGUF; may be repeated", metavar="GGUF")
    chat_template: str | None = option(
        None, "chat template: Jinja, or a name that llama.cpp knows", metavar="TEXT", shown="the file's"
    )
    chat_template_file: Path | None = option(None, "file with the chat template")

    def __post_init__(self) -> None:
        check_fields(self)
        # Callers write names of files as texts too.
        object.__setattr__(self, "lora", tuple(map(Path, self.lora)))
        if self.chat_template_file is not None:
            object.__setattr__(self, "chat_template_file", Path(self.chat_template_file))
        if self.chat_template is not None and self.chat_template_file is not None:
            raise UsageError("--chat-template and --chat-template-file are two templates; give one of them")
        if self.ubatch_size is not None and self.ubatch_size > self.batch_size:
            raise UsageError(
                f"-ub is {self.ubatch_size} and -b {self.batch_size}; what is computed at once is part of a batch, so "
                "-ub is at most -b"
            )
        if self.rpc and not self.gpu_layers:
            raise UsageError("--rpc needs layers to put on its servers; add -ngl, such as -ngl -1 for all")

    @property
    def computed_at_once(self) -> int:
        """Rows of llama.cpp's physical batch."""
        return min(self.batch_size, DEFAULT_BATCH) if self.ubatch_size is None else self.ubatch_size

    @property
    def for_heads(self) -> LoadOptions:
        """Of extra heads: all of their layers on the GPU if the model has some there."""
        return replace(self, gpu_layers=ALL_LAYERS if self.gpu_layers else 0, lora=())

    @property
    def quantized_cache(self) -> bool:
        return not {self.cache_type_k, self.cache_type_v} <= UNQUANTIZED


class LoadKeywords(TypedDict, total=False):
    """The fields of `LoadOptions` as the keywords of a function."""

    gpu_layers: int
    context_length: int | None
    threads: int | None
    flash_attention: bool | None
    cache_type_k: CacheType
    cache_type_v: CacheType
    batch_size: int
    ubatch_size: int | None
    split_mode: SplitMode
    tensor_split: tuple[float, ...]
    main_gpu: int
    rpc: tuple[str, ...]
    lora: tuple[Path, ...]
    chat_template: str | None
    chat_template_file: Path | None
