"""All measurements on a GPU machine in one JSON file: t(w), width classes, exactness, speed.

    python benchmarks/cuda.py --build   # first CMAKE_ARGS="-DGGML_CUDA=on" pip install llama-cpp-python
    python benchmarks/cuda.py           # a random model of 134M parameters in F16 and Q8_0
    python benchmarks/cuda.py --train   # a CLLM of 114M parameters, trained there in minutes
    python benchmarks/cuda.py --small   # a test of the script with a tiny model, on any machine

Every figure is the output of one command, and the file has these commands. Without a GPU the same commands run on the
CPU, and the file and the last line say so.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

from nptool.files import write_json
from nptool.provenance import provenance
from nptool.text_to_sql import generate_examples

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BUILD = ("-m", "pip", "install", "--force-reinstall", "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python")
CUDA = "-DGGML_CUDA=on"
PROMPTS = "heldout.jsonl"
# Sizes of the random and the trained model, settings of training and measurements; then the same for --small.
LARGE = {
    "shape": {"hidden": 768, "layers": 12, "heads": 12, "key_value_heads": 12, "feed_forward": 2048}
    | {"vocabulary": 32_000, "context": 4096},
    "base": "--hidden-size 768 --layers 16 --attention-heads 12 --intermediate-size 2048 --vocab-size 1024 "
    "--prompt-share 0.3 --batch-tokens 16384 --lr 6e-4 --epochs 1",
    "examples": 60_000,
    "prompts": 6_000,
    "collect": "--batch-size 256 --max-new-tokens 128",
    "cllm": "--schedule uniform --context clean --draws 2 --decay 0.7 --ar-target reference --ar-weight 5 "
    "--steps 1500 --batch-tokens 16384 --lr 3e-4",
    "bench": "-n 4,8,16,32,64 --rounds 5 --count 20 --max-tokens 128",
    "exactness": "--rows 96 --repeats 3",
}
SMALL = {
    "shape": {"hidden": 64, "layers": 2, "heads": 4, "key_value_heads": 2, "feed_forward": 128}
    | {"vocabulary": 320, "context": 1024},
    "base": "--hidden-size 32 --layers 2 --attention-heads 2 --vocab-size 300 --batch-tokens 2048 --steps 4",
    "examples": 60,
    "prompts": 12,
    "collect": "--batch-size 12 --max-new-tokens 24 --keep-degenerate",
    "cllm": "--steps 2 --batch-tokens 4096",
    "bench": "-n 4,8 --rounds 1 --count 2 --max-tokens 24",
    "exactness": "--widths 1,2,4,8 --rows 24 --repeats 2",
}


class Commands:
    """Runs commands in one folder and records them with their times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[dict[str, Any]] = []

    def nptool(self, words: str) -> Any:
        """The output of `nptool WORDS --json`."""
        return self.run(f"nptool {words} --json", [sys.executable, "-m", "nptool", *shlex.split(words), "--json"])

    def script(self, name: str, words: str) -> Any:
        """The output of a script in this folder."""
        program = [sys.executable, str(ROOT / "benchmarks" / name), *shlex.split(words), "--json"]
        return self.run(f"python benchmarks/{name} {words} --json", program)

    def run(self, shown: str, words: list[str]) -> Any:
        """A program's output as JSON; exits if the program fails."""
        print(f"$ {shown}", flush=True)
        began = perf_counter()
        result = subprocess.run(words, cwd=self.folder, stdout=subprocess.PIPE, text=True)
        if result.returncode:
            sys.exit(f"failed with exit code {result.returncode}: {shown}")
        self.done.append({"command": shown, "seconds": round(perf_counter() - began, 1)})
        return json.loads(result.stdout)


def main() -> None:
    """Run all commands, write their figures to one file and print the main ones."""
    options = parse()
    if options.build:
        build()
    sizes = SMALL if options.small else LARGE
    kinds = options.types.split(",")
    gpu = find_gpu()
    layers = -1 if gpu["usable"] else 0
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as name:
        commands = Commands(Path(name))
        commands.folder.mkdir(parents=True, exist_ok=True)
        write_examples(commands.folder / PROMPTS, "heldout", 20)
        files = train(commands, sizes, kinds) if options.train else draw(commands.folder, sizes, kinds)
        more = f" -t {options.threads}" if options.threads else ""
        models = [measure(commands, file, sizes, f"-ngl {layers}{more}") for file in files]
    result = {
        "measured_gpu": gpu["usable"],
        "note": "all layers on the GPU" if gpu["usable"] else "NO GPU WAS MEASURED: llama.cpp found none",
        "gpu": gpu,
        "weights": "trained" if options.train else "random",
        "models": models,
        "commands": commands.done,
        "provenance": provenance(),
    }
    # Figures of a CPU must not replace those of a GPU.
    output = options.output or RESULTS / ("cuda.json" if gpu["usable"] else "cuda_without_gpu.json")
    write_json(output, result)
    for model in models:
        show(model)
    print(f"{output}: {result['note']}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="compile llama-cpp-python with CUDA first")
    parser.add_argument("--train", action="store_true", help="train the model instead of drawing its weights")
    parser.add_argument("--small", action="store_true", help="tiny models and few repeats")
    parser.add_argument("--types", default="f16,q8_0", help="of the GGUF files [%(default)s]")
    parser.add_argument("--folder", type=Path, help="where the models are kept [a temporary folder]")
    parser.add_argument("-t", "--threads", type=int, help="[usable cores]")
    parser.add_argument("-o", "--output", type=Path, help="[benchmarks/results/cuda.json, or cuda_without_gpu.json]")
    return parser.parse_args()


def build() -> None:
    """Compile the version in constraints.txt for the GPU of this machine."""
    words = [sys.executable, *BUILD, "-c", str(ROOT / "constraints.txt")]
    print(f'$ CMAKE_ARGS="{CUDA}" python {shlex.join(BUILD)} -c constraints.txt', flush=True)
    result = subprocess.run([*words, "llama-cpp-python"], env=os.environ | {"CMAKE_ARGS": CUDA, "FORCE_CMAKE": "1"})
    if result.returncode:
        sys.exit("llama-cpp-python was not built; it needs the CUDA toolkit (nvcc), cmake and a C++ compiler")


def find_gpu() -> dict[str, Any]:
    """What llama.cpp and the driver report about GPUs."""
    # Imported here, because --build may have replaced it.
    import llama_cpp

    from nptool.llama.library import supports_gpu

    names = []
    if (program := shutil.which("nvidia-smi")) is not None:
        query = [program, "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"]
        names = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return {
        "usable": supports_gpu(),
        "devices": names,
        "llama_cpp": llama_cpp.__version__,
        "build": llama_cpp.llama_print_system_info().decode(errors="replace"),
    }


def write_examples(path: Path, split: str, count: int, skip: int = 0) -> None:
    """Write `count` examples of the embedded task, after the first `skip`."""
    examples = generate_examples(split, skip + count, 0)[skip:]
    path.write_text("".join(f"{json.dumps(example.to_record())}\n" for example in examples))


def draw(folder: Path, sizes: dict[str, Any], kinds: list[str]) -> list[str]:
    """Write models with random weights."""
    from random_model import Shape, write_random_model

    names = [f"random-{kind}.gguf" for kind in kinds]
    for name, kind in zip(names, kinds, strict=True):
        print(f"drawing {name}", flush=True)
        write_random_model(folder / name, Shape(**sizes["shape"]), kind=kind)
    return names


def train(commands: Commands, sizes: dict[str, Any], kinds: list[str]) -> list[str]:
    """The whole pipeline: a text-to-SQL model from scratch, its trajectories, the CLLM, and its GGUF files."""
    write_examples(commands.folder / "train.jsonl", "train", sizes["examples"])
    write_examples(commands.folder / "prompts.jsonl", "train", sizes["prompts"], skip=sizes["examples"])
    commands.nptool(f"train base --data train.jsonl --heldout-data {PROMPTS} --name base {sizes['base']}")
    commands.nptool(f"collect -m runs/base/model --data prompts.jsonl -n 16 -o collected.parquet {sizes['collect']}")
    commands.nptool(f"train cllm --data collected.parquet --name cllm {sizes['cllm']}")
    # The strictest comparison with transformers; it fails if a GPU computes where it should not.
    commands.nptool("convert runs/cllm/model --type f32 -o cllm-f32.gguf")
    names = [f"cllm-{kind}.gguf" for kind in kinds]
    for name, kind in zip(names, kinds, strict=True):
        commands.nptool(f"convert runs/cllm/model --type {kind} -o {name}")
    return names


def measure(commands: Commands, file: str, sizes: dict[str, Any], where: str) -> dict[str, Any]:
    """All figures of one file."""
    calibration = commands.nptool(f"bench -m {file} {where} --calibrate")
    exactness = commands.script("width_exactness.py", f"{file} {where} {sizes['exactness']}")
    words = f"bench -m {file} {where} --prompts {PROMPTS} --methods ar,jacobi,jacobi-auto {sizes['bench']}"
    return {
        "model": file,
        "description": calibration["model_description"],
        "calibration": calibration,
        "exactness": exactness,
        "classes_confirmed": confirmed(calibration["calibration"]["classes"], exactness["classes"]),
        "bench": {"greedy": commands.nptool(words), "temperature 0.8": commands.nptool(f"{words} --temp 0.8 --seed 1")},
    }


def confirmed(calibrated: list[list[int]], exact: list[list[int]]) -> bool:
    """Whether the widths of each class of the calibration give the same bits, as the exact mode assumes."""
    compared = {width for group in exact for width in group}
    return all(any({*group} & compared <= {*found} for found in exact) for group in calibrated)


def show(model: dict[str, Any]) -> None:
    """Print the main figures of one model."""
    print(f"\n{model['model']}: {model['description']}")
    ratios = model["calibration"]["cost_ratio"]
    print("  t(w) / t(1): " + "  ".join(f"{width}: {ratio:.2f}" for width, ratio in ratios.items()))
    print("  same bits: " + "; ".join(", ".join(map(str, group)) for group in model["exactness"]["classes"]))
    print(f"  calibration's classes confirmed: {'yes' if model['classes_confirmed'] else 'NO'}")
    for name, report in model["bench"].items():
        for method in report["methods"]:
            outside = method["loop_ms"] / (method["loop_ms"] + method["trunk_ms"])
            print(
                f"  {name}, {method['name']} {method['n']}: {method['tokens_per_second']:.1f} tokens/s, "
                f"{method['speedup']:.2f} times AR, {method['tokens_per_forward']:.2f} tokens per forward, "
                f"{outside:.1%} of a step outside the model, same text {method['identical_equal_width']:.0%}"
            )


if __name__ == "__main__":
    main()
