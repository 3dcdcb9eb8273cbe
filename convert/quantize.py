"""Quantization by llama.cpp's own quantizer, in a separate process; run as a program, this module is that process.

The quantizer cannot be interrupted, and aborts on errors. Killing its process ends it at once; its output becomes
progress, the list of tensors it had to write in another type, or the error.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from nptool.convert.file_types import FileType
from nptool.errors import DiskFullError, GgufError
from nptool.progress import Progress
from nptool.resources import usable_cores

QUANTIZING = "quantizing"
FULL_BELOW = 1 << 20
"""A disk with fewer bytes left counts as full."""
_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] (\S+)")
_FALLBACK = re.compile(r"warning: (\S+) .*falling back to +(\S+)")


def quantize_gguf(source: Path, target: Path, file_type: FileType, progress: Progress) -> dict[str, str]:
    """Write `source` (F32, F16 or BF16) as `target` in `file_type`.

    Returns:
        Tensors whose rows do not divide into the type's blocks, with the type they got instead.

    Raises:
        DiskFullError: the disk filled up.
        GgufError: the quantizer failed.
    """
    command = [sys.executable, "-m", __name__, str(source), str(target), str(file_type.number)]
    fallbacks: dict[str, str] = {}
    last = "it gives no reason"
    piped: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, **piped) as run:
        try:
            for line in run.stdout or ():
                last = line.strip()
                if found := _TENSOR.match(line):
                    progress(QUANTIZING, int(found[1]), int(found[2]), found[3])
                elif found := _FALLBACK.search(line):
                    fallbacks[found[1]] = found[2].lower()
        except BaseException:
            run.kill()
            raise
    if run.returncode:
        if shutil.disk_usage(target.parent).free < FULL_BELOW:
            raise DiskFullError(f"no space left on the disk while quantizing to {file_type.name}; free some first")
        raise GgufError(f"llama.cpp's quantizer failed on type {file_type.name}: {last}")
    return fallbacks


def main(arguments: list[str]) -> int:
    """The process: source, target and number of the type."""
    import ctypes

    import llama_cpp

    # The parent process handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def say(level: int, text: bytes, _: Any) -> None:
        print(text.decode(errors="replace"), end="", flush=True)

    listener = llama_cpp.llama_log_callback(say)
    llama_cpp.llama_log_set(listener, ctypes.c_void_p())
    source, target, number = arguments
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(number)
    parameters.nthread = usable_cores()
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
