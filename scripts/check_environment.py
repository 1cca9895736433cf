#!/usr/bin/env python
"""Say whether the packages of a requirements file are installed in the versions it asks for (exit code 0 or 1)."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OLDEST = (3, 10)


def missing(path):
    """Names of requirements in the file (and those it includes) that are not met here."""
    out = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r"):
            out += missing(Path(path).parent / line[2:].strip())
        elif line:
            name, _, least = line.partition(">=")
            try:
                if numbers(version(name.strip())) < numbers(least):
                    out.append(line)
            except PackageNotFoundError:
                out.append(line)
    return out


def numbers(text):
    """Leading numbers of a version: "2.6.0+cpu" -> [2, 6, 0]."""
    parts = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return parts


if __name__ == "__main__":
    if sys.version_info < OLDEST:
        sys.exit(1)
    lacking = missing(sys.argv[1])
    print("\n".join(lacking))
    sys.exit(1 if lacking else 0)
