"""
Lightning and its logger
========================

``RegularizerCallback`` penalizes the weights in any trainer of Lightning, and logs their zeros after each epoch. Early
stopping ends the training at 80% of zeros.
"""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shrinkage import L1
from shrinkage.integrations.lightning import RegularizerCallback

torch.manual_seed(0)
images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
data = TensorDataset(images.float() / 16, labels)
loader = DataLoader(data, batch_size=64, shuffle=True)


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


penalty = RegularizerCallback({"network.*.weight": L1(1e-3)}, hold_zeros=0.99)
enough = EarlyStopping("shrinkage/zeros", mode="max", stopping_threshold=0.8, patience=1000)
with TemporaryDirectory() as folder:
    trainer = Trainer(
        max_epochs=40,
        callbacks=[penalty, enough],
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=10,
        accelerator="cpu",
    )
    trainer.fit(Digits(), loader)
    with Path(trainer.logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]

print(*(name for name in rows[0] if name.startswith("shrinkage/")), sep="\n")

# %%
# The columns of the CSV file over the epochs.

figure = Figure(figsize=(8, 4), layout="constrained")
left = figure.add_subplot()
left.plot([100 * float(row["shrinkage/zeros"]) for row in rows], color="tab:blue", marker="o")
left.axhline(80, color="grey", linestyle="dashed", linewidth=1)
left.set(xlabel="epoch", ylabel="zero weights (%), blue", ylim=(0, 100), title="Training stops at 80% of zeros")
right = left.twinx()
right.plot([float(row["loss"]) for row in rows], color="tab:orange", marker="s")
right.set(ylabel="loss, orange", yscale="log")
