"""Prints the one-file version: `python -m convt3d.export > model_new.py`."""

from __future__ import annotations

import argparse
import shlex
import sys

from convt3d.export.writer import IGNORED, write


def main() -> int:
    """Runs the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m convt3d.export", description=__doc__)
    parser.add_argument(
        "--init",
        metavar="NAME,...",
        help="the positional arguments of ModelNew in order, for example in_channels,out_channels,"
        f"kernel_size,stride,padding,dilation,bias; {IGNORED} takes one and ignores it; what is left out "
        "becomes keyword-only",
    )
    parser.add_argument(
        "--no-emulator", action="store_true", help="leave out what runs CPU tensors"
    )
    arguments = parser.parse_args()
    names = [] if arguments.init is None else [name.strip() for name in arguments.init.split(",")]
    command = shlex.join(["python", "-m", "convt3d.export", *sys.argv[1:]])
    try:
        text = write(names, not arguments.no_emulator, command)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
