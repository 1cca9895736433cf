"""What the command-line tools share: a parser and mistakes that are told in one sentence, with exit code 2."""

import argparse
import sys
from contextlib import contextmanager

from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose -h shows a module's docstring, and which answers a mistake with one sentence."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} ({self.prog} -h explains the flags)\n")


@contextmanager
def mistakes_told(program):
    """Turn a `UserError` into one sentence on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"{program}: {error.sentence()}", file=sys.stderr)
        raise SystemExit(2) from None


def positive(text):
    """A flag's whole number of at least 1."""
    return _at_least(1, text)


def natural(text):
    """A flag's whole number of at least 0."""
    return _at_least(0, text)


def _at_least(least, text):
    if not (text.isdecimal() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)
