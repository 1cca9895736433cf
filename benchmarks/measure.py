"""Time and peak memory of a function, in this process; two ways of one thing in turns."""

import ctypes
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from utils.distributed import choose_device
from utils.logging import on_terminal
from utils.options import Parser, UserError, handle_errors


class Measure(NamedTuple):
    """What one call took. megabytes: peak memory above the start, of the process (Linux) or of the GPU."""

    result: object
    seconds: float
    megabytes: float


def measured(function, device="cpu"):
    """Call the function once. Returns a `Measure`."""
    gpu = torch.device(device).type == "cuda"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = _start_watching()
    started = time.perf_counter()
    result = function()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if gpu else (_status("VmHWM") - before) / 1024
    return Measure(result, seconds, peak)


def in_turns(ways, rounds=3, device="cpu"):
    """Call each of {name: function} `rounds` times, in turns. Returns {name: the fastest call's Measure}."""
    best = {}
    for turn in range(rounds):
        for name, function in ways.items():
            say(f"{name}, {turn + 1} of {rounds}")
            measure = measured(function, device)
            if name not in best or measure.seconds < best[name].seconds:
                best[name] = measure._replace(megabytes=max(measure.megabytes, best.get(name, measure).megabytes))
    say("")
    return best


def print_table(doc, sizes, run, argv=None):
    """Run a benchmark from the command line: --scale, one of `sizes`, and --device; print its lines as a table."""
    parser = Parser(doc)
    parser.add_argument("--scale", default="small", choices=sizes)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    with handle_errors(parser.prog):
        device = choose_device(args.device).type
        print(HEADER)
        for line in run(args.scale, device):
            print(line, flush=True)


def save_plot(figure, out):
    """Write a matplotlib figure to OUT.png and OUT.pdf, in a folder that is made if it is missing."""
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for ending in ("png", "pdf"):
            figure.savefig(out.with_name(f"{out.name}.{ending}"), dpi=130)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error}); pass another --out") from error
    print(f"wrote {out}.png and .pdf")


def say(text):
    """A line on a terminal that the next one overwrites."""
    if on_terminal():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def row(what, plain, ours, same):
    """A line of the table: what, seconds and MB of both, ratios, and whether the results are the same."""
    less = f"{plain.megabytes / max(ours.megabytes, 1):.1f} x" if plain.megabytes >= 1 else ""
    return (
        f"| {what} | {plain.seconds:.2f} s, {plain.megabytes:,.0f} MB | {ours.seconds:.2f} s, {ours.megabytes:,.0f} MB "
        f"| {plain.seconds / ours.seconds:.1f} x | {less} | {same} |"
    )


HEADER = "| | plain | here | faster | less memory | same result |\n|---|---|---|---|---|---|"


def _start_watching():
    """Resident memory in kB, with the peak reset and freed memory given back, so that it is not counted as in use."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])
