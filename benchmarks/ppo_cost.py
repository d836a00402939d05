"""Cost of PPO by length of responses, batch and model size, for this library and for TRL's trainer.

    python benchmarks/ppo_cost.py --figure docs/ppo_cost.png

Varies one of the three at a time; the other two keep their middle value. Each point is one run per trainer, in its own
process, with the models and data of `ppo_vs_trl.py`. The last line is JSON with one object per point.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator
from ppo_vs_trl import Shape, in_own_process, summary


@dataclass(frozen=True)
class Axis:
    """A quantity to vary: `points` maps its values, for the x axis, to the fields of Shape that they change."""

    label: str
    points: dict[float, dict]


def llama(hidden: int, layers: int) -> dict:
    return {
        "vocab_size": 8192,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "tie_word_embeddings": True,
    }


def millions(model: dict) -> float:
    """Returns the parameters of the layers in millions, without embeddings and norms."""
    hidden = model["hidden_size"]
    return model["num_hidden_layers"] * (4 * hidden**2 + 3 * hidden * model["intermediate_size"]) / 1e6


MIDDLE = {"model": llama(256, 4), "prompt_length": 32, "response_length": 64, "batch": 32, "minibatches": 4}
SIZES = [llama(128, 2), llama(256, 4), llama(512, 8)]
AXES = [
    Axis("response length, tokens", {length: {"response_length": length} for length in (16, 64, 256)}),
    Axis("episodes per rollout", {batch: {"batch": batch} for batch in (8, 32, 128)}),
    Axis("parameters of the layers, millions", {millions(model): {"model": model} for model in SIZES}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=Path("runs/ppo_cost.png"))
    parser.add_argument("--lengths", choices=["varied", "full"], default="varied")
    args = parser.parse_args()
    rows, results = [], {}
    for axis in AXES:
        for x, changes in axis.points.items():
            shape = Shape(name=f"{axis.label} {x:.3g}", lengths=args.lengths, **MIDDLE | changes)
            key = json.dumps(MIDDLE | changes)
            if key not in results:  # the middle is a point of each axis
                results[key] = summary(shape, {side: [in_own_process(side, shape)] for side in ("ours", "trl")})
            measured = {name: results[key][name] for name in ("episodes_per_s", "peak_memory_mb", "seconds")}
            row = {"axis": axis.label, "x": x, **measured}
            rows.append(row)
            print(json.dumps(row), flush=True)
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    plot(rows, args.figure)
    print(json.dumps(rows))


def plot(rows: list[dict], path: Path) -> None:
    figure, panels = plt.subplots(2, len(AXES), figsize=(10, 5.6), sharey="row", layout="constrained")
    for column, axis in zip(panels.T, AXES, strict=True):
        points = [row for row in rows if row["axis"] == axis.label]
        x = [row["x"] for row in points]
        for side, label, style in (("trl", "TRL 1.12", "o--"), ("ours", "rlhf", "o-")):
            column[0].plot(x, [1 / row["episodes_per_s"][side] for row in points], style, label=label)
            column[1].plot(x, [row["peak_memory_mb"][side] for row in points], style, label=label)
        for panel in column:
            panel.set(xscale="log", yscale="log")
            panel.set_xticks(x, [f"{value:.3g}" for value in x])
            panel.minorticks_off()
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.3)
        column[1].set_xlabel(axis.label)
    panels[0, 0].set_ylabel("seconds per episode")
    panels[1, 0].set_ylabel("peak memory, MB")
    panels[0, 0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
