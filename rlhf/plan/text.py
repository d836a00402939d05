"""A plan as text: memory term by term, seconds of each part, hours."""

import textwrap

from rlhf.models.fitting import fits
from rlhf.plan.devices import Device
from rlhf.plan.seconds import share_of
from rlhf.plan.stages import StagePlan
from rlhf.runs.console import duration

WIDTH = 42
UNCOUNTED = """\
Not counted: the CUDA context (about half a GB), buffers of NCCL, fragmentation; loading, evaluation, checkpoints,
reward functions, and the time that devices wait for each other. How far off plans were: docs/scale.md."""


def plan_text(plan: StagePlan, device: Device) -> str:
    """Returns the plan of one stage."""
    layout = plan.layout
    how = [layout.base, f"LoRA rank {layout.rank}", "autocast" if layout.autocast else "no autocast"]
    how += [recomputation_text(layout.checkpointing)]
    how += [f"{layout.processes} x {layout.sharding}"] if layout.processes > 1 else []
    lines = [f"{plan.stage}  {plan.model}: {', '.join(how)}", *_wrapped(plan.passes), *_wrapped(plan.rows)]
    lines += [line for note in plan.notes for line in _wrapped(note)]
    return "\n".join([*lines, "", *memory_lines(plan, device), "", *time_lines(plan, device)])


def recomputation_text(every: int) -> str:
    """Returns which layers backward computes again: `Layout.checkpointing` in words."""
    return f"1 of {every} layers recomputed" if every > 1 else "all layers recomputed" if every else "none recomputed"


def memory_lines(plan: StagePlan, device: Device) -> list[str]:
    """Returns the terms that stay, those of the largest phase, the peak, and the other phases' sums, in GB of 10^9."""
    memory = plan.memory
    totals = {phase: sum(terms.values()) for phase, terms in memory.phases.items()}
    largest = max(totals, key=lambda phase: totals[phase])
    lines = ["  GB on each device"]
    lines += [_line(f"  {name}", size / 1e9) for name, size in memory.resident.items() if size]
    lines.append(_line("resident", sum(memory.resident.values()) / 1e9))
    lines += [_line(f"  {largest}: {name}", size / 1e9) for name, size in memory.phases[largest].items() if size]
    share = memory.peak / device.memory
    fitting = "fits" if fits(memory, device.memory) else "too near to the limit" if share <= 1 else "does not fit"
    lines.append(_line("peak", memory.peak / 1e9) + f" of {device.memory / 1e9:.0f} ({share:.0%}): {fitting}")
    others = [f"{name} {total / 1e9:.2f}" for name, total in totals.items() if name != largest]
    lines += [f"  other phases, beside what is resident: {', '.join(others)}"] if others else []
    if not fits(memory, device.memory):
        sampling = largest == "rollout"
        rows = "local_rollout_forward_batch_size" if sampling else "per_device_train_batch_size"
        remedies = [f"halve {rows}", *([] if plan.layout.quantized else ["load_in_4bit"]), "shorter rows"]
        lines.append(f"  to fit: {', then '.join(remedies)}")
    return lines


def time_lines(plan: StagePlan, device: Device) -> list[str]:
    """Returns the seconds of each part with the share they are by, and the hours of the stage."""
    unit = "rollout" if plan.stage == "ppo" else "step"
    lines = [f"  seconds of a {unit}"]
    for part, seconds in plan.seconds.items():
        share = share_of(part, device, plan.layout)
        by = "by FLOPs and bytes of a step" if share is None else f"at {share.value:.1%} of the matmul: {share.source}"
        lines.append(_line(f"  {part}", seconds) + f"   {by}")
    lines.append(_line(unit, sum(plan.seconds.values())))
    if plan.hours is None:
        lines.append("  the stage: not known, since the number of rows is not")
    else:
        lines.append(f"  {f'the stage, {plan.steps:,} {unit}s':<{WIDTH}}{duration(3600 * plan.hours):>12}")
    return lines


def _line(name: str, value: float, digits: int = 3) -> str:
    return f"  {name:<{WIDTH}}{value:>10,.{digits}f}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
