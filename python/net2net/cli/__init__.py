"""The command `net2net`. A subcommand is a file here with a `COMMAND`: its arguments and the function that does it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from net2net.cli import bench, demo, doctor, grow, inspect, reproduce, train
from net2net.cli.command import Command

COMMANDS: tuple[Command, ...] = tuple(
    module.COMMAND for module in (demo, train, grow, reproduce, inspect, bench, doctor)
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return the exit status.

    0: done; 1: it could not be done, with the reason on stderr; 2: a wrong command line; 130: interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        return args.command.run(args)
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        print(f"net2net {args.command.name}: error: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"net2net {args.command.name}: error: not enough memory. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"net2net {args.command.name}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="net2net",
        description="Grow trained networks wider and deeper without changing what they compute.",
        epilog="example: net2net demo --out runs/demo",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(
            command.name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(command=command)
    return parser
