"""`nptool convert`: a checkpoint, Hugging Face's or one in Meta's layout, becomes a verified GGUF.

Everything that can be wrong with the checkpoint is found before a byte is written, and the file appears under its name
when it is whole and verified, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nptool.convert.checkpoint import Checkpoint, opened_checkpoint
from nptool.convert.families import read_model_spec
from nptool.convert.file_types import DEFAULT_TYPE, FILE_TYPES, FileType, file_type
from nptool.convert.gguf_file import write_gguf
from nptool.convert.heads import Heads, append_heads, heads_type, read_heads
from nptool.convert.hyperparameters import Config
from nptool.convert.model_spec import Metadata, ModelSpec
from nptool.convert.quantize import quantize_gguf
from nptool.convert.staging import staged_file
from nptool.convert.tensors import Tensor, gguf_tensors
from nptool.convert.tokenizer_files import read_tokenizer_files
from nptool.convert.verification import LogitComparison, Verification, verify
from nptool.convert.vocabulary import Vocabulary, read_vocabulary
from nptool.errors import UsageError
from nptool.progress import Progress, silent
from nptool.runs import run_of

if TYPE_CHECKING:
    from nptool.convert.reference import Reference

VERIFYING = "verifying"
MEMORY_LEFT = 1 << 30
"""Bytes that must stay free beside what the verification needs."""


@dataclass(frozen=True)
class ConvertedHeads:
    """Heads 2..n in the finished GGUF."""

    count: int
    """n: heads in all, the model's own included."""
    file_type: str
    parameters: int
    """Of all heads together; each repeats the unembedding."""
    bytes: int
    logits: tuple[LogitComparison, ...] | None
    """One for each head; None where they were not verified."""


@dataclass(frozen=True)
class Conversion:
    """The finished GGUF."""

    source: str
    path: Path
    architecture: str
    file_type: str
    parameters: int
    bytes: int
    seconds: float
    block_size: int | None
    """Tokens a model trained for Jacobi decoding emits in parallel; None for others."""
    verification: Verification | None
    remarks: tuple[str, ...]
    heads: ConvertedHeads | None = None
    """The extra heads behind the model, where the checkpoint has some."""


def convert(
    ref: str | Path,
    out: Path | None = None,
    *,
    type_name: str = DEFAULT_TYPE,
    heads_type_name: str | None = None,
    verified: bool = True,
    pre: str | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        ref: Hugging Face directory or Hub id, or the directory of a multi-token checkpoint as Meta releases them.
        out: the file; None is the run's `model.gguf`, or NAME-TYPE.gguf here for a checkpoint that is in no run.
        type_name: one of FILE_TYPES.
        heads_type_name: of the extra heads, one that nptool writes row by row; None is q8_0.
        pre: llama.cpp's pre-tokenizer, instead of the one found from the tokenizer's rules.

    Raises:
        UsageError: unknown type, unusable output, too little memory to verify.
        CheckpointError: the checkpoint cannot be converted; the message says why.
        GgufError: llama.cpp cannot load the result, or it differs from the checkpoint.
        DiskFullError: the disk filled up.
    """
    start = time.monotonic()
    chosen, heads_kind = file_type(type_name), heads_type(heads_type_name)
    with opened_checkpoint(ref, (out or Path("model.gguf")).parent) as checkpoint:
        done = _convert(checkpoint, out, chosen, heads_kind, verified, pre, progress)
    return replace(done, seconds=time.monotonic() - start)


def _convert(
    checkpoint: Checkpoint,
    out: Path | None,
    chosen: FileType,
    heads_kind: FileType,
    verified: bool,
    pre: str | None,
    progress: Progress,
) -> Conversion:
    """`convert` of an open checkpoint."""
    spec = read_model_spec(Config(checkpoint.config, checkpoint.name))
    tensors = list(gguf_tensors(spec, checkpoint.tensors, checkpoint.name))
    heads = read_heads(checkpoint, spec, tensors)
    vocabulary = read_vocabulary(
        read_tokenizer_files(checkpoint.directory, checkpoint.config), spec.sizes.vocabulary, pre
    )
    target = out or default_output(checkpoint, chosen)
    if verified:
        # One head at a time is in memory.
        _check_memory([*tensors, *(heads.tensors[0] if heads else ())])
    with staged_file(target) as staged:
        job = _Job(checkpoint, spec, vocabulary, tensors, heads, progress)
        verification, remarks = job.run(staged, chosen, verified)
        converted_heads = job.add_heads(staged, heads_kind, verified, remarks)
        size = staged.stat().st_size
    return Conversion(
        source=checkpoint.name,
        path=target,
        architecture=spec.graph,
        file_type=chosen.name,
        parameters=sum(tensor.size for tensor in tensors),
        bytes=size,
        seconds=0.0,
        block_size=checkpoint.block_size,
        verification=verification,
        remarks=tuple(remarks),
        heads=converted_heads,
    )


def default_output(checkpoint: Checkpoint, chosen: FileType) -> Path:
    """The run's GGUF for a run's model, else a file here named after checkpoint and type."""
    run = run_of(checkpoint.directory)
    if run is not None and run.model.resolve() == checkpoint.directory.resolve():
        # "." and ".." are not below what `parent` gives for them.
        named = checkpoint.directory.name not in {"", ".."}
        return (checkpoint.directory.parent if named else run.path) / run.gguf.name
    return Path(f"{checkpoint.last_name}-{chosen.name}.gguf")


@dataclass(frozen=True)
class _Job:
    """Everything that is known before the first byte is written."""

    checkpoint: Checkpoint
    spec: ModelSpec
    vocabulary: Vocabulary
    tensors: Sequence[Tensor]
    heads: Heads | None
    progress: Progress

    def run(self, path: Path, chosen: FileType, verified: bool) -> tuple[Verification | None, list[str]]:
        """Write and verify `path`."""
        reference = self._reference if verified else None
        if chosen.direct:
            others = self._write(path, chosen)
            verification = self._verify(path, chosen, reference)
            return verification, [*self.spec.remarks, *_others(others, chosen)]
        # What the quantizer loses is no mistake, so the conversion itself is verified before.
        exact = FILE_TYPES[_exact_type(self.tensors)]
        whole = path.with_name(f"{path.name}.{exact.name}")
        self._write(whole, exact)
        self._verify(whole, exact, reference)
        others = quantize_gguf(whole, path, chosen, self.progress)
        verification = self._verify(path, chosen, reference)
        return verification, [*self.spec.remarks, *_others(others, chosen)]

    def add_heads(self, path: Path, kind: FileType, verified: bool, remarks: list[str]) -> ConvertedHeads | None:
        """Write the heads behind the model in `path` and verify them."""
        if self.heads is None:
            return None
        from nptool.convert.head_verification import verify_heads

        model_bytes = path.stat().st_size
        remarks += _others(append_heads(path, self.heads, kind, self.checkpoint.display_name, self.progress), kind)
        logits = None
        if verified:
            step = f"{VERIFYING} {self.heads.info.count - 1} heads"
            self.progress(step, 0, 1)
            logits = verify_heads(path, self._reference, self.spec.sizes.context, kind)
            self.progress(step, 1, 1)
        return ConvertedHeads(
            count=self.heads.info.count,
            file_type=kind.name,
            parameters=sum(tensor.size for tensors in self.heads.tensors for tensor in tensors),
            bytes=path.stat().st_size - model_bytes,
            logits=logits,
        )

    @cached_property
    def _reference(self) -> Reference:
        from nptool.convert.reference import Reference

        return Reference(self.checkpoint.directory)

    def _write(self, path: Path, chosen: FileType) -> dict[str, str]:
        extra: Metadata = {
            "general.name": self.checkpoint.display_name,
            **(self.checkpoint.note.metadata() if self.checkpoint.note else {}),
            **(self.heads.metadata if self.heads else {}),
        }
        return write_gguf(path, self.spec, self.vocabulary, self.tensors, chosen, extra, self.progress)

    def _verify(self, path: Path, chosen: FileType, reference: Reference | None) -> Verification | None:
        if reference is None:
            return None
        step = f"{VERIFYING} {chosen.name}"
        self.progress(step, 0, 1)
        verification = verify(path, reference, self.vocabulary, self.spec, chosen)
        self.progress(step, 1, 1)
        return verification


def _exact_type(tensors: Sequence[Tensor]) -> str:
    """The type that holds the checkpoint's own values: the quantizer's input."""
    stored = {tensor.stored.dtype.lower() for tensor in tensors if tensor.stored is not None and len(tensor.shape) > 1}
    return stored.pop() if len(stored) == 1 and stored <= {"f32", "f16", "bf16"} else "f32"


def _others(others: dict[str, str], chosen: FileType) -> list[str]:
    if not others:
        return []
    kinds = sorted(set(others.values()))
    return [
        f"{len(others)} tensors, whose rows do not divide into blocks of {chosen.name}, are {', '.join(kinds)} instead "
        f"(the first: {next(iter(others))})"
    ]


def _check_memory(tensors: Sequence[Tensor]) -> None:
    """The verification holds the model in float32; say so before an hour of writing, not after.

    Raises:
        UsageError: there is not enough memory.
    """
    needed = 4 * sum(tensor.size for tensor in tensors) + MEMORY_LEFT
    free = _free_memory()
    if free is not None and needed > free:
        raise UsageError(
            f"verifying loads the model in transformers, which takes {needed / 2**30:.0f} GiB of memory, and "
            f"{free / 2**30:.0f} are free; add --no-verify, or convert on a larger machine"
        )


def _free_memory() -> int | None:
    """Bytes that a process can still get, where the system says it."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
