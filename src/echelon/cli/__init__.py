"""The command line: one verb, one file. This module only finds the verb and turns errors into exit codes.

Exit codes: 0 done; 1 echelon could not do it (one line on stderr); 2 a wrong verb, flag, name or value (one line on
stderr, nothing written); 130 interrupted. Anything else that goes wrong is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from echelon.errors import EchelonError, UsageError, unknown

VERBS = {
    "demo": "make data, train a hierarchy beside a flat baseline, write a report (minutes)",
    "systems": "list the systems with their status and claims",
    "train": "train a system:            echelon train ota --env pointmaze-large-stitch-v0",
    "resume": "continue an unfinished run: echelon resume runs/ota-pointmaze-large-stitch-v0/seed-0",
    "eval": "evaluate a trained run again, with as many episodes as you like",
    "view": "write and open the report of a run: levels, subgoals, curves, success",
    "site": "write every system with its status, claims and results as static pages",
    "reproduce": "run a system's claims against their baselines and record the verdicts",
    "compare": "compare runs: means, intervals, probability of improvement",
    "data": "list, make, fetch, import, describe and verify data sets",
    "doctor": "check this machine and installation, with a remedy for each problem",
}

OVERVIEW = """\
echelon {version}: hierarchical reinforcement learning, from motor control to language agents

usage: echelon VERB [arguments]      echelon VERB --help explains one verb

{verbs}

Every verb that prints a result takes --json. Ctrl-C stops a run at a point from which resume continues it exactly."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = dispatch(args)
        sys.stdout.flush()  # here, where a reader that left is noticed and forgiven
        return code
    except UsageError as error:
        return complain(error, 2)
    except EchelonError as error:
        return complain(error, 1)
    except KeyboardInterrupt:
        print("echelon: interrupted; the same command again goes on where this one stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing more to say
        return 0


def dispatch(args: list[str]) -> int:
    """Call the verb that `args` begins with."""
    if args[:1] == ["help"] and len(args) > 1:
        args = [args[1], "--help"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if args[0] in ("-V", "--version", "version"):
        print(version())
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    return importlib.import_module(f"echelon.cli.{verb}").run(rest)


def overview() -> str:
    """The text of `echelon --help`."""
    return OVERVIEW.format(version=version(), verbs="\n".join(f"  {verb:<10} {text}" for verb, text in VERBS.items()))


def version() -> str:
    """The version of the installed package."""
    from echelon import __version__

    return __version__


def complain(error: EchelonError, code: int) -> int:
    """Print `error` as one line on stderr and return `code`."""
    print(f"echelon: {' '.join(str(error).split())}", file=sys.stderr)
    return code
