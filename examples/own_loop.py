"""A training loop of your own through a growth: torch's Muon and AdamW keep state and schedule.

identity-copy adds layers that begin silent, so the loss does not jump (in a pre-norm model).
"""

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

import stackbert as sb

STEPS, GROWTH, WORDS, CYCLE, MASK = 60, 30, 64, 8, 1
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "vocab_size": WORDS}
roles = {"pad": 0, "bos": 2, "eos": 3, "cls": 2, "sep": 3}
ids = {f"{role}_token_id": number for role, number in roles.items()}
model = ModernBertForMaskedLM(ModernBertConfig(num_hidden_layers=2, **sizes, **ids))


def batch(rows: int = 16, length: int = 32) -> dict[str, torch.Tensor]:
    """Rows that count from 4 to 11; what is masked follows from the rest."""
    first = torch.randint(CYCLE, (rows, 1))
    tokens = 4 + (first + torch.arange(length)) % CYCLE
    masked = torch.rand(tokens.shape) < 1 / 6
    return {"input_ids": tokens.where(~masked, MASK), "labels": tokens.where(masked, -100)}


named = dict(model.named_parameters())
matrices = [p for name, p in named.items() if ".layers." in name and p.ndim == 2]
others = [p for name, p in named.items() if not (".layers." in name and p.ndim == 2)]
optimizers = [torch.optim.Muon(matrices, lr=0.03), torch.optim.AdamW(others, lr=3e-3)]
schedulers = [torch.optim.lr_scheduler.LinearLR(each, 1.0, 0.1, STEPS) for each in optimizers]
for step in range(STEPS):
    if step == GROWTH:
        model, optimizers = sb.grow(model, 4, "identity-copy", optimizer=optimizers)
    loss = model(**batch()).loss
    loss.backward()
    for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    if step % 5 == 0 or step in (GROWTH - 1, STEPS - 1):
        print(f"step {step}: depth {model.config.num_hidden_layers}, loss {loss.item():.3f}")
