# Sourced by the other scripts: finds or makes an environment that satisfies a requirements file.
#
#   source scripts/setup.sh requirements.txt
#
# An active environment that satisfies the file is used as it is; else .venv in the repository is made (or completed).
# Afterwards $PYTHON is the interpreter to use. Python >= 3.10.

requirements=$1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

satisfied() { # PYTHON: whether it is new enough and has the packages; packaging comes with matplotlib, which is required
    "$1" - "$requirements" >/dev/null 2>&1 <<'CODE'
import sys
from importlib.metadata import version
from pathlib import Path
from packaging.requirements import Requirement

def check(file):
    for line in filter(None, (line.split("#")[0].strip() for line in file.read_text("utf-8").splitlines())):
        if line.startswith("-r"):
            check(file.parent / line[2:].strip())
        else:
            needed = Requirement(line)
            assert needed.specifier.contains(version(needed.name), prereleases=True)

assert sys.version_info >= (3, 10)
check(Path(sys.argv[1]))
CODE
}

PYTHON=$(command -v python3 || command -v python || true)
if [ -z "$PYTHON" ]; then
    echo "Python is not installed; install Python 3.10 or newer." >&2
    exit 2
fi
if ! satisfied "$PYTHON"; then
    if [ ! -x .venv/bin/python ] && ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "$("$PYTHON" -V) is too old; install or activate Python 3.10 or newer." >&2
        exit 2
    fi
    if ! satisfied .venv/bin/python; then
        echo "Setting up .venv with $requirements (torch is some GB; this takes minutes, once)."
        [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv || {
            echo "A virtual environment could not be made; install Python's venv module, or activate an environment" \
                "with $requirements." >&2
            exit 2
        }
        # The tested versions where they can be had, else any that the requirements allow.
        .venv/bin/python -m pip install --disable-pip-version-check -q -r "$requirements" -c constraints.txt ||
            .venv/bin/python -m pip install --disable-pip-version-check -q -r "$requirements" || {
            echo "The packages of $requirements could not be installed; see pip's words above." >&2
            exit 2
        }
    fi
    PYTHON="$PWD/.venv/bin/python"
    echo "Using .venv; for commands of your own: source .venv/bin/activate"
fi
