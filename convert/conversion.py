"""`nptool convert`: a checkpoint, in Hugging Face's or Meta's layout, becomes a verified GGUF.

The checkpoint is checked before a byte is written. The file appears under its name whole and verified, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nptool.convert.checkpoint import Checkpoint, opened_checkpoint
from nptool.convert.families import read_model_spec
from nptool.convert.figures import write_figures
from nptool.convert.file_types import DEFAULT_TYPE, FILE_TYPES, FileType, file_type, other_types
from nptool.convert.gguf_file import write_gguf
from nptool.convert.heads import Heads, append_heads, heads_type, read_heads
from nptool.convert.layers.model_spec import Config, Metadata, ModelSpec
from nptool.convert.nextn import ConvertedBlock, block_left_out, read_carried, write_draft
from nptool.convert.quantize import quantize_gguf
from nptool.convert.staging import staged_file
from nptool.convert.tensors import Tensor, gguf_tensors
from nptool.convert.tokenizer_files import read_tokenizer_files
from nptool.convert.verification import LogitComparison, Verification, verify, verify_heads
from nptool.convert.vocabulary import Vocabulary, read_vocabulary
from nptool.errors import NptoolError, UsageError
from nptool.heads import NEXTN
from nptool.heads_sample import HeadsScore, Scorer
from nptool.progress import Progress, silent
from nptool.resources import free_memory
from nptool.runs import run_of

if TYPE_CHECKING:
    from nptool.convert.reference import Reference

MEMORY_LEFT = 1 << 30
"""Bytes that must stay free."""
SCORING = "scoring the heads"


@dataclass(frozen=True)
class ConvertedHeads:
    """Heads 2..n in the finished GGUF."""

    count: int
    """n: heads in all, the model's own included."""
    kind: str
    file_type: str
    parameters: int
    """Of all heads together; each repeats the unembedding."""
    bytes: int
    logits: tuple[LogitComparison, ...] | None
    """One for each head, or for the layer that they share; None if they were not verified."""
    score: HeadsScore | None = None
    """On the checkpoint's held-out sample; None if it was not scored, or the checkpoint has none."""
    unscored: str | None = None
    """Why the scoring failed."""


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
    """Tokens that a model trained for Jacobi decoding emits in parallel; None for other models."""
    verification: Verification | None
    remarks: tuple[str, ...]
    heads: ConvertedHeads | None = None
    nextn: ConvertedBlock | None = None


def convert(
    ref: str | Path,
    out: Path | None = None,
    *,
    type_name: str = DEFAULT_TYPE,
    heads_type_name: str | None = None,
    verified: bool = True,
    pre: str | None = None,
    nextn: bool = False,
    score: Scorer | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        ref: Hugging Face directory or Hub id, or the directory of a multi-token checkpoint as Meta releases them.
        out: the file; None is the run's `model.gguf`, or NAME-TYPE.gguf here for a checkpoint outside runs.
        type_name: one of FILE_TYPES.
        heads_type_name: type of the extra heads, one that is written directly; None is q8_0.
        pre: llama.cpp's pre-tokenizer; None finds it from the tokenizer's rules.
        nextn: write the model with its NextN block in an architecture with which llama.cpp itself speculates.
        score: scores the heads in the finished file, which then has the figures, if the checkpoint has a held-out
            sample and the conversion is verified.

    Raises:
        UsageError: unknown type, unusable output, too little memory to verify.
        CheckpointError: the checkpoint cannot be converted; the message says why.
        GgufError: llama.cpp cannot load the result, or it differs from the checkpoint.
        DiskFullError: the disk filled up.
    """
    start = time.monotonic()
    if nextn and heads_type_name is not None:
        raise UsageError("--heads-type is of heads after the model, and --nextn writes a block inside it; omit one")
    chosen, heads_kind = file_type(type_name), heads_type(heads_type_name)
    with opened_checkpoint(ref, (out or Path("model.gguf")).parent) as checkpoint:
        job = _prepare(checkpoint, pre, score if verified else None, verified, nextn, progress)
        path = out or default_output(checkpoint, NEXTN if nextn else chosen.name)
        with staged_file(path) as staged:
            verification, others = job.write_model(staged, chosen)
            heads, other_heads = job.write_heads(staged, heads_kind)
            heads = job.score_heads(staged, heads)
            block = write_draft(staged, path, job.reference, chosen, progress) if nextn else None
            size = staged.stat().st_size
        left_out = [] if nextn else block_left_out(checkpoint.directory)
    return Conversion(
        source=checkpoint.name,
        path=path,
        architecture=job.written.graph,
        file_type=chosen.name,
        parameters=sum(tensor.size for tensor in job.tensors),
        bytes=size,
        seconds=time.monotonic() - start,
        block_size=checkpoint.note.block_size if checkpoint.note else None,
        verification=verification,
        remarks=(
            *job.spec.remarks,
            *left_out,
            *other_types(others, chosen),
            *other_types(other_heads, heads_kind),
        ),
        heads=heads,
        nextn=block,
    )


def default_output(checkpoint: Checkpoint, suffix: str) -> Path:
    """Beside a run's model `model.gguf`, or `model-nextn.gguf`; else a file here, named after checkpoint and `suffix`.

    Args:
        suffix: the type, or `nextn`.
    """
    run = run_of(checkpoint.directory)
    if run is not None and run.model.resolve() == checkpoint.directory.resolve():
        # `parent` of "." and ".." is not the folder above.
        named = checkpoint.directory.name not in {"", ".."}
        folder = checkpoint.directory.parent if named else run.path
        return folder / (f"{run.gguf.stem}-nextn.gguf" if suffix == NEXTN else run.gguf.name)
    return Path(f"{checkpoint.last_name}-{suffix}.gguf")


def _prepare(
    checkpoint: Checkpoint, pre: str | None, score: Scorer | None, verified: bool, nextn: bool, progress: Progress
) -> _Job:
    spec = written = read_model_spec(Config(checkpoint.config, checkpoint.name))
    if nextn:
        carried = read_carried(checkpoint, spec)
        written, tensors, heads, entries = carried.spec, list(carried.tensors), None, carried.metadata
    else:
        tensors = list(gguf_tensors(spec, checkpoint.tensors, checkpoint.name))
        heads = read_heads(checkpoint, spec, tensors, scored=score is not None)
        entries = heads.metadata if heads else {}
    files = read_tokenizer_files(checkpoint.directory, checkpoint.config)
    vocabulary = read_vocabulary(files, spec.sizes.vocabulary, pre)
    reference = None
    if verified:
        from nptool.convert.reference import Reference

        # One head at a time is in memory.
        _check_memory([*tensors, *(heads.tensors[0] if heads else ())])
        reference = Reference(checkpoint.directory)
    return _Job(checkpoint, spec, written, vocabulary, tensors, heads, entries, reference, score, progress)


@dataclass(frozen=True)
class _Job:
    """Everything that is known before the first byte is written."""

    checkpoint: Checkpoint
    spec: ModelSpec
    """Of the plain model."""
    written: ModelSpec
    """Of what is written: the same, or the model with its NextN block."""
    vocabulary: Vocabulary
    tensors: Sequence[Tensor]
    heads: Heads | None
    entries: Metadata
    """What the model's metadata say of heads."""
    reference: Reference | None
    """None if nothing is verified."""
    score: Scorer | None
    progress: Progress

    def write_model(self, path: Path, chosen: FileType) -> tuple[Verification | None, dict[str, str]]:
        """Write and verify the model; returns also the matrices of another type than `chosen`, with that type."""
        if chosen.direct:
            others = self._write(path, chosen)
            return self._verify(path, chosen), others
        # The quantizer's loss is expected, so its input, in the checkpoint's own type, is verified strictly before.
        stored = {tensor.stored.dtype.lower() for tensor in self.tensors if tensor.stored and len(tensor.shape) > 1}
        exact = FILE_TYPES[stored.pop() if len(stored) == 1 and stored <= {"f32", "f16", "bf16"} else "f32"]
        whole = path.with_name(f"{path.name}.{exact.name}")
        self._write(whole, exact)
        self._verify(whole, exact)
        others = quantize_gguf(whole, path, chosen, self.progress)
        return self._verify(path, chosen), others

    def write_heads(self, path: Path, kind: FileType) -> tuple[ConvertedHeads | None, dict[str, str]]:
        """The same for the heads, which are appended to `path`."""
        if self.heads is None:
            return None, {}
        model_bytes, logits = path.stat().st_size, None
        others = append_heads(path, self.heads, kind, self.checkpoint.display_name, self.progress)
        if self.reference is not None:
            step = "verifying the heads"
            self.progress(step, 0, 1)
            logits = verify_heads(path, self.reference, self.spec.sizes.context, kind)
            self.progress(step, 1, 1)
        info, size = self.heads.info, path.stat().st_size - model_bytes
        return ConvertedHeads(info.count, info.kind, kind.name, self.heads.parameters, size, logits), others

    def score_heads(self, path: Path, heads: ConvertedHeads | None) -> ConvertedHeads | None:
        """Score the heads in the finished file at `path`, if there is a sample, and write the figures into it."""
        if heads is None or self.score is None or self.heads is None or self.heads.sample is None:
            return heads
        self.progress(SCORING, 0, 1)
        try:
            found = self.score(path, self.checkpoint.directory)
        except NptoolError as error:
            # The file is whole and verified, whatever the sample is.
            return replace(heads, unscored=str(error).replace(str(path), "the file"))
        write_figures(path, found.found)
        self.progress(SCORING, 1, 1)
        return replace(heads, score=found)

    def _write(self, path: Path, chosen: FileType) -> dict[str, str]:
        extra: Metadata = {
            "general.name": self.checkpoint.display_name,
            **(self.checkpoint.note.metadata() if self.checkpoint.note else {}),
            **self.entries,
        }
        return write_gguf(path, self.written, self.vocabulary, self.tensors, chosen, extra, self.progress)

    def _verify(self, path: Path, chosen: FileType) -> Verification | None:
        if self.reference is None:
            return None
        step = f"verifying {chosen.name}"
        self.progress(step, 0, 1)
        verification = verify(path, self.reference, self.vocabulary, self.spec, chosen)
        self.progress(step, 1, 1)
        return verification


def _check_memory(tensors: Sequence[Tensor]) -> None:
    """Refuse to verify where the reference, in float32, does not fit."""
    needed = 4 * sum(tensor.size for tensor in tensors) + MEMORY_LEFT
    free = free_memory()
    if free is not None and needed > free:
        raise UsageError(
            f"verifying loads the model in transformers, which takes {needed / 2**30:.0f} GiB of memory, and "
            f"{free / 2**30:.0f} are free; add --no-verify, or convert on a larger machine"
        )
