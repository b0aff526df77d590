"""Lightning through a growth: a hook of the module, everything else as ever.

The optimizer and the scheduler that Lightning made stay as they are.
"""

import warnings

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import ModernBertConfig, ModernBertForMaskedLM

import stackbert as sb

STEPS, GROWTH, WORDS, CYCLE, MASK, LENGTH = 60, 30, 64, 8, 1, 32
warnings.filterwarnings("ignore", ".*(num_workers|torch.jit).*")
torch.manual_seed(0)


class Encoder(lightning.LightningModule):
    """Masked LM with a model that grows between two steps."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
        roles = {"pad": 0, "bos": 2, "eos": 3, "cls": 2, "sep": 3}
        ids = {f"{role}_token_id": number for role, number in roles.items()}
        config = ModernBertConfig(num_hidden_layers=2, vocab_size=WORDS, **sizes, **ids)
        self.model = ModernBertForMaskedLM(config)

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW, its rate falling step by step."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_batch_start(self, *_: object) -> None:
        """Before the forward pass: the optimizer of torch itself, not Lightning's wrapper."""
        if self.global_step == GROWTH:
            optimizer = self.trainer.optimizers[0]
            self.model, _ = sb.grow(self.model, 4, "identity-copy", optimizer=optimizer)

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        """The loss, printed now and then."""
        inputs, labels = batch
        loss: torch.Tensor = self.model(input_ids=inputs, labels=labels).loss
        if number % 5 == 0 or number in (GROWTH - 1, STEPS - 1):
            depth = self.model.config.num_hidden_layers
            print(f"step {number}: depth {depth}, loss {loss.item():.3f}")
        return loss


# Rows that count from 4 to 11, a sixth of them masked: what stands there follows from the rest.
tokens = 4 + (torch.randint(CYCLE, (1000, 1)) + torch.arange(LENGTH)) % CYCLE
masked = torch.rand(tokens.shape) < 1 / 6
data = TensorDataset(tokens.where(~masked, MASK), tokens.where(masked, -100))
loader = DataLoader(data, batch_size=16, shuffle=True)

silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
trainer = lightning.Trainer(
    accelerator="cpu", max_steps=STEPS, enable_model_summary=False, **silent
)
trainer.fit(Encoder(), loader)
