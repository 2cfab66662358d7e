"""Strengths that find themselves, in trainers: the weights of a plain loop, and runs that resume where they were."""

import copy

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from test_lightning import COUNT, Module, loader, trainer
from test_transformers import OPTIONS
from test_transformers import Model as ReturnsLoss
from test_transformers import trainer as transformers_trainer
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers.optimization import get_linear_schedule_with_warmup

from models import batches, equal, loss_of, mlp
from shrinkage import L1, L2, Bound, Corrected, Regularizer, Rule
from shrinkage.integrations.lightning import RegularizerCallback as LightningCallback
from shrinkage.integrations.transformers import RegularizerCallback as TransformersCallback

pytestmark = [  # what Lightning itself warns of
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
RULES = {
    "bound": lambda: {"*.weight": L1(Bound(4.0))},
    "corrected": lambda: [Rule(L2(Corrected(2.0)), "*.weight", "decoupled")],
}


def strengths(regularizer):
    """The strengths that were found, which are not those of the beginning."""
    found = {entry.name.removeprefix("net."): entry.penalty.strength(0) for entry in regularizer.plan}
    assert set(found.values()) not in ({0.0}, {2.0})
    return found


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_finds_what_a_loop_finds(rules, accumulate):
    class Scheduled(Module):
        def configure_optimizers(self):
            return scheduled(self.net, COUNT // accumulate)

    def scheduled(net, updates):
        optimizer = AdamW(net.parameters(), lr=0.02, weight_decay=0)
        return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, updates), "interval": "step"}]

    module, callback = Scheduled(), LightningCallback(rules())
    trainer(callback, accumulate_grad_batches=accumulate).fit(module, loader(batches(COUNT)))

    net = mlp()
    (optimizer,), (falls,) = scheduled(net, COUNT // accumulate)
    regularizer = Regularizer(net, rules()).attach(optimizer)
    for index, batch in enumerate(batches(COUNT), 1):
        (loss_of(net, batch) / accumulate).backward()
        if index % accumulate == 0:
            optimizer.step()
            falls["scheduler"].step()
            optimizer.zero_grad()
    assert equal(module.net, net)
    assert strengths(callback.regularizer) == strengths(regularizer)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_lightning_resumes_from_its_own_checkpoint(rules, tmp_path):
    def fit(*others, **resume):
        module, callback = Module(), LightningCallback(rules())
        running = trainer(callback, *others, max_epochs=3, enable_checkpointing=bool(others))
        running.fit(module, loader(batches(COUNT)), **resume)
        return module.net, callback.regularizer

    keeps = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    straight, regularizer = fit(keeps)
    resumed, other = fit(copy.deepcopy(keeps), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert equal(resumed, straight)
    assert repr(other) == repr(regularizer)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_transformers_finds_what_a_loop_finds_and_resumes(rules, tmp_path):
    def run(folder, **resume):
        model, callback = ReturnsLoss(), TransformersCallback(rules())
        saving = {"save_strategy": "steps", "save_steps": 5, "weight_decay": 0.0}
        transformers_trainer(model, folder, callback, **saving).train(**resume)
        return model, callback.regularizer

    straight, regularizer = run(tmp_path / "straight")
    resumed, other = run(tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "straight/checkpoint-5"))
    assert equal(straight, resumed)
    assert strengths(regularizer) == strengths(other)

    model = ReturnsLoss()
    optimizer = AdamW(model.parameters(), lr=OPTIONS["learning_rate"], fused=True, weight_decay=0)
    falls = get_linear_schedule_with_warmup(optimizer, 2, COUNT)
    alone = Regularizer(model, rules()).attach(optimizer)
    for x, y in batches(COUNT):
        model(x, y)["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIONS["max_grad_norm"])
        optimizer.step()
        falls.step()
        optimizer.zero_grad()
    assert equal(model, straight)
    assert strengths(alone) == strengths(regularizer)
