"""A marked loss in a trainer leads where the term in the loss leads, with a short last cycle of accumulation too."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from lightning.pytorch import LightningModule
from test_lightning import loader
from test_lightning import trainer as lightning_trainer
from test_transformers import trainer as transformers_trainer
from torch import nn
from torch.optim import SGD

from models import batches, mlp
from shrinkage import L1, Activities, Ramp

pytestmark = [  # what Lightning itself warns of
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
STRENGTH = Ramp(0.3, 10)
COUNT, ACCUMULATED = 7, 4


class Task:
    """A network and its loss: with penalties on what its middle layer puts out, or with the term."""

    def __init__(self, marks):
        self.net = mlp(torch.float64)
        self.activities = Activities(self.net, {nn.Tanh: L1(STRENGTH)}) if marks else None

    def loss(self, x, y, update):
        h = self.net[:2](x)
        loss = (self.net[2](h) - y).square().mean()
        if self.activities is not None:
            return self.activities.mark(loss, update=update)
        return loss + STRENGTH(update) * h.abs().sum() / len(x)


def both(train):
    """Train in both ways, and return the largest difference of the weights, and what was moved by the penalty."""
    marked, term = Task(True), Task(False)
    train(marked)
    train(term)
    pairs = list(zip(marked.net.parameters(), term.net.parameters(), mlp(torch.float64).parameters(), strict=True))
    assert max(float((term - first).detach().abs().max()) for _, term, first in pairs) > 1e-3
    return max(float((one - other).detach().abs().max()) for one, other, _ in pairs)


class Module(LightningModule):
    """A task in Lightning, with its `Activities` among its attributes."""

    def __init__(self, task):
        super().__init__()
        self.task, self.net = task, task.net

    def training_step(self, batch, index):
        return self.task.loss(*batch, self.global_step)

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.1)


def test_lightning_with_accumulation():
    def train(task):
        data = loader(batches(COUNT, torch.float64))
        lightning_trainer(accumulate_grad_batches=ACCUMULATED, max_epochs=2).fit(Module(task), data)

    assert both(train) <= 1e-15


class Returns(nn.Module):
    """A task in Hugging Face's Trainer: a model that returns its loss."""

    def __init__(self, task):
        super().__init__()
        self.task, self.net, self.step = task, task.net, 0

    def forward(self, x, y):
        return {"loss": self.task.loss(x, y, self.step)}


def test_transformers_with_accumulation(tmp_path):
    def train(task):
        model = Returns(task)
        optimizer = SGD(model.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: setattr(model, "step", model.step + 1))
        data = [{"x": x, "y": y} for batch in batches(COUNT, torch.float64) for x, y in zip(*batch, strict=True)]
        options = {"gradient_accumulation_steps": ACCUMULATED, "num_train_epochs": 2, "max_grad_norm": 0.5}
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        transformers_trainer(model, tmp_path, optimizers=(optimizer, schedule), data=data, **options).train()

    assert both(train) <= 1e-15


@pytest.fixture
def forget_settings():
    """Accelerate keeps its settings for the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.usefixtures("forget_settings")
def test_accelerate_with_accumulation():
    def train(task):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
        net, optimizer = accelerator.prepare(task.net, SGD(task.net.parameters(), lr=0.1))
        data = accelerator.prepare(loader(batches(COUNT, torch.float64)))
        for update, (x, y) in enumerate(data):
            with accelerator.accumulate(net):
                accelerator.backward(task.loss(x, y, update // ACCUMULATED))
                optimizer.step()
                optimizer.zero_grad()

    assert both(train) <= 1e-15
