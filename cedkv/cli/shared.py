"""What the arguments of several commands have in common. Nothing but argparse is imported."""

from __future__ import annotations

import argparse
import math

DEFAULT_EXPERIMENT = "cedkv"


def run(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Which run, in which store."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("run_id", nargs="?", metavar="RUN_ID", help="id of a run, or its beginning")
    which.add_argument("--latest", action="store_true", help="the newest run of the experiment")
    if several:
        which.add_argument("--all", action="store_true", help="every run of the experiment, a line each")
    parser.add_argument(
        "--experiment", metavar="NAME", help=f"default: {DEFAULT_EXPERIMENT}, or the run's own"
    )
    store(parser)


def store(parser: argparse.ArgumentParser) -> None:
    """Which store."""
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="store; default: MLFLOW_TRACKING_URI, else mlruns/"
    )


def model(parser: argparse.ArgumentParser, what: str) -> None:
    """Which model, and where it runs."""
    parser.add_argument("--model", metavar="NAME", help=f"folder, hub name or 'embedded': {what}")
    parser.add_argument("--device", default="auto", help="of the model: auto, cpu, cuda (%(default)s)")


def port(text: str) -> int:
    """A port."""
    number = int(text) if text.isdecimal() else 0
    if not 0 < number < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return number


def minutes(text: str) -> float:
    """Minutes, more than none."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes over 0")
    return number


def temperature(text: str) -> float:
    """A temperature of sampling, 0 for greedy."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a temperature, 0 or more")
    return number


def count(text: str) -> int:
    """A whole number from 1 up."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number
