"""What a finished training came to, in two lines. Knows the log alone."""

from __future__ import annotations

from typing import Any


def told(result: dict[str, Any], objective: str, verb: str = "finetune") -> str:
    """The last figures of a training in two lines."""
    steps = [entry for entry in result["history"] if "loss" in entry]
    first, last = steps[0], steps[-1]
    lines = [
        f"{verb} ({objective}): {result['steps']} steps; nll of the first batch {first['nll']:.2f}, of the last "
        f"{last['nll']:.2f} nats a token"
    ]
    if "weight_1" in last:
        spans = {"1": "first token", "2_5": "2 to 5", "later": "later"}
        gains = [f"{title} {last[f'log_ratio_{s}'] + 0.0:+.2f} ({last[f'weight_{s}']:.2f})".replace("-0.00", "+0.00")
                 for s, title in spans.items() if f"weight_{s}" in last]  # fmt: skip
        lines.append("  nats gained over the reference (and the share of plain fine-tuning's gradient that is left):")
        lines.append("  " + ", ".join(gains))
    moved = [f"{word} rows {last[f'{name}_kl']:.2f} on average, at most {last[f'{name}_kl_max']:.2f}"
             for name, word in (("safety", "safety"), ("harmless", "harmless")) if f"{name}_kl" in last]  # fmt: skip
    if moved:
        lines.append(f"  nats from what is held, of the last batch: {'; '.join(moved)}")
    evaluations = [entry for entry in result["history"] if "eval_nll" in entry]
    if evaluations:
        lines.append(f"  held-out rows: nll {evaluations[-1]['eval_nll']:.2f}")
    return "\n".join(lines)
