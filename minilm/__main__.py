"""The command line: `minilm …`, or `python -m minilm …`.

Exit codes: 0 done; 1 `doctor` found something to mend; 2 bad input or a bad environment, with one
line on standard error; 130 Ctrl-C. With MINILM_TRACEBACK=1 in the environment an error shows where
it comes from.
"""

import argparse
import os
import sys
from typing import NoReturn

import torch

from . import command_bench, command_train, commands

# What a user can cause; anything else is a bug and keeps its traceback.
EXPECTED = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)
EXPECTED += (torch.OutOfMemoryError,)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ValueError where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and flags."""
    parser = Parser(
        prog="minilm", description="A GPT-style language model, step by step, on a laptop."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_tokenizer(subparsers)
    command_train.add_train(subparsers)
    commands.add_eval(subparsers)
    commands.add_generate(subparsers)
    command_bench.add_bench(subparsers)
    commands.add_doctor(subparsers)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; `argv` as in sys.argv[1:]. Returns the exit code."""
    for channel in (sys.stdout, sys.stderr):
        if hasattr(channel, "reconfigure"):  # a Windows pipe cannot write every character
            channel.reconfigure(errors="replace")
    try:
        args = build_parser().parse_args(argv)
        return args.run(args)
    except KeyboardInterrupt as stop:  # `train` says in it how to go on
        print(f"\nminilm: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone: nothing to say, nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except EXPECTED as error:
        if os.environ.get("MINILM_TRACEBACK"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"minilm: {message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
