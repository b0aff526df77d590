"""What is attacked: a tiny recipe, its text, and a table to fine-tune on."""

from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "type": "bert",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "stages": [{"depth": 1, "steps": 2}, {"depth": 2, "steps": 2}],
    "batch": {"sequences": 4, "sequence_length": 16, "micro_batch": 4},
    "precision": "fp32",
    "compile": False,
    "evaluation": {"sequences": 4, "every_steps": 2},
    "checkpoint": {"every_steps": 1, "every_minutes": None, "keep": 9},
}
TOPICS = ("river", "harbour", "mountain", "library", "railway", "market")
TEXT = "\n\n".join(
    f"The {topic} of town {n} was opened in {1800 + n}. People came from {n} villages to see it."
    for n, topic in enumerate(TOPICS * 8)
)

TABLE = "text,label\n" + "".join(f"a {t} of {n},{n % 2}\n" for n, t in enumerate(TOPICS * 5))
