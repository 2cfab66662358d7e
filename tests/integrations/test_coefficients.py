"""The factors of docs/migrating.md, each against the package itself where it is installed.

Packages that are not among the development extras are skipped where they are missing.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.optim import SGD, Adam, AdamW

from late import linear_model, neural_network, torchvision_models
from models import batches, loss_of, mlp, train_step
from problems import standardised_breast_cancer, standardised_diabetes
from shrinkage import (
    L1,
    L2,
    Activities,
    Bound,
    Columns,
    Corrected,
    ElasticNet,
    Grouped,
    GroupLasso,
    L1Ball,
    MaxNorm,
    MinMaxNorm,
    NonNegative,
    Penalty,
    Regularizer,
    Rows,
    UnitNorm,
    Weighted,
    Whole,
)
from shrinkage.integrations import coefficients
from shrinkage.integrations import torchlayers as ours

C = 0.3
REASON = "is not among the development extras: pip install it to compare with the package itself"


def package(name):
    return pytest.importorskip(name, reason=f"{name} {REASON}")


def trained(make, declare=lambda model, optimizer: None, *, steps=5, dtype=torch.float64) -> nn.Sequential:
    """`mlp` after some steps of an optimizer."""
    model = mlp(dtype)
    optimizer = make(model)
    declare(model, optimizer)
    for batch in batches(steps, dtype):
        train_step(optimizer, loss_of(model, batch))
    return model


def penalized(penalty: Penalty, how="proximal", names="*"):
    return lambda model, optimizer: Regularizer(model, {names: penalty}, how=how).attach(optimizer)


def difference(one: nn.Module, other: nn.Module) -> float:
    return max(float((p - q).detach().abs().max()) for p, q in zip(one.parameters(), other.parameters(), strict=True))


TERMS = [
    (lambda w: C * w.abs().sum(), L1(C)),
    (lambda w: C * (w**2).sum(), L2(2 * C)),
    (lambda w: C / 2 * (w**2).sum(), L2(C)),
    (lambda w: C * w.abs().mean(), L1(C / 48)),
    (lambda w: C * (w**2).mean(), L2(2 * C / 48)),
    (lambda w: C * w.norm(), GroupLasso(C, Whole(), weigh_by_size=False)),
    (lambda w: C * w.norm(dim=0).sum(), GroupLasso(C, Columns(), weigh_by_size=False)),
    (lambda w: C * w.norm(dim=1).sum(), GroupLasso(C, Rows(), weigh_by_size=False)),
]


@pytest.mark.parametrize(("term", "penalty"), TERMS, ids=[str(penalty) for _, penalty in TERMS])
def test_a_term_in_the_loss(term, penalty):
    def with_term(model, batch):
        return loss_of(model, batch) + term(model[0].weight)

    model = mlp(torch.float64)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in batches(5, torch.float64):
        train_step(optimizer, with_term(model, batch))
    found = trained(lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9), penalized(penalty, "gradient", "0.weight"))
    assert difference(found, model) <= 1e-14


@pytest.mark.parametrize(
    ("term", "penalty"),
    [(lambda h: C * h.abs().sum(1).mean(), L1(C)), (lambda h: C * h.square().sum(1).mean(), L2(2 * C))],
    ids=["L1", "L2"],
)
def test_a_term_of_what_a_layer_puts_out(term, penalty):
    with_term, marked = mlp(torch.float64), mlp(torch.float64)
    activities = Activities(marked, {"1": penalty})
    for batch in batches(5, torch.float64):
        train_step(SGD(with_term.parameters(), lr=0.1), loss_of(with_term, batch) + term(with_term[:2](batch[0])))
        train_step(SGD(marked.parameters(), lr=0.1), activities.mark(loss_of(marked, batch)))
    assert difference(marked, with_term) <= 1e-14


def test_a_sum_over_samples_has_as_many_times_the_strength():
    """48 targets in a batch: the learning rate is divided by what the loss is multiplied by."""

    def run(factor):
        model = mlp(torch.float64)
        optimizer = SGD(model.parameters(), lr=0.1 / factor)
        Regularizer(model, L1(0.05 * factor)).attach(optimizer)
        for batch in batches(20, torch.float64):
            train_step(optimizer, factor * loss_of(model, batch))
        return model

    mean, total = run(1), run(48)
    assert difference(mean, total) <= 1e-14
    assert (mean[0].weight == 0).any()


@pytest.mark.parametrize(
    ("theirs", "plain", "how"),
    [
        (lambda m: SGD(m.parameters(), lr=0.1, weight_decay=C), lambda m: SGD(m.parameters(), lr=0.1), "gradient"),
        (lambda m: Adam(m.parameters(), weight_decay=C), lambda m: Adam(m.parameters()), "gradient"),
        (
            lambda m: AdamW(m.parameters(), weight_decay=C),
            lambda m: AdamW(m.parameters(), weight_decay=0.0),
            "decoupled",
        ),
    ],
    ids=["SGD", "Adam", "AdamW"],
)
def test_weight_decay_of_torch(theirs, plain, how):
    assert difference(trained(theirs), trained(plain, penalized(L2(C), how))) == 0.0


def residual(solution, intercept, x, y, loss, penalty) -> float:
    """How far the derivative of the loss plus the penalty is from 0 at weights that another package found."""
    weight = torch.tensor(np.atleast_2d(solution))
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=intercept is not None, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if intercept is not None:
            layer.bias.copy_(torch.tensor(intercept))
    inputs, targets = torch.tensor(x), torch.tensor(y).reshape(len(x), -1)
    found = Regularizer(layer, {"weight": penalty}).residuals(lambda: loss(layer(inputs), targets))
    return max(each.max for each in (*found.penalized, *found.others))


def half(outputs, targets):
    return mse_loss(outputs, targets) / 2


@pytest.mark.parametrize("loss", ["mse", "half"])
def test_squared_errors_of_sklearn(loss):
    x, y = standardised_diabetes()
    of = {"mse": mse_loss, "half": half}[loss]
    exact = {"fit_intercept": False, "tol": 1e-13}
    found = linear_model.Lasso(alpha=0.05, max_iter=10**6, **exact).fit(x, y).coef_
    assert residual(found, None, x, y, of, coefficients.lasso(0.05, loss=loss)) <= 1e-12
    assert residual(found, None, x, y, of, coefficients.lasso(0.06, loss=loss)) > 1e-3
    found = linear_model.ElasticNet(alpha=0.05, l1_ratio=0.3, max_iter=10**6, **exact).fit(x, y).coef_
    assert residual(found, None, x, y, of, coefficients.elastic_net(0.05, 0.3, loss=loss)) <= 1e-12
    found = linear_model.Ridge(alpha=7.0, **exact).fit(x, y).coef_
    assert residual(found, None, x, y, of, coefficients.ridge(7.0, samples=len(x), loss=loss)) <= 1e-12


def test_several_outputs_of_sklearn():
    x, y = standardised_diabetes()
    targets = np.stack([y, np.roll(y, 1), y**2], 1)
    targets = targets - targets.mean(0)
    solver = linear_model.MultiTaskLasso(alpha=0.05, fit_intercept=False, tol=1e-13, max_iter=10**6).fit(x, targets)
    penalty = coefficients.multi_task_lasso(0.05, outputs=3)
    assert residual(solver.coef_, None, x, targets, mse_loss, penalty) <= 1e-12
    assert 0 < (solver.coef_ == 0).all(0).sum() < x.shape[1]


@pytest.mark.parametrize(("l1_ratio", "solver"), [(1.0, "liblinear"), (0.4, "saga"), (0.0, "newton-cholesky")])
def test_logistic_regression_of_sklearn(l1_ratio, solver):
    x, signs = standardised_breast_cancer()
    labels = (signs + 1) / 2
    found = linear_model.LogisticRegression(
        C=0.05, l1_ratio=l1_ratio, solver=solver, tol=1e-9, max_iter=200_000, random_state=0
    )
    found.set_params(fit_intercept=solver != "liblinear").fit(x, labels)
    intercept = found.intercept_ if found.fit_intercept else None
    penalty = coefficients.logistic_regression(0.05, samples=len(x), l1_ratio=l1_ratio)
    assert residual(found.coef_, intercept, x, labels, binary_cross_entropy_with_logits, penalty) <= 1e-8
    other = coefficients.logistic_regression(0.06, samples=len(x), l1_ratio=l1_ratio)
    assert residual(found.coef_, intercept, x, labels, binary_cross_entropy_with_logits, other) > 1e-4


@pytest.mark.parametrize(("name", "penalty", "steps"), [("l2", L2(0.2), 5), ("l1", L1(0.2), 1)])
def test_gradient_descent_of_sklearn(name, penalty, steps):
    """Their L2 is a derivative. Their L1 is a soft threshold, which makes up later for what it could not take off."""
    x, y = standardised_diabetes()
    layer = nn.Linear(10, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    optimizer = SGD(layer.parameters(), lr=0.1)
    Regularizer(layer, penalty, how="gradient" if name == "l2" else "proximal").attach(optimizer)
    solver = linear_model.SGDRegressor(
        penalty=name, alpha=0.2, fit_intercept=False, learning_rate="constant", eta0=0.1, shuffle=False
    )
    solver.partial_fit(x[:steps], y[:steps])
    for row, target in zip(torch.tensor(x[:steps]), torch.tensor(y[:steps]), strict=True):
        train_step(optimizer, half(layer(row), target[None]))
    torch.testing.assert_close(layer.weight.detach()[0], torch.tensor(solver.coef_), rtol=1e-12, atol=1e-15)


def test_perceptrons_of_sklearn():
    x, y = standardised_diabetes()
    solver = neural_network.MLPRegressor(
        hidden_layer_sizes=(4,), activation="tanh", alpha=3.0, solver="lbfgs", tol=1e-12, max_iter=5000, random_state=0
    ).fit(x, y)
    model = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for layer, weight, bias in zip((model[0], model[2]), solver.coefs_, solver.intercepts_, strict=True):
            layer.weight.copy_(torch.tensor(weight.T))
            layer.bias.copy_(torch.tensor(bias))
    inputs, targets = torch.tensor(x), torch.tensor(y)[:, None]

    def worst(penalty):
        found = Regularizer(model, penalty).residuals(lambda: half(model(inputs), targets))
        return max(each.max for each in (*found.penalized, *found.others))

    assert worst(coefficients.perceptron(3.0, batch=len(x))) <= 1e-5
    assert worst(coefficients.perceptron(4.0, batch=len(x))) > 1e-4


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_a_soft_threshold_after_momentum_solves_a_weaker_problem(momentum, dampening):
    x, y = standardised_diabetes()
    inputs, targets = torch.tensor(x), torch.tensor(y)
    gram, correlations = inputs.T @ inputs / len(x), inputs.T @ targets / len(x)
    w = nn.Parameter(torch.zeros(10, dtype=torch.float64))
    lr, strength = 0.1, 0.1
    optimizer = SGD([w], lr=lr, momentum=momentum, dampening=dampening)
    for _ in range(1000):
        w.grad = gram @ w.detach() - correlations
        optimizer.step()
        w.data = nn.functional.softshrink(w.data, lr * strength)
    penalty = coefficients.after_momentum(L1(strength), momentum, dampening)
    assert residual(w.detach(), None, x, y, half, penalty) <= 1e-6
    assert (penalty == L1(strength)) == (momentum == 0)
    assert 0 < (w == 0).sum() < 10


def test_decay_that_is_not_multiplied_by_the_learning_rate():
    layer = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    before = layer.weight.detach().clone()
    optimizer = SGD(layer.parameters(), lr=0.5)
    Regularizer(layer, coefficients.independent_decay(0.001, lr=0.5), how="decoupled").attach(optimizer)
    train_step(optimizer, 0 * layer.weight.sum())
    torch.testing.assert_close(layer.weight.detach(), 0.999 * before, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coefficients.lasso(-1.0, loss="mse"), "lasso: alpha must be a finite number >= 0, got -1"),
        (lambda: coefficients.lasso(1.0, loss="mae"), 'loss must be "mse"'),
        (lambda: coefficients.elastic_net(1.0, 1.5, loss="mse"), "l1_ratio must be a number from 0 to 1, got 1.5"),
        (lambda: coefficients.ridge(1.0, samples=0, loss="mse"), "ridge: samples must be a finite number > 0, got 0"),
        (lambda: coefficients.multi_task_lasso(1.0, outputs=0), "outputs must be a finite number > 0, got 0"),
        (lambda: coefficients.logistic_regression(0.0, samples=3), "C must be a finite number > 0, got 0"),
        (lambda: coefficients.perceptron(1.0, batch=0), "batch must be a finite number > 0, got 0"),
        (lambda: coefficients.independent_decay(0.1, lr=0.0), "lr must be a finite number > 0, got 0"),
        (lambda: coefficients.after_momentum(L1(1.0), 1.0), "momentum must be a number from 0 to less than 1, got 1"),
    ],
)
def test_numbers_outside_of_their_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.filterwarnings("ignore")
def test_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = package("keras")
    w = torch.randn(4, 3)
    for theirs, penalty in (
        (keras.regularizers.L1(C), L1(C)),
        (keras.regularizers.L2(C), L2(2 * C)),
        (keras.regularizers.L1L2(C, 0.2), ElasticNet(C, 0.4)),
    ):
        leaf = w.clone().requires_grad_(True)
        theirs(leaf).backward()
        torch.testing.assert_close(leaf.grad, penalty.gradient(w), rtol=1e-6, atol=0)
    for theirs, penalty in ((keras.regularizers.L1(C), L1(C)), (keras.regularizers.L2(C), L2(2 * C))):
        layer, model = keras.layers.Activation("relu", activity_regularizer=theirs), nn.Sequential(nn.ReLU())
        inputs = [w.clone().requires_grad_(True) for _ in range(2)]
        (layer(inputs[0]).square().mean() + sum(layer.losses)).backward()
        Activities(model, {"0": penalty}).mark(model(inputs[1]).square().mean()).backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for theirs, constraint in (
        (keras.constraints.MaxNorm(1.2, axis=0), MaxNorm(1.2)),
        (keras.constraints.MinMaxNorm(0.8, 1.2, axis=0), MinMaxNorm(0.8, 1.2)),
        (keras.constraints.UnitNorm(axis=0), UnitNorm()),
        (keras.constraints.NonNeg(), NonNegative()),
    ):
        kept = theirs(w.T).T  # kernels are (in, out) there
        torch.testing.assert_close(kept, constraint.prox(w, 1.0), rtol=1e-5, atol=0)
    variable = keras.Variable(w.numpy())
    keras.optimizers.AdamW(learning_rate=0.1, weight_decay=C).apply([torch.zeros(4, 3)], [variable])
    torch.testing.assert_close(variable.value.detach(), (1 - 0.1 * C) * w)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["L1", "L2"])
def test_torchlayers(name):
    """Their wrapper acts on the layer whose input takes no gradient, and on no other."""
    theirs = getattr(package("torchlayers.regularization"), name, None)
    if theirs is None:
        pytest.skip("torchlayers 0.1.1 has no L1 and L2 yet; its nightly builds have")

    def declare(make):
        def regularized(model):
            model[0] = make(model[0])
            return SGD(model.parameters(), lr=0.1)

        return regularized

    found = trained(declare(lambda layer: getattr(ours, name)(layer, C)))
    expected = trained(declare(lambda layer: theirs(layer, C)))
    assert difference(found, expected) <= 1e-15
    declared = penalized({"L1": L1(C), "L2": L2(C)}[name], "gradient", "0.*")
    assert difference(found, trained(lambda m: SGD(m.parameters(), lr=0.1), declared)) == 0.0


@pytest.mark.filterwarnings("ignore")
def test_optax():
    optax = package("optax")
    package("jax").config.update("jax_enable_x64", True)
    w, grad = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    for theirs, plain, how in (
        (optax.adamw(0.1, weight_decay=C), lambda p: AdamW(p, lr=0.1, weight_decay=0.0), "decoupled"),
        (optax.chain(optax.add_decayed_weights(C), optax.sgd(0.1)), lambda p: SGD(p, lr=0.1), "gradient"),
    ):
        layer = nn.Linear(3, 4, bias=False, dtype=torch.float64)
        layer.weight.data.copy_(w)
        optimizer = plain(layer.parameters())
        Regularizer(layer, L2(C), how=how).attach(optimizer)
        values = w.numpy()
        state = theirs.init(values)
        for _ in range(5):
            updates, state = theirs.update(grad.numpy(), state, values)
            values = optax.apply_updates(values, updates)
            train_step(optimizer, (layer.weight * grad).sum())
        torch.testing.assert_close(layer.weight.detach(), torch.tensor(np.array(values)), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "how"), [("adamw", "decoupled"), ("momentum", "gradient")])
def test_timm(name, how):
    """`filter_bias_and_bn`, their default, leaves alone what a rule without a selector leaves alone."""
    with torchvision_models.aside():
        create = package("timm.optim").create_optimizer_v2

    def make(decay):
        return lambda model: create(model, opt=name, lr=0.1, weight_decay=decay)

    expected = trained(make(C))
    found = trained(make(0.0), lambda model, optimizer: Regularizer(model, L2(C), how=how).attach(optimizer))
    assert difference(found, expected) <= 1e-15
    assert difference(found, trained(make(0.0))) > 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("owner", ["timm", "pytorch_optimizer"])
def test_decay_that_is_corrected(owner):
    """Theirs takes the learning rate with which it is made for the peak."""
    if owner == "timm":
        with torchvision_models.aside():
            module = package("timm.optim")
    else:
        module = package(owner)

    def run(decay, corrected=False):
        model = mlp(torch.float64)
        parameters = list(model.parameters())
        if owner == "timm":
            optimizer = module.create_optimizer_v2(parameters, opt="adamc", lr=0.1, weight_decay=decay)
        else:
            optimizer = module.AdamC([{"params": parameters, "normalized": True}], lr=0.1, weight_decay=decay)
        if corrected:
            Regularizer(model, {"*": L2(Corrected(C))}, how="decoupled").attach(optimizer)
        for step, batch in enumerate(batches(10, torch.float64)):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - 0.1 * step)
            train_step(optimizer, loss_of(model, batch))
        return model

    assert difference(run(0.0, corrected=True), run(C)) <= 1e-12
    assert difference(run(0.0), run(C)) > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_adam_cpr():
    """Their bound is on the sum of squares, or of absolute values; the multiplier decays by twice its value.

    Which point of the bound it reaches is not that of the projection: the decay is not in the metric of Adam.
    """
    cpr = package("pytorch_cpr").AdamCPR
    target = torch.linspace(-1, 1, 12, dtype=torch.float64)

    def run(name, kappa):
        w = nn.Parameter(target / 4)
        options = {"kappa_init_method": "uniform", "kappa_init_param": kappa, "kappa_update": 0.01}
        optimizer = cpr([{"params": [w], "regularize": True}], lr=1e-2, reg_function=name, **options)
        for step in range(2000):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 2000)
            train_step(optimizer, (w - target).square().sum())
        return w.detach()

    limit = MaxNorm(2.0**0.5, Whole()).prox(target[None], 1.0).norm()
    torch.testing.assert_close(run("l2", 2.0).norm(), limit, rtol=1e-2, atol=0)
    limit = L1Ball(3.0).prox(target, 1.0).abs().sum()
    torch.testing.assert_close(run("l1", 3.0).abs().sum(), limit, rtol=1e-2, atol=0)

    # where the decay is decoupled here too, it is the same point; their L1 steps back and forth around zero
    for name, kappa, penalty, near in (("l2", 2.0, L2(Bound(1.0)), 5e-3), ("l1", 3.0, L1(Bound(3.0)), 3e-2)):
        layer = nn.Linear(12, 1, bias=False, dtype=torch.float64)
        layer.weight.data.copy_(target[None] / 4)
        optimizer = AdamW(layer.parameters(), lr=1e-2, weight_decay=0.0)
        Regularizer(layer, penalty, how="decoupled").attach(optimizer)
        for step in range(2000):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 2000)
            train_step(optimizer, (layer.weight - target).square().sum())
        torch.testing.assert_close(layer.weight.detach()[0], run(name, kappa), rtol=0, atol=near)

    w = nn.Parameter(target.clone())
    optimizer = cpr([{"params": [w], "regularize": True}], lr=0.1, kappa_update=0.0, reg_by_lr=True)
    train_step(optimizer, 0 * w.sum())
    optimizer.state[w]["lagmul"].fill_(C)
    train_step(optimizer, 0 * w.sum())
    torch.testing.assert_close(w.detach(), (1 - 0.1 * 2 * C) * target, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_torch_pruning():
    """`reg` of BNScalePruner is L1's of the norms, and that of GroupNormPruner is L2's, times gamma of each channel."""
    pruning = package("torch_pruning")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    nn.init.normal_(model[1].weight)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def added(pruner):
        model.zero_grad()
        model(x).square().mean().backward()
        before = [p.grad.clone() for p in model.parameters()]
        pruner.update_regularizer()
        pruner.regularize(model)
        changes = [p.grad - grad for p, grad in zip(model.parameters(), before, strict=True)]
        return dict(zip((name for name, _ in model.named_parameters()), changes, strict=True))

    importance = pruning.importance.BNScaleImportance()
    change = added(pruning.pruner.BNScalePruner(model, x, importance, reg=C, ignored_layers=[model[3]]))
    torch.testing.assert_close(change["1.weight"], L1(C).gradient(model[1].weight.detach()))

    importance = pruning.importance.GroupMagnitudeImportance(normalizer=None)
    pruner = pruning.pruner.GroupNormPruner(model, x, importance, reg=C, ignored_layers=[model[3]])
    change = added(pruner)
    size = pruner.estimate_importance(next(iter(pruner.DG.get_all_groups(ignored_layers=[model[3]])))).sqrt()
    gamma = 16 ** ((size.max() - size) / (size.max() - size.min()))
    penalty = Grouped(Weighted(L2(C), gamma.double()), Rows(), weigh_by_size=False)
    torch.testing.assert_close(change["0.weight"], penalty.gradient(model[0].weight.detach()), rtol=1e-5, atol=1e-8)


PAT = [
    ("ElemGrouper", "ProxLasso", L1(0.05)),
    ("Dim0Grouper", "ProxGroupLasso", GroupLasso(0.05, Rows())),
    ("Dim1Grouper", "ProxGroupLasso", GroupLasso(0.05, Columns())),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("grouper", "prox", "penalty"), PAT, ids=[prox + grouper for grouper, prox, _ in PAT])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_pat(grouper, prox, penalty, momentum):
    """Their operator averages: after one step it is ours, and after SGD it ends where ours does."""
    package("torchao.prototype.pat")
    from torchao.prototype.pat.optim import PruneOptimizer

    x, y = standardised_diabetes()
    targets = torch.tensor(np.stack([y, np.roll(y, 1)], 1))
    inputs = torch.tensor(x)

    def run(theirs, steps):
        torch.manual_seed(0)
        layer = nn.Linear(10, 2, bias=False, dtype=torch.float64)
        group = {"params": [layer.weight], "lr": 0.05}
        kept = {"group_type": grouper, "prox_type": prox, "reg_lambda": 0.05} if theirs else {}
        optimizer = SGD([group | kept], momentum=momentum)
        if theirs:
            optimizer = PruneOptimizer(optimizer, reg_lambda=0.05)
        else:
            ended = coefficients.after_momentum(penalty, momentum) if steps > 1 else penalty
            Regularizer(layer, ended).attach(optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            half(layer(inputs), targets).backward()
            optimizer.step()
        return layer.weight.detach()

    if not momentum:
        torch.testing.assert_close(run(True, 1), run(False, 1), rtol=1e-12, atol=0)
    found, expected = run(True, 1500), run(False, 400)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)
    assert ((found == 0) == (expected == 0)).all()


@pytest.mark.filterwarnings("ignore")
def test_lassonet():
    """Without hierarchy (M = 0) their operator is ours on the skip layer; their SGD has a momentum of 0.9."""
    prox = package("lassonet.prox").prox
    skip, first = torch.randn(3, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    found, _ = prox(skip, first, lambda_=0.1 * 15.0, lambda_bar=0, M=0)
    penalty = GroupLasso(15.0, Columns(), weigh_by_size=False)
    torch.testing.assert_close(found, penalty.prox(skip, 0.1))
    assert 0 < (found == 0).all(0).sum() < 6


@pytest.mark.filterwarnings("ignore")
def test_paddle():
    paddle = package("paddle")
    w, grad = torch.randn(4, 3), torch.randn(4, 3)
    for theirs, penalty in ((paddle.regularizer.L1Decay(C), L1(C)), (paddle.regularizer.L2Decay(C), L2(C))):
        parameter = paddle.create_parameter([4, 3], "float32")
        parameter.set_value(w.numpy())
        optimizer = paddle.optimizer.SGD(0.1, parameters=[parameter], weight_decay=theirs)
        (parameter * paddle.to_tensor(grad.numpy())).sum().backward()
        optimizer.step()
        expected = w - 0.1 * (grad + penalty.gradient(w))
        torch.testing.assert_close(torch.tensor(parameter.numpy()), expected)
