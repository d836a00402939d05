"""Measures how near the stages are to what a GPU can do: FLOPs per second, and their share of a large matmul's.

    python benchmarks/gpu.py --save    # all rows within six minutes on one GPU; the last line is JSON
    python benchmarks/gpu.py --rows sft ppo-full
    python benchmarks/gpu.py --tiny    # toy sizes on a CPU: shows that the script runs, not how fast

Weights are random, in the shape of Llama 3.2 1B (`nf4-8b`: Llama 3.1 8B), made on the GPU; nothing is downloaded. A
LoRA of rank 16 is on all seven projections. Each group of rows is a process of its own, which measures its own matmul
and bandwidth; if it fails, the others still run. Before it may use the GPU, a process loads its libraries while the
one before it measures. `--save` writes benchmarks/history/<date>-<machine>-<commit>.json.

`share` counts the FLOPs that the row's formula says (rlhf/models/flops.py) and no padding; `computed_share` counts
all that is computed: padding, attention, adapters, and what activation checkpointing computes a second time.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

GROUPS = {
    "ppo": ("ppo-varied", "ppo-full"),
    "layers": ("layers", "peft-float32", "peft-bfloat16", "base-eager", "base-compiled"),
    "rollout": ("rollout-64", "rollout-256", "rollout-512"),
    "sft": ("sft",),
    "reward": ("reward",),
    "nf4": ("nf4-8b",),
}
ROWS = tuple(row for rows in GROUPS.values() for row in rows)
HISTORY = Path(__file__).parent / "history"
LONGEST = 120.0  # seconds of a group, so that one that hangs leaves time for the others
GO = "go"  # the line that lets a process begin


def main() -> None:
    args = parse_arguments()
    if args.child:
        run_rows(args.rows, args.tiny, wait=True)
        return
    started = time.monotonic()
    report = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "tiny": args.tiny}
    report |= {"machine": {}, "rows": [], "failed": {}}
    groups = [rows for group in GROUPS.values() if (rows := [row for row in group if row in args.rows])]
    children = prefetched(start_child(rows, args.tiny) for rows in groups)
    for rows, child in zip(groups, children, strict=True):
        left = args.seconds - (time.monotonic() - started)
        output, error = results_of(child, min(left, LONGEST))
        for result in (json.loads(line) for line in output.splitlines() if line.startswith('{"')):
            add(result, report)
        done = {result["row"] for result in report["rows"]} | report["failed"].keys()
        report["failed"] |= {row: error or "the process ended without a result" for row in rows if row not in done}
    for row, error in report["failed"].items():
        print(f"{row:<14} failed: {error}")
    report["seconds"] = round(time.monotonic() - started, 1)
    if args.save:
        print(f"saved to {save(report)}")
    print(json.dumps(report))
    if report["failed"]:
        sys.exit(1)


def add(result: dict, report: dict) -> None:
    """Puts what a process has printed into the report, and prints it if it is a row."""
    if "row" not in result:
        report["machine"] |= result
    elif "error" in result:
        report["failed"][result["row"]] = result["error"]
    else:
        report["rows"].append(result)
        print(line_of(result), flush=True)


def line_of(result: dict) -> str:
    """Returns a result as a line for people."""
    parts = [f"{result['row']:<14}", f"{result['seconds']:9.4f} s"]
    for name, unit, times in (("tflops_per_s", "TFLOP/s", 1), ("share", "% of the matmul", 100),
                              ("computed_share", "% with all that is computed", 100), ("tokens_per_s", "tokens/s", 1),
                              ("roofline_share", "% of the memory roofline", 100), ("peak_gb", "GB", 1)):  # fmt: skip
        if result.get(name) is not None:
            parts.append(f"{times * result[name]:,.4g} {unit}")
    return ", ".join(parts) + f"   [{result['flops']}]"


def commit() -> str:
    """Returns the first digits of the checkout's commit; "" outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def save(report: dict) -> Path:
    """Writes a report into benchmarks/history and returns its path; tests/test_benchmarks.py checks the form."""
    HISTORY.mkdir(exist_ok=True)
    machine = "-".join(str(report["machine"].get("device", "unknown")).lower().split())
    path = HISTORY / f"{report['started'][:10]}-{machine}-{report['commit'] or 'nocommit'}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


# ---- One process for each group of rows


def start_child(rows: list[str], tiny: bool) -> subprocess.Popen:
    """Starts a process that loads its libraries and then waits."""
    command = [sys.executable, __file__, "--child", "--rows", *rows, *(["--tiny"] if tiny else [])]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def prefetched(children: Iterator[subprocess.Popen]) -> Iterator[subprocess.Popen]:
    """Yields each process after the next one has been started."""
    ahead = next(children, None)
    while ahead is not None:
        child, ahead = ahead, next(children, None)
        yield child


def results_of(child: subprocess.Popen, seconds: float) -> tuple[str, str | None]:
    """Lets a process begin, and returns its output and how it failed; it is ended after `seconds`."""
    if seconds <= 0:
        child.kill()
        return "", "no time was left"
    try:
        output, _ = child.communicate(f"{GO}\n", timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        output, _ = child.communicate()
        return output, f"ended after {seconds:.0f} s"
    return output, f"exit code {child.returncode}" if child.returncode else None


def run_rows(rows: list[str], tiny: bool, wait: bool = False) -> list[dict]:
    """Measures rows in this process; prints each result, or its error, as a line of JSON."""
    import gpu_rows  # loads the libraries

    if wait and sys.stdin.readline().strip() != GO:
        return []
    machine = gpu_rows.machine(tiny)
    print(json.dumps(machine), flush=True)
    results = []
    for row in rows:
        measure: Callable[[bool], dict] = gpu_rows.MEASURES[row]
        try:
            result = {"row": row} | gpu_rows.finished(measure(tiny), machine)
        except Exception as error:  # out of memory, a kernel that does not exist: the other rows still count
            result = {"row": row, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        gpu_rows.free_memory()
        print(json.dumps(result), flush=True)
        results.append(result)
    return results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows to measure; default: all")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on a CPU too")
    parser.add_argument("--seconds", type=float, default=350, help="ends what has not finished by then; default: 350")
    parser.add_argument("--save", action="store_true", help="write the report into benchmarks/history")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # of the processes it starts
    return parser.parse_args()


if __name__ == "__main__":
    main()
