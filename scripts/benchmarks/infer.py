"""Sliding-window inference beside MONAI and nnU-Net: seconds, memory, share of the matrix peak; --memory, --many."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.options import add_filters, benchmark_parser
from benchmarks.peers import as_precise, run_peer
from benchmarks.timing import machine, median, table
from segment.errors import InputError
from segment.files import read_json, write_json
from segment.inference.tiles import axis_starts
from segment.model.hardware import read_cpu_flags, resolve_precision

HERE = Path(__file__).parent
ROUNDS = 5  # ours and each peer take turns, in processes of their own: a machine that slows down slows all
CHANNELS = 2
LARGE = (512, 512, 600)  # voxels of the scan of --memory
LARGE_WINDOW = 128
LARGE_FILTERS = ("4", "8", "16")  # small: the memory of the scan is what is measured there
SCANS = 20  # of --many
MIB_PER_GIB = 1024.0


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark and prints its tables."""
    parser = benchmark_parser("infer", __doc__, "", "--memory")
    parser.add_argument("--windows", type=int, nargs="+", default=[64, 96], help="their sizes (default: 64 96)")
    parser.add_argument("--shape", type=int, nargs=3, default=[182, 218, 182], help="voxels of the scan")
    parser.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows (default: 0.5)")
    add_filters(parser)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"scans of each tool (default: {ROUNDS})")
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[1, 4], help="of MONAI (default: 1 4)")
    parser.add_argument("--no-peers", action="store_true", help="leave MONAI and nnU-Net out")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--memory", action="store_true", help="peak memory of a whole command on a 512x512x600 scan")
    what.add_argument("--many", action="store_true", help=f"share of the wall time that computes, over {SCANS} scans")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args(arguments)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            result = large_scan(options, Path(folder))
        elif options.many:
            result = many_scans(options, Path(folder))
        else:
            result = {"machine": machine(), "windows": [one_window(options, window) for window in options.windows]}
    if options.output is not None:
        write_json(options.output, result)
    return 0


def one_window(options: argparse.Namespace, window: int) -> dict[str, Any]:
    """Every tool on the same scan with one size of window; prints the table."""
    common = [
        *("--window", str(window), "--overlap", str(options.overlap), "--channels", str(CHANNELS), "--repeats", "1"),
        *("--shape", *map(str, options.shape), "--filters", *map(str, options.filters)),
    ]
    tools: dict[str, list[str]] = {"ours": []}
    if not options.no_peers:
        tools |= {f"MONAI, batch {n}": ["--tool", "monai", "--batch", str(n)] for n in options.peer_batches}
        tools["nnU-Net"] = ["--tool", "nnunet", "--batch", "1"]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in tools}
    for _ in range(options.rounds):
        for name, own in tools.items():
            if name == "ours":
                runs[name].append(run_own(*common))
            else:
                precise = as_precise(runs["ours"][0]["precision"])
                runs[name].append(run_peer("peer_infer.py", *common, *own, *precise))
    result = {name: _figures(found) for name, found in runs.items()}
    starts = [len(axis_starts(size, window, options.overlap)) for size in options.shape]
    gflop = runs["ours"][0]["gflop_per_window"] * int(np.prod(starts))
    peak = median([found["matmul_tflops"] for found in runs["ours"]])
    _print_window(options, window, starts, result, gflop / 1e3, peak)
    versions = sorted({part for found in runs.values() for part in found[0]["versions"].split(", ")})
    print(f"\nmedians of {options.rounds}; {runs['ours'][0]['precision']}; {', '.join(versions)}\n")
    return {"window": window, "windows": starts, "matmul_tflops": peak, "tools": result, "runs": runs}


def run_own(*arguments: str) -> Any:
    """Runs own_infer.py and returns its JSON. Raises InputError with its last words when it fails."""
    command = [sys.executable, str(HERE / "own_infer.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode:
        raise InputError(f"own_infer.py failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else None


def _environment() -> dict[str, str]:
    paths = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # On the CPU, as the peers are.
    own = {"PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    return {**os.environ, **own}


def _figures(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        "seconds": median([second for found in runs for second in found["seconds"]]),
        "above_imports_mib": median([found["peak_mib"] - found["imports_mib"] for found in runs]),
        "peak_mib": median([found["peak_mib"] for found in runs]),
    }


def _print_window(
    options: argparse.Namespace,
    window: int,
    starts: Sequence[int],
    result: dict[str, dict[str, float]],
    tflop: float,
    peak: float,
) -> None:
    size = "x".join(map(str, options.shape))
    print(f"\n{size} x {CHANNELS}, window {window}^3, overlap {options.overlap:g}: {np.prod(starts)} windows, ", end="")
    print(f"{'-'.join(map(str, options.filters))}; matrix multiply {peak:.3f} TFLOP/s\n")
    ours = result["ours"]
    rows = [
        [
            name,
            found["seconds"],
            f"{tflop / found['seconds'] / peak:.0%}",
            f"{found['seconds'] / ours['seconds']:.2f}",
            round(found["above_imports_mib"]),
            f"{found['above_imports_mib'] / ours['above_imports_mib']:.2f}",
            round(found["peak_mib"]),
        ]
        for name, found in result.items()
    ]
    columns = ["", "s", "share of peak", "times ours", "MiB above imports", "times ours", "MiB in all"]
    print(table(columns, rows))


def large_scan(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak memory of `segment infer` and of the same in MONAI, from file to file, on one large int16 scan."""
    scan = folder / "large_0000.nii.gz"
    write_scan(scan, LARGE, seed=0)
    common = ["--window", str(LARGE_WINDOW), "--overlap", "0.0", "--channels", "1", "--repeats", "1"]
    common += ["--shape", *map(str, LARGE), "--filters", *LARGE_FILTERS]
    run_own(*common, "--write-run", str(folder / "run"))
    seconds = run_command(folder / "run", scan, folder / "out")
    (case,) = read_json(folder / "out" / "manifest.json")["cases"].values()
    rows = [["ours", case["peak_memory_mib"] / MIB_PER_GIB, seconds]]
    if not options.no_peers:
        cpu = resolve_precision("auto", compute_capabilities=[], cpu_flags=read_cpu_flags())
        peer = ["--tool", "monai", "--batch", "1", "--scan", str(scan), *as_precise(cpu)]
        found = run_peer("peer_infer.py", *common, *peer)
        rows.append(["MONAI", found["peak_mib"] / MIB_PER_GIB, found["seconds"][0]])
    print(f"\n{'x'.join(map(str, LARGE))} int16 .nii.gz, one channel, to a written mask\n")
    print(table(["", "peak, GiB", "s"], rows))
    return {"machine": machine(), "shape": LARGE, "rows": rows}


def many_scans(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Share of the wall time in which the networks compute, from the first scan's start to the last one's mask."""
    images = folder / "images"
    for number in range(SCANS):
        for channel in range(CHANNELS):
            write_scan(images / f"scan{number:02d}_{channel:04d}.nii.gz", options.shape, seed=2 * number + channel)
    window = options.windows[0]
    run_own(
        *("--window", str(window), "--overlap", str(options.overlap), "--channels", str(CHANNELS), "--repeats", "1"),
        *("--shape", *map(str, options.shape), "--filters", *map(str, options.filters)),
        *("--write-run", str(folder / "run")),
    )
    wall = run_command(folder / "run", images, folder / "out")
    cases = read_json(folder / "out" / "manifest.json")["cases"].values()
    stages = {name: sum(case["seconds"][name] for case in cases) for name in ("read", "predict", "write")}
    records = sorted((folder / "out" / "masks").glob("*.nii.gz"), key=lambda path: path.stat().st_mtime)
    first, last = records[0].stat().st_mtime, records[-1].stat().st_mtime
    between = last - first  # of the steady state: loading TensorFlow and the first scan's reading are not in it
    computing = sum(case["seconds"]["predict"] for case in list(cases)[1:])
    print(f"\n{SCANS} scans of {'x'.join(map(str, options.shape))} x {CHANNELS}, window {window}^3\n")
    rows = [
        ["whole command", wall, f"{stages['predict'] / wall:.0%}"],
        ["from the first mask to the last", between, f"{computing / between:.0%}"],
    ]
    print(table(["", "wall, s", "the network computes"], rows))
    print(f"\nreading {stages['read']:.1f} s and writing {stages['write']:.1f} s beside it, {SCANS / wall:.2f} scans/s")
    return {"machine": machine(), "wall": wall, "between": between, "stages": stages}


def run_command(run: Path, source: Path, output: Path) -> float:
    """Runs `segment infer` in a process of its own. Returns its wall seconds. Raises InputError when it fails."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, str(HERE.parent / "infer.py"), "--run", str(run), "--input", str(source)]
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False, env=_environment()
    )
    if done.returncode:
        raise InputError(f"infer.py failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return time.perf_counter() - begun


def write_scan(path: Path, shape: Sequence[int], *, seed: int) -> None:
    """A round body of noise in air, int16, compressed fast."""
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = (np.linspace(-1, 1, size) for size in shape[:2])
    body = (x[:, None] ** 2 + y**2) < 0.9
    values = np.zeros(tuple(shape), np.int16, order="F")
    for plane in range(shape[2]):
        values[..., plane] = np.where(body, 200 + random.integers(0, 64, shape[:2], np.int16), 0)
    nib.openers.Opener.default_compresslevel = 1
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


if __name__ == "__main__":
    raise SystemExit("run it as `python scripts/benchmark.py infer`")
