"""A loop under accelerate through a growth: unwrap, grow, prepare the deeper model.

The prepared optimizer and scheduler stay as they are. `accelerate launch` runs it on any devices.
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from transformers import ModernBertConfig, ModernBertForMaskedLM

import stackbert as sb

STEPS, GROWTH, WORDS, CYCLE, MASK, LENGTH = 60, 30, 64, 8, 1, 32
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "vocab_size": WORDS}
roles = {"pad": 0, "bos": 2, "eos": 3, "cls": 2, "sep": 3}
ids = {f"{role}_token_id": number for role, number in roles.items()}
model = ModernBertForMaskedLM(ModernBertConfig(num_hidden_layers=2, **sizes, **ids))

# Rows that count from 4 to 11, a sixth of them masked: what stands there follows from the rest.
tokens = 4 + (torch.randint(CYCLE, (1000, 1)) + torch.arange(LENGTH)) % CYCLE
masked = torch.rand(tokens.shape) < 1 / 6
data = TensorDataset(tokens.where(~masked, MASK), tokens.where(masked, -100))

accelerator = Accelerator()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
loader = DataLoader(data, batch_size=16, shuffle=True)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
for step, (inputs, labels) in zip(range(STEPS), loader, strict=False):
    if step == GROWTH:
        plain = accelerator.unwrap_model(model)
        grown, optimizer = sb.grow(plain, 4, "identity-copy", optimizer=optimizer)
        model = accelerator.prepare_model(grown)
    loss = model(input_ids=inputs, labels=labels).loss
    accelerator.backward(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step % 5 == 0 or step in (GROWTH - 1, STEPS - 1):
        depth = accelerator.unwrap_model(model).config.num_hidden_layers
        accelerator.print(f"step {step}: depth {depth}, loss {loss.item():.3f}")
