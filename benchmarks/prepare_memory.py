"""Measures the peak memory of `make data` on synthetic prompts; the last line is JSON.

    python benchmarks/prepare_memory.py --rows 1000000

Writes the rows as JSON lines, one at a time, prepares them in a separate process and measures its peak. Users have
unequal numbers of prompts; 1 prompt in 20 is a repetition, 1 in 40 has personal data, a few are too long, and 1 in
1,000 is broken.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["the", "a", "fox", "river", "house", "letter", "garden", "write", "explain", "compare", "story", "why", "how"]
LIMIT_MB = 1000


def rows(count: int, seed: int = 0):
    """Yields JSON lines of prompts."""
    rng = random.Random(seed)
    text = ""
    for i in range(count):
        if rng.random() >= 0.05:
            text = " ".join(rng.choices(WORDS, k=rng.randrange(10, 60))) + f" {i}?"
        if rng.random() < 0.001:
            text = " ".join(rng.choices(WORDS, k=2000))
        personal = f" Write to me at user{i}@example.org." if rng.random() < 0.025 else ""
        row = {"prompt": text + personal, "user_id": int(rng.expovariate(1 / 3000)), "category": rng.choice(WORDS)}
        yield '{"prompt": ' if rng.random() < 0.001 else json.dumps(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.jsonl"
        with raw.open("w") as file:
            file.writelines(line + "\n" for line in rows(args.rows))
        command = [sys.executable, str(ROOT / "recipes" / "data.py"), "--dataset_name", str(raw)]
        command += ["--model_name_or_path", "sandbox", "--output_dir", f"{folder}/out", "--on_bad_rows", "skip"]
        started = time.monotonic()
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.monotonic() - started
        result = json.loads((Path(folder) / "out" / "result.json").read_text())
        size = raw.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # largest child; KiB on Linux
    dropped = {reason: sum(by_split.values()) for reason, by_split in result["dropped"].items()}
    report = {
        "rows": args.rows,
        "raw_mb": round(size / 2**20),
        "peak_rss_mb": round(peak),
        "limit_mb": LIMIT_MB,
        "within_limit": peak <= LIMIT_MB,
        "seconds": round(seconds, 1),
        "bad_rows": result["bad_rows"],
        "kept": result["kept"],
        "dropped": dropped,
        "accounted_for": result["bad_rows"] + sum(result["kept"].values()) + sum(dropped.values()) == args.rows,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
