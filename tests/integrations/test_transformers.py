"""Hugging Face's Trainer with the callback ends with the very weights of a loop that is written by hand."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.utils.data import SequentialSampler
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.optimization import get_linear_schedule_with_warmup

from models import batches, equal, hooks, loss_of, mlp, soft_, weights, zeros
from shrinkage import L1, L2, AttachmentError, Budget, Regularizer, SelectionError, regularize
from shrinkage.integrations.transformers import RegularizerCallback

# Loops by hand take torch's roots, which kernels round otherwise.
pytestmark = pytest.mark.usefixtures("without_native")

RULE = "net.*.weight"
COUNT = 12  # batches in an epoch
OPTIONS = {"learning_rate": 0.02, "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.05}


def falling(update):
    return 0.02 * 0.9**update


class Model(nn.Module):
    """A small network that returns its loss, as the Trainer wants it."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, y):
        return {"loss": loss_of(self.net, (x, y))}


class InOrder(Trainer):
    """Takes the examples in their order."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def trainer(model, folder, *callbacks, optimizers=(None, None), data=None, **options):
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
    }
    examples = [{"x": x, "y": y} for batch in batches(COUNT) for x, y in zip(*batch, strict=True)]
    settings = {**quiet, **OPTIONS, "num_train_epochs": 1, "per_device_train_batch_size": 16, **options}
    made = InOrder(
        model=model,
        args=TrainingArguments(str(folder), **settings),
        train_dataset=examples if data is None else data,
        eval_dataset=examples,
        callbacks=list(callbacks),
        optimizers=optimizers,
    )
    made.pop_callback("PrinterCallback")
    return made


def groups(model, decay):
    """Return the parameter groups that the Trainer makes for models without norms."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if not name.endswith("bias")]
    rest = [p for name, p in named if name.endswith("bias")]
    return [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def thresholds(net, optimizer, update):
    """Apply the textbook's proximal step for L1 in AdamW's metric; the first group holds the weights."""
    group = optimizer.param_groups[0]
    for w in weights(net):
        state = optimizer.state[w]
        second_moment = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
        soft_(w, falling(update) * (group["lr"] / (second_moment.sqrt() + group["eps"])))


def by_hand(*, accumulate=1, dtype=None, before=lambda net: None, after=thresholds, epochs=1):
    """Train in a loop, with code of the test's own around the step."""
    model = Model()
    optimizer = AdamW(groups(model, OPTIONS["weight_decay"]), lr=OPTIONS["learning_rate"], fused=True)
    data = batches(COUNT) * epochs
    scheduler = get_linear_schedule_with_warmup(optimizer, OPTIONS["warmup_steps"], len(data) // accumulate)
    for update, start in enumerate(range(0, len(data), accumulate)):
        for x, y in data[start : start + accumulate]:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = model(x, y)["loss"]
            (loss.float() / accumulate).backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIONS["max_grad_norm"])
        with torch.no_grad():
            before(model.net)
            optimizer.step()
            after(model.net, optimizer, update)
        scheduler.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("accumulate", [1, 2])
def test_trainer_with_its_default_optimizer(accumulate, tmp_path):
    model, callback = Model(), RegularizerCallback({RULE: L1(falling)})
    trainer(model, tmp_path, callback, gradient_accumulation_steps=accumulate).train()
    hand = by_hand(accumulate=accumulate)
    assert equal(model, hand)
    assert zeros(hand) > 0
    assert callback.regularizer.state_dict()["updates"] == [COUNT // accumulate]


def test_the_gradient_of_a_penalty_comes_after_accumulation_and_clipping(tmp_path):
    def before(net):
        for w in weights(net):
            w.grad.add_(w, alpha=0.5)

    model, callback = Model(), RegularizerCallback({RULE: L2(0.5)}, how="gradient")
    trainer(model, tmp_path, callback, gradient_accumulation_steps=2).train()
    assert equal(model, by_hand(accumulate=2, before=before, after=lambda *_: None))


def test_bf16(tmp_path):
    model = Model()
    trainer(model, tmp_path, RegularizerCallback({RULE: L1(falling)}), bf16=True).train()
    assert equal(model, by_hand(dtype=torch.bfloat16))


def test_an_optimizer_of_ones_own_is_attached_to_without_a_callback(tmp_path):
    model = Model()
    optimizer = AdamW(groups(model, OPTIONS["weight_decay"]), lr=OPTIONS["learning_rate"], fused=True)
    Regularizer(model, {RULE: L1(falling)}).attach(optimizer)
    trainer(model, tmp_path, optimizers=(optimizer, None)).train()
    assert equal(model, by_hand())


def test_declared_layers_need_no_callback(tmp_path):
    model, ruled = Model(), Model()
    for layer in (model.net[0], model.net[2]):
        regularize(layer, L1(0.02))
    trainer(model, tmp_path).train()
    trainer(ruled, tmp_path, RegularizerCallback({RULE: L1(0.02)})).train()
    assert equal(model, ruled)
    assert zeros(model) > 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_from_the_trainers_own_checkpoint(accumulate, tmp_path):
    def run(folder, **resume):
        torch.manual_seed(5)
        model, callback = Model(), RegularizerCallback({RULE: L1(falling)}, hold_zeros=0.9)
        saving = {"save_strategy": "steps", "save_steps": 5, "gradient_accumulation_steps": accumulate}
        trainer(model, folder, callback, num_train_epochs=2, **saving).train(**resume)
        return model, callback.regularizer.state_dict()

    straight, state = run(tmp_path / "straight")
    resumed, resumed_state = run(tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "straight/checkpoint-5"))
    assert equal(straight, resumed)
    assert state["updates"] == resumed_state["updates"] == [2 * COUNT // accumulate]
    for name, average in state["averages"][0].items():
        assert torch.equal(average["total"], resumed_state["averages"][0][name]["total"])


def test_resume_with_an_optimizer_of_ones_own(tmp_path):
    def run(folder, **resume):
        model = Model()
        optimizer = AdamW(groups(model, 0.1), lr=0.02)
        regularizer = Regularizer(model, {RULE: L1(falling)}, hold_zeros=0.9).attach(optimizer)
        trainer(model, folder, optimizers=(optimizer, None), save_strategy="steps", save_steps=5).train(**resume)
        return model, regularizer.state_dict()["updates"]

    straight, _ = run(tmp_path / "straight")
    resumed, updates = run(tmp_path / "r", resume_from_checkpoint=str(tmp_path / "straight/checkpoint-5"))
    assert equal(straight, resumed)
    assert updates == [COUNT]


def test_a_checkpoint_without_the_state_is_resumed_with_a_warning(tmp_path):
    for kind, options in (("plain", {}), ("model", {"save_only_model": True})):
        callbacks = [RegularizerCallback({RULE: L1(falling)})] if kind == "model" else []
        saving = {"save_strategy": "steps", "save_steps": 5}
        trainer(Model(), tmp_path / kind, *callbacks, **saving, **options).train()
        callback = RegularizerCallback({RULE: L1(falling)})
        with pytest.warns(UserWarning, match="resumes at step 5, but the checkpoint's optimizer holds no state"):
            trainer(Model(), tmp_path / "again", callback).train(str(tmp_path / kind / "checkpoint-5"))
        assert callback.regularizer.state_dict()["updates"] == [COUNT - 5]


def test_another_run_of_the_same_trainer_penalizes_once_and_counts_from_zero(tmp_path):
    model, callback = Model(), RegularizerCallback({RULE: L1(falling)})
    running = trainer(model, tmp_path, callback)
    running.train()
    bare = running.optimizer.optimizer
    assert hooks(bare) == 0
    model.load_state_dict(Model().state_dict())
    bare.state.clear()
    running.train()
    assert equal(model, by_hand())
    assert hooks(bare) == 0


def test_a_run_that_raised_is_not_penalized_twice_by_the_next(tmp_path):
    class Fails(Model):
        calls = 0

        def forward(self, x, y):
            self.calls += 1
            if self.calls == 4:
                raise RuntimeError("a forward pass that fails")
            return super().forward(x, y)

    model, callback = Fails(), RegularizerCallback({RULE: L1(falling)})
    running = trainer(model, tmp_path, callback)
    with pytest.raises(RuntimeError, match="a forward pass that fails"):
        running.train()
    model.load_state_dict(Model().state_dict())
    running.optimizer.optimizer.state.clear()
    running.train()
    assert equal(model, by_hand())


def of_the_first_layer(model):
    return AdamW(model.net[0].parameters(), lr=0.01)


ERRORS = [
    ({"net.1.weight": L1(0.1)}, None, SelectionError, r"'net\.1\.weight' matches no parameter"),
    (None, None, SelectionError, "no layer of the model declares any"),
    ({"net.2.weight": L1(0.1)}, of_the_first_layer, AttachmentError, "holds none of the 1 penalized parameters"),
]


@pytest.mark.parametrize(("rules", "make", "error", "message"), ERRORS)
def test_what_does_not_fit_is_an_error_when_training_begins(rules, make, error, message, tmp_path):
    model, callback = Model(), RegularizerCallback(rules)
    running = trainer(model, tmp_path, callback, optimizers=(make and make(model), None))
    with pytest.raises(error, match=message):
        running.train()
    assert equal(model, Model())
    assert hooks(running.optimizer.optimizer) == 0


def test_bad_arguments_are_errors_at_once():
    with pytest.raises(ValueError, match="hold_zeros must be a decay"):
        RegularizerCallback(L1(0.1), hold_zeros=2.0)
    with pytest.raises(ValueError, match="how must be one of"):
        RegularizerCallback(L1(0.1), how="before")


def test_two_callbacks_do_not_penalize_a_parameter_twice(tmp_path):
    callbacks = [RegularizerCallback({RULE: L1(0.1)}), RegularizerCallback({"net.0.weight": L1(0.1)})]
    with pytest.raises(AttachmentError, match=r"'net\.0\.weight' .* is penalized by another Regularizer"):
        trainer(Model(), tmp_path, *callbacks).train()


def test_a_tiny_bert_with_norms_embeddings_and_dropout_resumes_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(3)
    data = [
        {
            "input_ids": torch.randint(50, (6,), generator=generator),
            "labels": int(torch.randint(2, (), generator=generator)),
        }
        for _ in range(64)
    ]

    def run(folder, **resume):
        torch.manual_seed(4)
        config = BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        model = BertForSequenceClassification(config)
        callback = RegularizerCallback({"*.attention.*.dense.weight": None, nn.Linear: L1(falling)}, hold_zeros=0.9)
        saving = {"save_strategy": "steps", "save_steps": 3}
        trainer(model, folder, callback, data=data, per_device_train_batch_size=8, **saving).train(**resume)
        return model, callback

    straight, _ = run(tmp_path / "straight")
    resumed, callback = run(tmp_path / "r", resume_from_checkpoint=str(tmp_path / "straight/checkpoint-3"))
    assert equal(straight, resumed)
    assert callback.regularizer.state_dict()["updates"] == [8]
    assert (straight.bert.encoder.layer[0].intermediate.dense.weight == 0).any()


def test_a_budget_is_logged_with_the_rest(tmp_path):
    seen = []

    class Seen(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    model = Model()
    callback = RegularizerCallback({RULE: Budget(zeros=0.5, updates=3 * COUNT, begin=0.0, end=0.5)})
    run = trainer(model, tmp_path, callback, Seen(), num_train_epochs=3, logging_strategy="steps", logging_steps=12)
    run.train()
    assert [each["shrinkage/budget/wanted"] for each in seen[:3]] == [35.0, 36.0, 36.0]
    assert [each["shrinkage/budget/reached"] for each in seen[:3]] == [35.0, 36.0, 36.0]
    assert zeros(model.net) == 36


def test_every_epoch_is_logged_in_the_history_and_in_files_of_tensorboard(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = Model()
    callback = RegularizerCallback({RULE: L1(falling)})
    options = {"logging_strategy": "steps", "logging_steps": 1000, "report_to": ["tensorboard"]}
    run = trainer(model, tmp_path, callback, num_train_epochs=3, **options)
    run.train()
    rows = [row for row in run.state.log_history if "shrinkage/zeros" in row]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {name: rows[-1][name] for name in callback.regularizer.stats()} == callback.regularizer.stats()
    found = {}
    for file in tmp_path.rglob("events.out.tfevents.*"):
        events = event_accumulator.EventAccumulator(str(file)).Reload()
        found |= {tag: [each.value for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["train/shrinkage/zeros"] == pytest.approx([row["shrinkage/zeros"] for row in rows])
    assert "train/loss" in found


def test_nothing_is_logged_where_the_trainer_logs_nothing(tmp_path):
    run = trainer(Model(), tmp_path, RegularizerCallback({RULE: L1(0.1)}), num_train_epochs=2, logging_strategy="no")
    run.train()
    assert len(run.state.log_history) == 1  # what the trainer says in the end


def test_a_number_of_the_callback_chooses_and_stops(tmp_path):
    callback = RegularizerCallback({RULE: L1(1e-4)})
    options = {"metric_for_best_model": "shrinkage/dead_layers", "greater_is_better": True, "eval_strategy": "epoch"}
    options |= {"save_strategy": "epoch", "num_train_epochs": 40}
    options |= {"load_best_model_at_end": True}
    run = trainer(Model(), tmp_path, callback, EarlyStoppingCallback(2), **options)
    run.train()
    assert run.state.epoch == 3
    assert run.state.best_metric == 0


def test_every_epoch_is_logged_in_weights_and_biases(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.chdir(tmp_path)  # where a run goes if the process has one already, which read its settings once
    callback = RegularizerCallback({RULE: L1(falling)})
    options = {"logging_strategy": "epoch", "report_to": ["wandb"], "num_train_epochs": 2}
    trainer(Model(), tmp_path, callback, **options).train()
    seen = dict(wandb.run.summary)
    wandb.finish()
    stats = callback.regularizer.stats()
    assert {name: seen[f"train/{name}"] for name in stats} == pytest.approx(stats, rel=1e-6)
    assert "train/loss" in seen
