"""`minilm bench`: which benchmarks there are, and writing what they find to results files."""

import argparse
import importlib
from pathlib import Path

import torch

from .bench import PACKAGE, default_path, device_name, write_results
from .run import pick_device

# name → (module, function) that gives the rows; imported when it is asked for
BENCHMARKS = {
    "tokenizer": ("bench_tokenizer", "rows"),
    "train": ("bench_model", "train_rows"),
    "generate": ("bench_model", "generate_rows"),
    "import": ("bench_command", "import_rows"),
    "tiny": ("bench_command", "tiny_rows"),
    "trace": ("bench_trace", "trace_rows"),
    "choices": ("bench_choices", "choice_rows"),
}
ON_ANY_DEVICE = ("trace", "choices")  # on a GPU if there is one; the others measure the CPU
BY_NAME_ONLY = ("trace", "choices")  # needs a GPU; hours on a CPU
# whose results lie with the kernels': name → of the file
KERNEL_FILES = {"trace": "step_trace", "gpt2_training": "gpt2_training"}
GPT2_PARTS = ("step", "kernels", "gradients", "curves")  # of `train` on an NVIDIA GPU


def add_bench(commands) -> None:
    parser = commands.add_parser("bench", help="measure, and write the results to a file")
    parser.add_argument(
        "name",
        nargs="?",
        choices=tuple(BENCHMARKS),
        metavar="NAME",
        help=f"{', '.join(BENCHMARKS)} (default: all but the last two, in about ten minutes)",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="another implementation to measure in the same run, such as nanogpt=FOLDER",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="where to write the results (default: book/results/NAME-DEVICE.json)",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="repetitions of each measurement (not for tiny)"
    )
    parser.add_argument(
        "--parts",
        metavar="PART,…",
        help=f"of train on an NVIDIA GPU: some of {', '.join(GPT2_PARTS)} (default: all); rows of "
        "the others stay in the file",
    )
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    peers = parse_peers(args.peer)
    if args.name is None and (args.json or peers):
        raise ValueError("bench: --json and --peer belong to one benchmark, give its NAME")
    if args.rounds is not None and (args.rounds < 1 or args.name == "tiny"):
        raise ValueError(f"--rounds: must be at least 1, and is not for tiny, got {args.rounds}")
    if args.json and not Path(args.json).parent.is_dir():  # known before the work, not after it
        raise FileNotFoundError(f"--json: the folder {Path(args.json).parent} does not exist")
    if args.parts is not None and not (args.name == "train" and has_nvidia()):
        raise ValueError("--parts: is for `bench train` on a machine with an NVIDIA GPU")
    for name in [args.name] if args.name else [n for n in BENCHMARKS if n not in BY_NAME_ONLY]:
        if name == "train" and has_nvidia():
            bench_gpt2(args, peers)
            continue
        module, function = BENCHMARKS[name]
        device = str(pick_device("auto")) if name in ON_ANY_DEVICE else "cpu"
        options = {} if args.rounds is None or name == "tiny" else {"rounds": args.rounds}
        measure = getattr(importlib.import_module(f"minilm.{module}"), function)
        rows = measure(peers, **options)
        path = Path(args.json) if args.json else results_path(name, device_name(device))
        write_results(path, name, rows, device)
        for r in rows:
            print(describe_row(r))
        print(f"written to {path}")
    return 0


def results_path(name: str, device: str) -> Path:
    """book/results/NAME-DEVICE.json, or cuda_numba/results/ for what is measured of kernels."""
    path = default_path(KERNEL_FILES.get(name, name), device)
    if name not in KERNEL_FILES or path.parent == Path():
        return path
    return PACKAGE.parent / "cuda_numba" / "results" / path.name


def has_nvidia() -> bool:
    """Is there an NVIDIA GPU? There `train` is the step of GPT-2 124M instead of a CPU's."""
    return torch.cuda.is_available() and torch.version.cuda is not None


def bench_gpt2(args: argparse.Namespace, peers: dict[str, Path]) -> None:
    gpt2 = importlib.import_module("minilm.bench_gpt2")
    parts = GPT2_PARTS if args.parts is None else args.parts.split(",")
    path = Path(args.json or results_path("gpt2_training", device_name("cuda")))
    gpt2.run(peers, path, parts, args.rounds, show=lambda r: print(describe_row(r), flush=True))
    print(f"written to {path}")


def parse_peers(pairs: list[str]) -> dict[str, Path]:
    """["nanogpt=/some/folder"] → {"nanogpt": Path("/some/folder")}; ValueError for another form."""
    peers = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--peer: must be NAME=PATH, got {pair!r}")
        peers[name] = Path(path)
    return peers


def describe_row(r: dict) -> str:
    """One line of a results file for people."""
    shape = " ".join(f"{name} {value}" for name, value in r["shape"].items())
    line = f"{r['op']} ({r['pass']}; {shape}): {r['value']:,.4g} {r['unit']}"
    for name, peer in r["peers"].items():
        line += f", {name} {peer['value']:,.4g}"
    if r["goal"] is not None:
        line += f"; goal {r['goal']:,.4g}: {'met' if r['met'] else 'missed'}"
    return line
