"""The exceptions for mistakes of the user.

NptoolError                 any mistake the user can correct; the command line prints its message and exits with 2
├── UsageError              an option or a combination of options that cannot be used
├── DataError               a data file: missing, empty, malformed
│   └── UnusableRecord      one record of it
├── CheckpointError         a Hugging Face directory: missing shard, pickle weights, unknown architecture
├── GgufError               a GGUF file: not a GGUF, truncated, not decodable in parallel
├── ContextError            a prompt longer than the context, a block wider than the batch limit
└── DiskFullError           no space left for a file that was being written

A message is one line: what was expected, what was found, what to do. `assert` is only for our own invariants.
"""


class NptoolError(Exception):
    """Base class; `str()` gives the one-line message."""


class UsageError(NptoolError):
    """An option, or a combination of options, that cannot be used."""


class DataError(NptoolError):
    """A data file that is missing, empty or malformed."""


class UnusableRecord(DataError):
    """One record of a data file that cannot be used; the others may be."""


class CheckpointError(NptoolError):
    """A Hugging Face checkpoint that cannot be used."""


class GgufError(NptoolError):
    """A GGUF file that cannot be used."""


class ContextError(NptoolError):
    """A prompt, block or answer that does not fit the context or the batch."""


class DiskFullError(NptoolError):
    """The disk is full; the file that was being written does not exist under its final name."""
