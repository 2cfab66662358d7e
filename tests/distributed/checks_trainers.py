"""Trainers that bring their own data parallelism: as one process that averages the gradients."""

import logging
import warnings

from torch.optim import AdamW

from distributed.common import assert_equal, assert_same_everywhere, parts, train_alone, zero_count
from models import mlp
from shrinkage import L1, L2, Regularizer


def check_lightning(rank: int, world: int) -> None:
    """Lightning's DDP strategy, in the process group that is there already."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from lightning.pytorch.strategies import DDPStrategy  # takes seconds, which other checks need not wait for
    from test_lightning import COUNT, RULE, Module, RegularizerCallback, adamw, falling, loader, trainer

    for how, penalty in (("proximal", L1(falling)), ("gradient", L2(0.5))):
        module, callback = Module(adamw), RegularizerCallback({RULE: penalty}, how=how)
        strategy = DDPStrategy(process_group_backend="gloo")
        running = trainer(callback, strategy=strategy, devices=world, use_distributed_sampler=False)
        running.fit(module, loader(parts(rank, COUNT)))
        assert running.world_size == world
        alone = mlp()
        reference = AdamW(alone.parameters(), lr=0.01)
        Regularizer(alone, penalty, how=how).attach(reference)
        train_alone(alone, reference, world, range(COUNT))
        assert_equal(module.net, alone)
        assert_same_everywhere(module.net)
        assert callback.regularizer.state_dict()["updates"] == [COUNT]
        assert zero_count(module.net) > 0 or how == "gradient"
