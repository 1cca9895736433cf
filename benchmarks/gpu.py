#!/usr/bin/env python
"""Everything that is measured on a GPU: bash benchmarks/gpu.sh [--out DIR] [--minutes 8] [--parts PART ...]

Each part runs as a process of its own with a time limit; what it has found by then is kept, and a failure is a row.

right    tests on the device: kernels, graphs, descriptors, ranks, resumed trainings
step     training steps against the published way, and where the time of one goes
search   ranks of VIGOR's size, a mining plan of CVUSA's
data     an evaluation of CVUSA's size from a cache, and a training that the cache feeds
train    a training on a city made here: R@1 over time, and where the time goes

Writes gpu.json (all parts that have ever been run into DIR), gpu.md, step.png and train.png, and prints the table last.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.options import Parser, UserError, handle_errors, path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"right": 90, "step": 160, "search": 40, "data": 100, "train": 90}  # seconds of 8 minutes
PUBLISHED = {"ASAM, batch 32": 273.6, "AdamW, batch 32": 123.7, "AdamW, batch 128": 415.7}  # ms, one H100
GOALS = {  # on one H100
    "ASAM, batch 32, bfloat16": "45 ms",
    "AdamW, batch 128, bfloat16": "85 ms",
    "AdamW, batch 32, float32": "103 ms",
    "AdamW, batch 32, TensorFloat-32": "62 ms",
    "first step": "10 s",
    "first step, --compile": "60 s",
    "evaluation of CVUSA's size": "15 s",
    "ranks of VIGOR's size, trained": "1 s",
    "mining plan of CVUSA's size": "2 s",
    "fed from the cache, of the step's own speed": "90 %",
}
KERNELS = {  # kinds of kernels by parts of their names, the first that fits
    "depthwise": (
        "_convolve",
        "_sum_gradients",
        "conv2d_c1",
        "dgrad2d_c1",
        "wgrad2d_c1",
        "depthwise",
        "grouped_direct",
    ),
    "products": ("nvjet", "gemm", "gemv", "cutlass", "xmma", "splitK"),
    "norms": ("layer_norm", "GammaBeta", "native_layer_norm"),
    "optimiser": ("multi_tensor", "FusedAdam", "foreach"),
}


class Rows:
    """What a part finds, written as it comes."""

    def __init__(self, folder, part):
        self.file, self.rows, self.series, self.about = Path(folder) / f"{part}.json", [], {}, ""

    def add(self, what, value, unit="", note=""):
        self.rows.append({"what": what, "value": value, "unit": unit, "note": note})
        print(f"  {what}: {shown(value)} {unit} {note}".rstrip(), flush=True)
        self.save()

    def save(self):
        self.file.write_text(json.dumps({"about": self.about, "rows": self.rows, "series": self.series}))


def shown(value):
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}" if value else "0"


# The parts. Each takes (rows, device, toy, folder, seconds).


def right(rows, device, toy, folder, seconds):
    import pytest

    class Count:
        passed = failed = skipped = 0

        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.outcome == "skipped":
                setattr(self, report.outcome, getattr(self, report.outcome) + 1)
            if report.failed:
                rows.add(f"test {report.nodeid.split('::')[-1]}", 0, "", "FAILED")
                print(report.longreprtext[-2000:], flush=True)

    count = Count()
    chosen = ["-k", "fold or kernels"] if toy else []
    pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_cuda.py"), *chosen], plugins=[count])
    rows.add("tests passed", count.passed, "", f"{count.failed} failed, {count.skipped} skipped")


def step(rows, device, toy, folder, seconds):
    import torch

    from benchmarks.step import OurStep, PlainStep, make
    from utils.seeding import set_kernels

    set_kernels(deterministic=False)
    sizes = {"ground_size": (32, 128), "aerial_size": (64, 64)} if toy else {}
    modes = {"float32": ("none", False), "TensorFloat-32": ("none", True), "bfloat16": ("bf16", False)}
    first = True
    for batch, sam in ((32, True), (32, False), (128, False)):
        model, images = make("cvusa", 2 if toy else batch, device, **sizes)
        name = f"{'ASAM' if sam else 'AdamW'}, batch {batch}"
        plain = PlainStep(model, images, sam)
        plain()
        moments = plain.moments()
        reference, _ = median_step(plain, device, toy)
        note = f"published code, measured before: {PUBLISHED[name]} ms" if device.type == "cuda" else ""
        rows.add(f"{name}, plain", reference, "ms", note)
        del plain
        free(device)
        for mode, (amp, tf32) in modes.items():
            if sam and mode == "TensorFloat-32":
                continue
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            started, ours = time.time(), OurStep(model, images, amp, sam=sam)
            ours()
            synchronize(device)
            if first:
                rows.add("first step", time.time() - started, "s", "kernels compiled, graph recorded")
            first = False
            off = float((ours.moments() - moments).norm() / moments.norm())
            taken, megabytes = median_step(ours, device, toy)
            speed = f"{2 * len(images[0]) / taken * 1e3:,.0f} images/s"
            note = f"{reference / taken:.2f} x plain, {speed}, {megabytes:,.0f} MB, gradient off by {off:.1e}"
            rows.add(f"{name}, {mode}", taken, "ms", note)
            if mode == "bfloat16" and name != "AdamW, batch 32":
                profile(rows, ours, device, taken, name)
            del ours
            free(device)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        del model, images
        free(device)
    model, images = make("cvusa", 2 if toy else 32, device, **sizes)
    taken, _ = median_step(OurStep(model, images, "none", sam=False, fast=False), device, toy)
    rows.add("AdamW, batch 32, float32, without --fast-gpu", taken, "ms")
    taken, _ = median_step(OurStep(model, images, "bf16", fast=False), device, toy)
    rows.add("ASAM, batch 32, bfloat16, without --fast-gpu", taken, "ms")
    if toy:
        return
    started, ours = time.time(), OurStep(model, images, "bf16", compiled=True)
    ours()
    synchronize(device)
    rows.add("first step, --compile", time.time() - started, "s")
    taken, _ = median_step(ours, device, toy)
    rows.add("ASAM, batch 32, bfloat16, --compile", taken, "ms")
    profile(rows, ours, device, taken, "ASAM, batch 32, --compile")


def synchronize(device):
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def free(device):
    """Give the GPU's memory back, so that a way's peak is its own."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def median_step(function, device, toy, steps=12, before=5):
    """Median milliseconds of a step, and the peak memory in MB that it takes above the weights."""
    import torch

    for _ in range(1 if toy else before):
        function()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(2 if toy else steps):
        started = time.perf_counter()
        function()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    return sorted(times)[len(times) // 2], peak


def profile(rows, function, device, taken, name):
    """Where the time of a bfloat16 step goes, by kind of kernel."""
    if device.type != "cuda":
        return
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorder

    with recorder(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(2):
            function()
        synchronize(device)
    kinds = dict.fromkeys([*KERNELS, "the rest"], 0.0)
    events = [(event.key, event.self_device_time_total / 2e3) for event in trace.key_averages()]
    for kernel, milliseconds in events:
        kind = next((kind for kind, parts in KERNELS.items() if any(part in kernel for part in parts)), "the rest")
        kinds[kind] += milliseconds
    kinds["idle"] = max(0.0, taken - sum(kinds.values()))
    for kind, milliseconds in kinds.items():
        rows.add(f"of that, {kind}", milliseconds, "ms", name)
    top = sorted(events, key=lambda event: -event[1])[:40]
    rows.series[f"kernels, {name}"] = [(kernel[:160], round(milliseconds, 3)) for kernel, milliseconds in top]


def search(rows, device, toy, folder, seconds):
    import numpy as np
    import torch

    from benchmarks.evaluation import DIRECTIONS, SIZES
    from benchmarks.mining import ITEMS, filled_sampler
    from utils.metrics import rank_queries

    queries, gallery = (300, 500) if toy else SIZES["vigor"]
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    for name in ("trained", "random"):
        reference, labels = drawn(gallery, 3072), torch.randperm(gallery)[:queries]
        query = drawn(queries, 3072)
        if name == "trained":
            basis, place = drawn(DIRECTIONS, 3072), drawn(gallery, DIRECTIONS)
            reference += (place + 0.5 * drawn(gallery, DIRECTIONS)) @ basis
            query += (place[labels.to(device)] + 0.5 * drawn(queries, DIRECTIONS)) @ basis
        rank_queries(query[:100], reference, labels[:100])
        synchronize(device)
        started = time.perf_counter()
        ranks = rank_queries(query, reference, labels).positive
        taken = time.perf_counter() - started
        some = torch.arange(0, queries, max(1, queries // 200))
        q, r = (torch.nn.functional.normalize(x.double(), dim=1) for x in (query[some.to(device)], reference))
        similarity = q @ r.T
        exact = (similarity > similarity.gather(1, labels[some].to(device)[:, None])).sum(dim=1).cpu().numpy()
        note = f"{100 * np.mean(ranks[some] == exact):.1f} % of {len(some)} ranks equal float64's"
        rows.add(f"ranks of VIGOR's size, {name}", taken, "s", note)
        del reference, query, q, r, similarity
    items = 500 if toy else ITEMS["cvusa"]
    sampler = filled_sampler(items, 3072, device, True)
    queue = sampler.queue
    for _ in range(2):
        sampler.queue = queue
        started = time.perf_counter()
        sampler.plan(1)
    rows.add("mining plan of CVUSA's size", time.perf_counter() - started, "s")


def make_city(folder, toy):
    """A city in the CVUSA layout, made on all cores if it is not there."""
    count = ("24", "12") if toy else ("3000", "500")
    run_script("make_city.py", "--layout", "cvusa", "--out", folder, "--train", count[0], "--test", count[1])


def run_script(name, *arguments):
    subprocess.run([sys.executable, ROOT / "scripts" / name, *map(str, arguments)], check=True, stdout=sys.stderr)


def linked(city, folder, count):
    """As many training and test pairs as `count` says, in CVUSA's layout: hard links to the city's images."""
    for split, pairs in count.items():
        lines = [line.split(",")[:2] for line in (city / "splits" / f"{split}-19zl.csv").read_text().split()]
        new = []
        for i in range(pairs):
            names = []
            for name in lines[i % len(lines)]:
                target = folder / Path(name).parent / f"{split}{i:06d}{Path(name).suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    os.link(city / name, target)
                names.append(str(target.relative_to(folder)))
            new.append(",".join([*names, "0"]))
        (folder / "splits").mkdir(parents=True, exist_ok=True)
        (folder / "splits" / f"{split}-19zl.csv").write_text("\n".join(new) + "\n")


def common(device, root, out, cache, toy):
    how = "-j 8 --amp bf16"
    if toy:
        how = "--ground-size 32 128 --aerial-size 64 64 --arch test_convnext -j 1"
    return [
        *f"--dataset cvusa --data-root {root} --save_path {out} --cache {cache} --device {device.type}".split(),
        *f"--pretrained none --layer-scale 0.1 --seed 0 --lr 0.001 --wd 0.03 --print-freq 20 {how}".split(),
    ]


def data(rows, device, toy, folder, seconds):
    import train

    city, root, cache = folder / "city", folder / "linked", folder / "cache"
    make_city(city, toy)
    linked(city, root, {"train": 16, "val": 12} if toy else {"train": 4096, "val": 8884})
    flags = common(device, root, folder / "fed", cache, toy)
    started = time.time()
    sizes = ["--ground-size", "32", "128", "--aerial-size", "64", "64"] if toy else []
    run_script("build_cache.py", *flags[:4], "--cache", cache, *sizes)
    rows.add("cache filled", time.time() - started, "s", "decoded and resized once")
    batch = 4 if toy else 32
    for workers in (1,) if toy else (8, 16):
        rows.add(f"loader alone, -j {workers}", loader_speed([*flags, "-j", str(workers)], batch, device), "images/s")
    recipe = ["--op", "sam", "--asam", "--rho", "2.5", "--batch-size", str(batch), "--eval-every", "9", "--mining"]
    seen, evaluated = {}, []
    train_step, evaluate = train.train_step, train.evaluate_and_record

    def alone(*args):
        """The training's own last step, repeated: its speed with nothing to wait for."""
        result = train_step(*args)
        seen["args"] = args
        return result

    def timed(*args):
        started = time.time()
        result = evaluate(*args)
        evaluated.append(time.time() - started)
        return result

    train.train_step, train.evaluate_and_record = alone, timed
    try:
        train.main([*flags, *recipe, "--epochs", "2"])
        taken, _ = median_step(lambda: train_step(*seen["args"]), device, toy)
    finally:
        train.train_step, train.evaluate_and_record = train_step, evaluate
    lines = [json.loads(line) for line in (folder / "fed" / "metrics.jsonl").read_text().splitlines()]
    speed, own = lines[-1]["images_per_second"], 2e3 * batch / taken
    rows.add("step alone", own, "images/s")
    rows.add("fed from the cache, of the step's own speed", 100 * speed / own, "%", f"{speed:,.0f} images/s, epoch 2")
    images = lines[-1].get("gallery", 12 if toy else 8884)
    rows.add("evaluation of CVUSA's size", evaluated[-1], "s", f"{images:,} + {images:,} images, in a training")


def loader_speed(flags, batch, device):
    """Images per second of a training's loader, from the cache to the device, with nothing else to do."""
    from dataset.build import build_datasets
    from utils.loading import Feed
    from utils.options import parse_args

    args = parse_args(flags)
    pairs = build_datasets(args, pixels=True)[0]
    feed = Feed([pairs], args, device)
    plan = [range(first, first + batch) for first in range(0, len(pairs) - batch + 1, batch)]
    for _ in range(2):  # the first pass starts the processes
        started = time.time()
        for ground, aerial, _ in feed.batches(pairs, plan):
            pairs.to_device(ground, device), pairs.to_device(aerial, device)
        synchronize(device)
    return 2 * batch * len(plan) / (time.time() - started)


def train_city(rows, device, toy, folder, seconds):

    import train

    city = folder / "city"
    make_city(city, toy)
    began = time.time()
    marks, first = [], []
    rows.series["R@1 over time"] = marks
    spent = {"planning": 0.0, "evaluation": 0.0, "checkpoints": 0.0}

    def timed(name, function):
        def call(*args, **kwargs):
            synchronize(device)
            started = time.time()
            result = function(*args, **kwargs)
            spent[name] += time.time() - started
            if name == "evaluation":
                marks.append((time.time() - began, (result or {}).get("R@1", 0.0)))
                rows.add("R@1 so far", marks[-1][1], "%", f"after {marks[-1][0]:.0f} s")
            return result

        return call

    train_step = train.train_step

    def stepped(*args):
        result = train_step(*args)
        if not first:
            synchronize(device)
            first.append(time.time() - began)
        stepped.args = args
        return result

    kept = train.plan_epoch, train.evaluate_and_record, train.save_training, train.train_step
    train.plan_epoch, train.train_step = timed("planning", train.plan_epoch), stepped
    train.evaluate_and_record = timed("evaluation", train.evaluate_and_record)
    train.save_training = timed("checkpoints", train.save_training)
    batch, epochs = (4, 2) if toy else (64, max(4, int(seconds / 8)))
    recipe = ["--op", "adamw", "--cos", "--mining", "--augment", "--batch-size", str(batch), "--epochs", str(epochs)]
    every = ["--eval-every", "1" if toy else "3"]
    try:
        metrics = train.main([*common(device, city, folder / "trained", folder / "cache", toy), *recipe, *every])
        total = time.time() - began
        taken, _ = median_step(lambda: train_step(*stepped.args), device, toy)
    finally:
        train.plan_epoch, train.evaluate_and_record, train.save_training, train.train_step = kept
    lines = [json.loads(line) for line in (folder / "trained" / "metrics.jsonl").read_text().splitlines()]
    in_epochs = sum(line["seconds"] for line in lines)
    count = sum(line["seconds"] * line["images_per_second"] for line in lines) / (2 * batch)
    shares = {"starting": first[0], "steps": count * taken / 1e3, **spent}
    shares["waiting for data, and the rest"] = max(0.0, total - sum(shares.values()))
    rows.add(
        "training on a city, R@1", metrics["R@1"], "%", f"of 500, {epochs} epochs of 3,000 places in {total:.0f} s"
    )
    rows.add("images per second, in all epochs", 2 * batch * count / in_epochs)
    for name, value in shares.items():
        rows.add(f"of the training's time: {name}", 100 * value / total, "%", f"{value:.1f} s")
    rows.save()


FUNCTIONS = {"right": right, "step": step, "search": search, "data": data, "train": train_city}


# The processes, and what is made of their rows.


def child(part, args):
    from utils.distributed import choose_device

    rows = Rows(args.scratch, part)
    rows.save()
    device, started = choose_device(args.device), time.time()
    rows.about = about(args.device)
    FUNCTIONS[part](rows, device, args.toy, args.scratch, args.seconds)
    rows.add(f"part {part}", time.time() - started, "s", "in all")


def run_parts(args):
    """Run each part; merge what they found into gpu.json."""
    for folder in (args.out, args.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    summary = args.out / "gpu.json"
    found = json.loads(summary.read_text()) if summary.exists() else {}
    for part in args.parts:
        limit = PARTS[part] * args.minutes / 8
        print(f"{part} (at most {limit:.0f} s)", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu", "--child", part, "--scratch", str(args.scratch)]
        command += ["--device", args.device, "--seconds", str(limit), *(["--toy"] if args.toy else [])]
        failed = None
        with open(log_file := args.scratch / f"{part}.log", "w") as log:
            try:
                code = subprocess.run(command, cwd=ROOT, stderr=log, timeout=limit).returncode
                failed = f"ended with code {code}, see {log_file}" if code else None
                if code == 2:  # the user's mistake, such as a GPU that is not there
                    raise UserError(log_file.read_text().strip().splitlines()[-1].partition(": ")[2])
            except subprocess.TimeoutExpired:
                failed = f"ended after its {limit:.0f} s"
        result = json.loads((args.scratch / f"{part}.json").read_text())
        found[part] = result | {"failed": failed}
        summary.write_text(json.dumps(found, indent=1))
        if failed:
            print(f"  {part} {failed}\n" + log_file.read_text()[-1500:], flush=True)
    table = markdown(found)
    (args.out / "gpu.md").write_text(table)
    draw(found, args.out)
    print("\n" + table)
    return found


def about(device):
    from benchmarks.__main__ import machine
    from utils.logging import versions

    return f"{machine(device)}; {versions()}"


def markdown(found):
    lines = []
    for part, result in found.items():
        lines += [f"\n{result['about']}", "", f"| {part} | | goal | |", "|---|---|---|---|"]
        for row in result["rows"]:
            value = f"{shown(row['value'])} {row['unit']}".strip()
            lines.append(f"| {row['what']} | {value} | {GOALS.get(row['what'], '')} | {row['note']} |")
        if result["failed"]:
            lines.append(f"| **{part}** | {result['failed']} | | |")
    return "\n".join(lines) + "\n"


def draw(found, out):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = found.get("step", {}).get("rows", [])
    bars = [(row["what"], row["value"]) for row in rows if row["unit"] == "ms" and "batch" in row["what"]]
    marks = found.get("train", {}).get("series", {}).get("R@1 over time", [])
    if bars:
        figure, axis = plt.subplots(figsize=(8, 0.35 * len(bars) + 1))
        axis.barh([name for name, _ in bars], [value for _, value in bars], color="C0")
        axis.invert_yaxis()
        axis.set(xlabel="milliseconds a step")
        figure.tight_layout()
        figure.savefig(out / "step.png", dpi=130)
    if marks:
        figure, axis = plt.subplots(figsize=(5, 3.4))
        axis.plot(*zip(*marks, strict=True), "o-", color="C3")
        axis.set(xlabel="seconds", ylabel="R@1 (%)", ylim=(0, 100))
        axis.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(out / "train.png", dpi=130)


def main(argv=None):
    parser = Parser(__doc__, prog="benchmarks/gpu.sh")
    parser.add_argument(
        "--out", type=path, default=ROOT / "runs" / "gpu", help="folder for results (default: runs/gpu)"
    )
    parser.add_argument("--scratch", type=path, help="folder for logs and data, 6 GB (default: scratch in --out)")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together (default: 8)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--child", choices=PARTS, help="run this part in this process")
    parser.add_argument("--seconds", type=float, default=60.0, help="time of --child")
    args = parser.parse_args(argv)
    args.out = args.out.expanduser().resolve()
    args.scratch = (args.scratch or args.out / "scratch").expanduser().resolve()
    with handle_errors("benchmarks/gpu.sh"):
        return child(args.child, args) if args.child else run_parts(args)


if __name__ == "__main__":
    main()
