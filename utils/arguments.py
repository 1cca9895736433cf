"""What train.py and the command-line tools share: a parser, and mistakes that are told in one sentence with code 2."""

import argparse
import os
import sys
from contextlib import contextmanager

from utils.errors import UserError, told


class Parser(argparse.ArgumentParser):
    """A parser that keeps the line breaks of its description and answers a mistake with one sentence."""

    def __init__(self, description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs):
        super().__init__(description=description, formatter_class=formatter_class, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} ({self.prog} -h explains the flags)\n")


@contextmanager
def mistakes_told(program, interrupted="interrupted"):
    """Turn a `UserError`, or a file that cannot be used, into one sentence and exit code 2, Ctrl-C into `interrupted`
    (a text, or a function that gives it) and 130."""
    try:
        yield
    except BrokenPipeError:  # whoever reads has seen enough, though work may be left: the shell's code for it
        _drop_output()
        raise SystemExit(141) from None
    except (UserError, OSError) as error:
        print(f"{program}: {told(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{program}: {interrupted() if callable(interrupted) else interrupted}", file=sys.stderr)
        raise SystemExit(130) from None
    try:
        if sys.stdout is not None:  # closed by `>&-`
            sys.stdout.flush()
    except BrokenPipeError:  # all is done
        _drop_output()


def on_terminal():
    """Whether there is someone to see a progress bar."""
    return sys.stderr is not None and sys.stderr.isatty()  # None: closed by `2>&-`


def _drop_output():
    """Let Python's own flush at its end find somewhere to write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def positive(text):
    """A flag's whole number of at least 1."""
    return _at_least(1, text)


def natural(text):
    """A flag's whole number of at least 0."""
    return _at_least(0, text)


def share(text):
    """A flag's number from 0 up to, but not, 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def _at_least(least, text):
    if not (text.isdecimal() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)
