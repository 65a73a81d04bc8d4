"""The command ``anem``: one module a command, each a dataclass of its options with a method ``run``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from itertools import takewhile
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, subcommand

import anem
from anem.cli.audit import Audit
from anem.cli.bench import Bench
from anem.cli.diagnose import Diagnose
from anem.cli.estimate import Estimate
from anem.cli.logprob import LogProb
from anem.cli.models import Models
from anem.cli.restore import Restore
from anem.cli.sample import Sample
from anem.cli.train import Train

__all__ = ["main"]

ABOUT = """Restore images, with posterior samples and log-probabilities from one learned energy U(y, Σ).

Try: anem restore --task inpaint-box"""

COMMANDS = {
    "restore": Restore,
    "logprob": LogProb,
    "estimate": Estimate,
    "diagnose": Diagnose,
    "sample": Sample,
    "audit": Audit,
    "models": Models,
    "train": Train,
    "bench": Bench,
}

Command = (
    Annotated[Restore, subcommand("restore", description="draw restorations of degraded images")]
    | Annotated[LogProb, subcommand("logprob", description="log-probability of images, in nats and bits/dim")]
    | Annotated[Estimate, subcommand("estimate", description="find out how an image was degraded")]
    | Annotated[Diagnose, subcommand("diagnose", description="log-probability of restorations, from any method")]
    | Annotated[Sample, subcommand("sample", description="draw images from a model's prior")]
    | Annotated[Audit, subcommand("audit", description="check that a model is a density")]
    | Annotated[Models, subcommand("models", description="list the bundled models")]
    | Annotated[Train, subcommand("train", description="train a model")]
    | Annotated[Bench, subcommand("bench", description="measure a claim about the package")]
)
"""All commands, with a line each for the overview; a command's own help shows its docstring."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; ``arguments`` default to those of the process.

    Returns the exit code: 0 done, 1 a bench or an audit missed an aim, 2 unusable input (one line on stderr says what), 130 interrupted,
    141 nobody reads the output.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    share_the_machine()
    if arguments == ["--version"]:
        print(f"anem {anem.__version__}")
        return 0
    try:
        return parse(arguments or ["--help"]).run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print("anem: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; give the interpreter's last flush somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        print(f"anem: error: {one_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        from anem.sample.posterior import out_of_memory

        if not out_of_memory(error):
            raise
        print(f"anem: error: out of memory; fewer or smaller images, or samples, need less ({one_line(error)})", file=sys.stderr)
        return 2


def share_the_machine() -> None:
    """Let waiting threads sleep soon, unless the environment says how they wait or torch is loaded, which has read it.

    By default GNU OpenMP's threads turn for milliseconds at the end of every operation. Where something else takes a part of the processor
    they hold up the thread they wait for: ``anem restore`` on two cores beside another process took 215 s, and 8 s so (alone 4.0, 4.3 s).
    """
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def parse(arguments: Sequence[str]) -> Restore | LogProb | Estimate | Diagnose | Sample | Audit | Models | Train | Bench:
    """The command that the arguments describe; exits with code 0 after help.

    Raises:
        ValueError: they do not parse.
    """
    known = arguments[0] in COMMANDS
    prog = f"anem {arguments[0]}" if known else "anem"
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            if known:
                return tyro.cli(COMMANDS[arguments[0]], args=arguments[1:], prog=prog, config=(FlagCreatePairsOff,))
            return tyro.cli(Command, args=arguments, prog=prog, description=ABOUT, config=(FlagCreatePairsOff,))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_gist(said.getvalue())} (see {prog} --help)") from None


def _gist(framed: str) -> str:
    """The first paragraph of what tyro says in a frame; all of it if there is no frame."""
    inside = [line.strip("│ ") for line in framed.splitlines() if line.startswith("│")]
    return " ".join(takewhile(lambda line: not line.startswith("─"), inside)) or framed


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
