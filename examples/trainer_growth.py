"""transformers' Trainer through a growth: one callback, everything else as ever."""

import tempfile

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM, Trainer, TrainingArguments

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
inputs, labels = tokens.where(~masked, MASK), tokens.where(masked, -100)
rows = [{"input_ids": a, "labels": b} for a, b in zip(inputs, labels, strict=True)]

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    growth = sb.GrowthCallback({GROWTH: 4}, "identity-copy")
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[growth])
    trainer.train()

for line in trainer.state.log_history[:-1]:  # each a mean of five steps
    depth = 2 if line["step"] <= GROWTH else trainer.model.config.num_hidden_layers
    print(f"step {line['step']}: depth {depth}, loss {float(line['loss']):.3f}")
