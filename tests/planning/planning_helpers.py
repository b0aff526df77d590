"""The recipe that is planned in these tests."""

import stackbert as sb

SMALL = [
    "model={type: bert, hidden_size: 32, num_attention_heads: 2, intermediate_size: 64}",
    "batch.sequences=4",
    "batch.sequence_length=16",
    "batch.micro_batch=2",
    "objective.mask_rate=0.5",
    "optimizer.name=adamw",
    "precision=fp32",
    "evaluation.sequences=8",
    "evaluation.mask_rate=0.15",
    "schedule.warmup_steps=2",
    "stages=[{depth: 1, steps: 10}, {depth: 2, steps: 20}, {depth: 4, steps: 30}]",
]


def small(*overrides: str) -> sb.Recipe:
    return sb.load_recipe("demo", [*SMALL, *overrides])
