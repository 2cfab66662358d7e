"""Lightning's trainer with the callback ends with the very weights of a loop that is written by hand."""

import copy
import csv
import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.amp import GradScaler
from torch.optim import LBFGS, SGD, AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils.data import DataLoader

from models import batches, equal, hooks, loss_of, mlp, soft_, train_step, weights, zeros
from shrinkage import (
    L1,
    L2,
    AttachmentError,
    Budget,
    GroupLasso,
    MetricError,
    Regularizer,
    Rows,
    SelectionError,
    regularize,
)
from shrinkage.integrations.lightning import RegularizerCallback

pytestmark = [
    pytest.mark.usefixtures("without_native"),  # loops by hand take torch's roots, which kernels round otherwise
    # What Lightning itself warns of.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
RULE = "net.*.weight"
COUNT = 12


def falling(update):
    return 0.02 * 0.9**update


def rising(update):
    return 1e-3 * update


def sgd(parameters):
    return SGD(parameters, lr=0.1)


def adamw(parameters):
    return AdamW(parameters, lr=0.01)


def fused_adamw(parameters):
    return AdamW(parameters, lr=0.01, fused=True)


class Module(LightningModule):
    """A small network, trained in the plain way; batches that are None are skipped."""

    def __init__(self, make=adamw):
        super().__init__()
        self.net = mlp()
        self.make = make

    def training_step(self, batch, index):
        return None if isinstance(batch, str) else loss_of(self.net, batch)

    def configure_optimizers(self):
        return self.make(self.parameters())


def trainer(*callbacks, **options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(callbacks=list(callbacks), accelerator="cpu", **{**quiet, "max_epochs": 1, **options})


def loader(data):
    return DataLoader(data, batch_size=None)


def thresholds(net, optimizer, update, strength=falling):
    """Apply the textbook's proximal step for L1 in the optimizer's metric."""
    group = optimizer.param_groups[0]
    for w in weights(net):
        state = optimizer.state[w]
        if isinstance(optimizer, AdamW):
            second_moment = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            soft_(w, strength(update) * (group["lr"] / (second_moment.sqrt() + group["eps"])))
        else:
            soft_(w, strength(update) * group["lr"])


def by_hand(make=adamw, *, data=None, accumulate=1, clip=None, dtype=None, scaler=None, before=None, after=thresholds):
    """Train in a loop, with code of the test's own around the step."""
    net = mlp()
    optimizer = make(net.parameters())
    data = batches(COUNT) if data is None else data
    update = 0
    for i in range(0, len(data), accumulate):
        optimizer.zero_grad()
        for batch in data[i : i + accumulate]:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = loss_of(net, batch) / accumulate
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler and (clip or before):
            scaler.unscale_(optimizer)
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        with torch.no_grad():
            before(net, optimizer) if before else None
            moved = None if scaler is None else weights(net)[0].detach().clone()
            optimizer.step() if scaler is None else (scaler.step(optimizer), scaler.update())
            if moved is None or not torch.equal(moved, weights(net)[0]):
                after(net, optimizer, update)
                update += 1
    return net


@pytest.mark.parametrize("make", [sgd, adamw, fused_adamw])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.05}])
def test_automatic_optimization(make, options):
    module, callback = Module(make), RegularizerCallback({RULE: L1(falling)})
    trainer(callback, **options).fit(module, loader(batches(COUNT)))
    hand = by_hand(make, accumulate=options.get("accumulate_grad_batches", 1), clip=options.get("gradient_clip_val"))
    assert equal(module.net, hand)
    assert zeros(hand) > 0 or make is sgd


def add_gradients(net, optimizer):
    for w in weights(net):
        w.grad += 0.5 * w


def decay(net, optimizer):
    for w in weights(net):
        w *= 1 - optimizer.param_groups[0]["lr"] * 0.5


BEFORE = {"gradient": add_gradients, "decoupled": decay}


def nothing(*_):
    pass


@pytest.mark.parametrize("how", BEFORE)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("make", "clip"), [(sgd, 0.05), (adamw, 0.05), (adamw, None), (fused_adamw, None)])
def test_what_acts_before_the_step_comes_after_accumulation_and_clipping(how, accumulate, make, clip):
    """Lightning runs the backward pass in the optimizer's step, after the hooks that come before it."""
    module, callback = Module(make), RegularizerCallback({RULE: L2(0.5)}, how=how)
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    trainer(callback, **options).fit(module, loader(batches(COUNT)))
    hand = by_hand(make, accumulate=accumulate, clip=clip, before=BEFORE[how], after=nothing)
    assert equal(module.net, hand)


def test_bf16_mixed():
    module = Module()
    trainer(RegularizerCallback({RULE: L1(falling)}), precision="bf16-mixed").fit(module, loader(batches(COUNT)))
    assert equal(module.net, by_hand(dtype=torch.bfloat16))


def with_overflow():
    """Batches of which the fourth overflows in float16."""
    data = batches(COUNT)
    data[3] = (data[3][0] * 1e6, data[3][1])
    return data


@pytest.mark.parametrize("how", ["proximal", "gradient"])
@pytest.mark.parametrize(  # Lightning does not clip for a fused optimizer that unscales by itself
    ("make", "accumulate", "clip"), [(sgd, 1, None), (adamw, 1, None), (fused_adamw, 1, None), (adamw, 2, 0.05)]
)
def test_16_mixed_with_an_overflow(make, accumulate, clip, how):
    def scaler():
        return GradScaler("cpu", init_scale=1024.0)

    callback = RegularizerCallback({RULE: L1(falling) if how == "proximal" else L2(0.5)}, how=how)
    module, plugin = Module(make), MixedPrecision("16-mixed", "cpu", scaler=scaler())
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    trainer(callback, plugins=[plugin], **options).fit(module, loader(with_overflow()))
    around = {"after": thresholds} if how == "proximal" else {"before": add_gradients, "after": nothing}
    settings = {"data": with_overflow(), "dtype": torch.float16, "scaler": scaler()}
    assert equal(module.net, by_hand(make, accumulate=accumulate, clip=clip, **settings, **around))
    assert callback.regularizer.state_dict()["updates"] == [COUNT // accumulate - 1]


def test_a_training_step_that_returns_nothing_is_no_update():
    data = batches(COUNT)
    module, callback = Module(), RegularizerCallback({RULE: L1(falling)})
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        trainer(callback).fit(module, loader([*data[:4], "skip", *data[4:]]))
    assert equal(module.net, by_hand())
    assert callback.regularizer.state_dict()["updates"] == [COUNT]


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs(line_search):
    def make(parameters):
        return LBFGS(parameters, lr=0.5, max_iter=4, line_search_fn=line_search)

    module = Module(make)
    trainer(RegularizerCallback({RULE: L2(0.1)}, how="gradient")).fit(module, loader(batches(COUNT)))
    net = mlp()
    optimizer = make(net.parameters())
    for batch in batches(COUNT):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            for w in weights(net):
                w.grad.add_(w.detach(), alpha=0.1)
            return loss.detach() + torch.stack([0.05 * w.detach().square().sum() for w in weights(net)]).sum()

        optimizer.step(closure)
    assert equal(module.net, net)


class Manual(Module):
    """One optimizer for each layer, that step in turn; the second accumulates two batches."""

    automatic_optimization = False

    def training_step(self, batch, index):
        first, second = self.optimizers()
        self.manual_backward(loss_of(self.net, batch))
        first.step()
        first.zero_grad()
        if index % 2:
            self.clip_gradients(second, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
            second.step()
            second.zero_grad()

    def configure_optimizers(self):
        return [self.make(self.net[0].parameters()), self.make(self.net[2].parameters())]


def manual_by_hand(before, after):
    net = mlp()
    first, second = adamw(net[0].parameters()), adamw(net[2].parameters())

    @torch.no_grad()
    def step(layer, optimizer, update):
        before(layer, optimizer)
        optimizer.step()
        after(layer, optimizer, update)
        optimizer.zero_grad()

    for i, batch in enumerate(batches(COUNT)):
        loss_of(net, batch).backward()
        step(net[0], first, i)
        if i % 2:
            nn.utils.clip_grad_norm_(net[2].parameters(), 0.05)
            step(net[2], second, i // 2)
    return net


@pytest.mark.parametrize("how", ["proximal", *BEFORE])
def test_manual_optimization_with_two_optimizers(how):
    module, callback = Manual(), RegularizerCallback({RULE: L1(falling) if how == "proximal" else L2(0.5)}, how=how)
    trainer(callback).fit(module, loader(batches(COUNT)))
    before, after = (nothing, thresholds) if how == "proximal" else (BEFORE[how], nothing)
    assert equal(module.net, manual_by_hand(before, after))
    assert callback.regularizer.state_dict()["updates"] == [COUNT, COUNT // 2]


def test_only_the_optimizers_that_hold_a_penalized_parameter_are_attached_to():
    module, callback = Manual(), RegularizerCallback({"net.2.weight": L1(falling)})
    trainer(callback).fit(module, loader(batches(COUNT)))
    assert callback.regularizer.state_dict()["updates"] == [COUNT // 2]
    assert zeros(module.net[2]) > 0


def test_declared_layers_need_no_callback():
    module = Module()
    for layer in (module.net[0], module.net[2]):
        regularize(layer, L1(0.02))
    trainer(accumulate_grad_batches=2, gradient_clip_val=0.05).fit(module, loader(batches(COUNT)))
    constant = functools.partial(thresholds, strength=lambda update: 0.02)
    assert equal(module.net, by_hand(accumulate=2, clip=0.05, after=constant))


def test_declared_layers_are_taken_over_by_a_callback_without_rules():
    def declared():
        module = Module()
        regularize(module.net[0], L1(0.02))
        return module

    alone, module, callback = declared(), declared(), RegularizerCallback()
    trainer().fit(alone, loader(batches(COUNT)))
    trainer(callback).fit(module, loader(batches(COUNT)))
    assert equal(alone.net, module.net)
    assert [entry.name for entry in callback.regularizer.plan] == ["net.0.weight"]


@pytest.mark.parametrize(
    ("make", "options"), [(Module, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}), (Manual, {})]
)
@pytest.mark.parametrize("saved", ["while it ran", "after the end"])
def test_resume_from_the_trainers_own_checkpoint(make, options, saved, tmp_path):
    def fit(epochs, *others, **resume):
        module, callback = make(), RegularizerCallback({RULE: L1(falling)}, hold_zeros=0.9)
        running = trainer(callback, *others, max_epochs=epochs, enable_checkpointing=bool(others), **options)
        running.fit(module, loader(batches(COUNT)), **resume)
        return module.net, callback.regularizer.state_dict()["updates"], running

    keeps = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    straight, all_updates, _ = fit(4, keeps)
    path = tmp_path / "epoch=1.ckpt"
    if saved == "after the end":
        path = tmp_path / "half.ckpt"
        fit(2)[2].save_checkpoint(path)
    resumed, updates, _ = fit(4, keeps, ckpt_path=path, weights_only=True)
    assert equal(resumed, straight)
    assert updates == all_updates


def test_two_callbacks_resume_from_a_checkpoint_with_other_strengths(tmp_path):
    def fit(epochs, scale, **resume):
        callbacks = [
            RegularizerCallback({"net.0.weight": L1(lambda update: scale * falling(update))}, hold_zeros=0.9),
            RegularizerCallback({"net.2.*": GroupLasso(falling, Rows()), "*": None}, how="decoupled"),
        ]
        module, running = Module(), trainer(*callbacks, max_epochs=epochs)
        running.fit(module, loader(batches(COUNT)), **resume)
        return module.net, [each.regularizer.state_dict()["updates"] for each in callbacks], running, callbacks

    straight, all_updates, _, callbacks = fit(4, 1.0)
    assert callbacks[0].state_key == "RegularizerCallback{'rules': [\"'net.0.weight': L1 (proximal)\"]}"
    path = tmp_path / "half.ckpt"
    fit(2, 1.0)[2].save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["callbacks"]
    assert [saved[each.state_key]["updates"] for each in callbacks] == [[2 * COUNT], [2 * COUNT]]
    resumed, updates, _, _ = fit(4, 1.0, ckpt_path=path, weights_only=True)
    assert equal(resumed, straight)
    assert updates == all_updates
    assert fit(4, 2.0, ckpt_path=path, weights_only=True)[1] == all_updates


def test_what_a_validation_loaded_is_not_taken_over_by_a_fit(tmp_path):
    class Validated(Module):
        def validation_step(self, batch, index):
            pass

    callback = RegularizerCallback({RULE: L1(falling)})
    running = trainer(callback)
    running.fit(Module(), loader(batches(COUNT)))
    running.save_checkpoint(tmp_path / "one.ckpt")
    module, callback = Validated(), RegularizerCallback({RULE: L1(falling)})
    running = trainer(callback, max_epochs=1)
    running.validate(module, loader(batches(1)), verbose=False, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    module.net.load_state_dict(mlp().state_dict())
    running.fit(module, loader(batches(COUNT)), loader(batches(1)))
    assert equal(module.net, by_hand())


def test_another_fit_of_the_same_trainer_goes_on_and_penalizes_once():
    def make(parameters):
        made.append(SGD(parameters, lr=0.1))
        return made[-1]

    made = []
    once, twice = Module(sgd), Module(make)
    trainer(RegularizerCallback({RULE: L1(falling)}), max_epochs=2).fit(once, loader(batches(COUNT)))
    callback = RegularizerCallback({RULE: L1(falling)})
    twin = trainer(callback, max_epochs=1)
    twin.fit(twice, loader(batches(COUNT)))
    assert hooks(made[0]) == 0
    twin.fit_loop.max_epochs = 2
    twin.fit(twice, loader(batches(COUNT)))
    assert equal(once.net, twice.net)
    assert hooks(made[1]) == 0
    assert callback.regularizer.state_dict()["updates"] == [2 * COUNT]


def test_a_fit_of_a_new_trainer_starts_anew():
    module, callback = Module(), RegularizerCallback({RULE: L1(falling)})
    for _ in range(2):
        module.net.load_state_dict(mlp().state_dict())
        trainer(callback).fit(module, loader(batches(COUNT)))
        assert equal(module.net, by_hand())
    assert callback.regularizer.state_dict()["updates"] == [COUNT]


class Fails(Module):
    """Raises in its fourth training step."""

    def training_step(self, batch, index):
        if index == 3:
            raise RuntimeError("a training step that fails")
        return super().training_step(batch, index)


def test_a_fit_that_raised_leaves_no_hooks():
    module, callback = Fails(), RegularizerCallback({RULE: L1(falling)})
    running = trainer(callback)
    with pytest.raises(RuntimeError, match="a training step that fails"):
        running.fit(module, loader(batches(COUNT)))
    assert all(hooks(optimizer) == 0 for optimizer in running.optimizers)
    assert callback.regularizer.state_dict()["updates"] == [3]


def sgd_for_the_first_layer_only(parameters):
    return SGD(list(parameters)[:2], lr=0.1)


ERRORS = [
    (
        Module(),
        RegularizerCallback({"0.weight": L1(0.1)}),
        SelectionError,
        r"'0\.weight' matches no .* 'net\.0\.weight'",
    ),
    (Module(), RegularizerCallback(), SelectionError, "no layer of the model declares any"),
    (
        Module(sgd_for_the_first_layer_only),
        RegularizerCallback({"net.2.weight": L1(0.1)}),
        AttachmentError,
        r"no optimizer of the trainer \(it has SGD\) holds any of the penalized parameters \['net\.2\.weight'\]",
    ),
    (Module(lambda p: LBFGS(p)), RegularizerCallback({RULE: L1(0.1)}), MetricError, "LBFGS"),
]


@pytest.mark.parametrize(("module", "callback", "error", "message"), ERRORS)
def test_what_does_not_fit_is_an_error_when_fit_starts(module, callback, error, message):
    running = trainer(callback)
    with pytest.raises(error, match=message):
        running.fit(module, loader(batches(COUNT)))
    assert equal(module.net, mlp())
    assert all(hooks(optimizer) == 0 for optimizer in running.optimizers)


def test_bad_arguments_are_errors_at_once():
    for arguments, error in [((L1(0.1), "proximal", 2.0), ValueError), (("*", "proximal", None), TypeError)]:
        rules, how, hold_zeros = arguments
        with pytest.raises(error):
            RegularizerCallback(rules, how=how, hold_zeros=hold_zeros)
    with pytest.raises(ValueError, match="how must be one of"):
        RegularizerCallback(L1(0.1), how="before")


def test_a_module_that_attaches_by_itself_is_not_penalized_twice():
    class Attaches(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            self.regularizer = Regularizer(self.net, L1(falling)).attach(optimizer)
            return optimizer

    with pytest.raises(AttachmentError, match=r"'net\.0\.weight' .* is penalized by another Regularizer"):
        trainer(RegularizerCallback({RULE: L1(falling)})).fit(Attaches(), loader(batches(COUNT)))
    module = Attaches()
    trainer().fit(module, loader(batches(COUNT)))
    assert equal(module.net, by_hand())


def test_two_callbacks_with_the_same_selectors_are_refused_by_the_trainer():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `RegularizerCallback`"):
        trainer(RegularizerCallback({"net.0.weight": L1(0.1)}), RegularizerCallback({"net.0.weight": L1(0.2)}))


def test_a_checkpoint_that_was_made_with_the_callback_asks_for_it(tmp_path):
    running = trainer(RegularizerCallback({RULE: L1(falling)}))
    running.fit(Module(), loader(batches(COUNT)))
    running.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.warns(UserWarning, match=r"add the following callbacks: .*RegularizerCallback.*net\.\*\.weight"):
        trainer(max_epochs=2).fit(Module(), loader(batches(COUNT)), ckpt_path=tmp_path / "one.ckpt", weights_only=True)


def test_stochastic_weight_averaging_averages_what_was_penalized():
    averaged = []

    def after(net, optimizer, update):
        thresholds(net, optimizer, update)
        averaged.append(copy.deepcopy(net)) if update in (COUNT - 1, 2 * COUNT - 1) else None

    module = Module(sgd)
    swa = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2, annealing_epochs=1, annealing_strategy="linear")
    trainer(swa, RegularizerCallback({RULE: L1(falling)}), max_epochs=3).fit(module, loader(batches(COUNT)))
    by_hand(sgd, data=batches(COUNT) * 3, after=after)
    for ours, *others in zip(module.net.parameters(), *(net.parameters() for net in averaged), strict=True):
        torch.testing.assert_close(ours, torch.stack(others).mean(dim=0))


def test_a_running_average_takes_in_what_was_penalized():
    averaged = AveragedModel(mlp(), avg_fn=get_ema_avg_fn(0.9))

    def after(net, optimizer, update):
        thresholds(net, optimizer, update)
        averaged.update_parameters(net)

    module = Module()
    callbacks = [EMAWeightAveraging(decay=0.9), RegularizerCallback({RULE: L1(falling)})]
    trainer(*callbacks, accumulate_grad_batches=2).fit(module, loader(batches(COUNT)))
    by_hand(accumulate=2, after=after)
    assert equal(module.net, averaged.module)


def test_a_parameter_group_that_is_added_in_the_middle_is_penalized_from_then_on():
    class Unfreezes(Module):
        def configure_optimizers(self):
            return sgd(self.net[2].parameters())

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.optimizers().add_param_group({"params": self.net[0].parameters()})

    module = Unfreezes()
    trainer(RegularizerCallback({RULE: L1(falling)}), max_epochs=2).fit(module, loader(batches(COUNT)))
    net = mlp()
    optimizer = sgd(net[2].parameters())
    for update, batch in enumerate(batches(COUNT) * 2):
        if update == COUNT:
            optimizer.add_param_group({"params": net[0].parameters()})
        train_step(optimizer, loss_of(net, batch))
        with torch.no_grad():
            thresholds(net if update >= COUNT else net[2], optimizer, update)
    assert equal(module.net, net)


def test_a_budget_is_logged_when_the_trainer_logs():
    module = Module()
    callback = RegularizerCallback({RULE: Budget(zeros=0.5, updates=24, begin=0.0, end=0.5)})
    run = trainer(callback, logger=DummyLogger(), log_every_n_steps=4, max_epochs=2)
    run.fit(module, loader(batches(COUNT)))
    wanted, reached = (float(run.logged_metrics[f"shrinkage/budget/{each}"]) for each in ("wanted", "reached"))
    assert wanted == reached == 36


def test_every_epoch_is_logged_in_the_loggers_of_the_trainer(tmp_path):
    module, logger = Module(), CSVLogger(tmp_path, name="run")
    callback = RegularizerCallback({RULE: L1(rising)})
    trainer(callback, logger=logger, log_every_n_steps=1, max_epochs=3).fit(module, loader(batches(COUNT)))
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["shrinkage/zeros"]]
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    last = {name: float(value) for name, value in rows[-1].items() if name.startswith("shrinkage/") and value}
    assert last == pytest.approx(callback.regularizer.stats(), rel=1e-6)
    assert 0 < last["shrinkage/zeros"] < 1
    found = [float(row[f"shrinkage/strength/{RULE}"]) for row in rows]
    assert found == pytest.approx([rising(COUNT * epoch) for epoch in (1, 2, 3)], rel=1e-6)


@pytest.mark.parametrize("first", [True, False], ids=["before it", "after it"])
def test_training_stops_at_a_share_of_zeros(first):
    class Validated(Module):
        def validation_step(self, batch, index):
            loss_of(self.net, batch)

    module = Validated()
    stop = EarlyStopping("shrinkage/zeros", mode="max", stopping_threshold=0.3, patience=100)
    callbacks = [RegularizerCallback({RULE: L1(0.05)}), stop]
    run = trainer(*(callbacks if first else callbacks[::-1]), max_epochs=50)
    run.fit(module, loader(batches(COUNT)), loader(batches(2)))
    assert run.current_epoch < 49
    assert callbacks[0].regularizer.stats()["shrinkage/zeros"] > 0.3


def test_every_epoch_is_logged_in_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    callback = RegularizerCallback({RULE: L1(falling)})
    trainer(callback, logger=logger, log_every_n_steps=4, max_epochs=2).fit(Module(), loader(batches(COUNT)))
    seen = dict(logger.experiment.summary)
    logger.experiment.finish()
    stats = callback.regularizer.stats()
    assert {name: seen[name] for name in stats} == pytest.approx(stats, rel=1e-6)
