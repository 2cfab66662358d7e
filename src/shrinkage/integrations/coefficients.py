"""Coefficients of other packages as penalties, where the factor needs a number of samples, a batch or a learning rate.

docs/migrating.md has the table of all factors, with those that need no more than a coefficient. The loss is a mean over
samples here, as nearly everywhere in torch.

    from shrinkage.integrations import coefficients

    regularizer = Regularizer(model, coefficients.lasso(alpha=0.1, loss="mse"))
"""

from typing import Literal

from shrinkage.errors import shown
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.convex import L1, L2, ElasticNet
from shrinkage.penalties.grouped import Grouped, GroupLasso
from shrinkage.penalties.groups import Columns
from shrinkage.penalties.schedules import check_number, check_positive

Squares = Literal["mse", "half"]


def lasso(alpha: float, *, loss: Squares) -> L1:
    """Return the penalty of scikit-learn's `Lasso(alpha)`: 1 / (2 n) * ||y - f||^2 + alpha * sum |w|.

    Args:
        alpha: theirs.
        loss: "mse" for `nn.MSELoss`, which has no 1/2, so that everything doubles; "half" for half of it.

    Raises:
        ValueError: `alpha` is negative or not finite, or `loss` is neither.

    >>> lasso(0.5, loss="mse"), lasso(0.5, loss="half")
    (L1(strength=1.0), L1(strength=0.5))
    """
    return L1(squares(loss) * checked("lasso", alpha))


def elastic_net(alpha: float, l1_ratio: float, *, loss: Squares) -> ElasticNet:
    """Return the penalty of scikit-learn's `ElasticNet(alpha, l1_ratio)`.

    1 / (2 n) * ||y - f||^2 + alpha * l1_ratio * sum |w| + alpha * (1 - l1_ratio) / 2 * sum w^2

    Args:
        alpha: theirs.
        l1_ratio: theirs, from 0 to 1.
        loss: as in `lasso`.

    Raises:
        ValueError: `alpha` is negative or not finite, `l1_ratio` is outside of its range, or `loss` is neither.

    >>> elastic_net(0.5, 0.25, loss="half")
    ElasticNet(l1=0.125, l2=0.375)
    """
    strength = squares(loss) * checked("elastic_net", alpha)
    check_ratio("elastic_net", l1_ratio)
    return ElasticNet(strength * l1_ratio, strength * (1 - l1_ratio))


def ridge(alpha: float, *, samples: int, loss: Squares) -> L2:
    """Return the penalty of scikit-learn's `Ridge(alpha)`: ||y - f||^2 + alpha * sum w^2, a sum over samples.

    Args:
        alpha: theirs.
        samples: n, how many rows the training data have.
        loss: as in `lasso`.

    Raises:
        ValueError: `alpha` is negative or not finite, `samples` is not positive, or `loss` is neither.

    >>> ridge(2.0, samples=4, loss="mse")
    L2(strength=1.0)
    """
    check_positive("ridge", "samples", samples)
    return L2(squares(loss) * checked("ridge", alpha) / samples)


def multi_task_lasso(alpha: float, *, outputs: int) -> Grouped:
    """Return the penalty of scikit-learn's `MultiTaskLasso(alpha)`, for `nn.MSELoss`, a mean over outputs too.

    1 / (2 n) * ||Y - F||^2 + alpha * sum over inputs j of ||W_:j||,  W of shape `(outputs, inputs)` as in `nn.Linear`

    Args:
        alpha: theirs.
        outputs: how many columns Y has.

    Raises:
        ValueError: `alpha` is negative or not finite, or `outputs` is not positive.

    >>> multi_task_lasso(0.5, outputs=2)
    Grouped(penalty=L1(strength=0.5), groups=Columns(), weigh_by_size=False)
    """
    check_positive("multi_task_lasso", "outputs", outputs)
    return GroupLasso(2 * checked("multi_task_lasso", alpha) / outputs, Columns(), weigh_by_size=False)


def logistic_regression(C: float, *, samples: int, l1_ratio: float = 0.0) -> Penalty:
    """Return the penalty of scikit-learn's `LogisticRegression(C, l1_ratio)`, for a mean cross entropy.

    C * sum of losses + l1_ratio * sum |w| + (1 - l1_ratio) / 2 * sum w^2

    Theirs leaves the intercept free, unless the solver is liblinear.

    Args:
        C: theirs, the inverse of a strength.
        samples: n, how many rows the training data have.
        l1_ratio: theirs, from 0 (`penalty="l2"`) to 1 (`penalty="l1"`).

    Raises:
        ValueError: `C` or `samples` is not positive, or `l1_ratio` is outside of its range.

    >>> logistic_regression(0.5, samples=4, l1_ratio=1.0)
    L1(strength=0.5)
    """
    check_positive("logistic_regression", "C", C)
    check_positive("logistic_regression", "samples", samples)
    check_ratio("logistic_regression", l1_ratio)
    strength = 1 / (C * samples)
    if l1_ratio in (0, 1):
        return L1(strength) if l1_ratio else L2(strength)
    return ElasticNet(strength * l1_ratio, strength * (1 - l1_ratio))


def perceptron(alpha: float, *, batch: int) -> L2:
    """Return the penalty of scikit-learn's `MLPClassifier(alpha)` and `MLPRegressor(alpha)`: alpha / (2 b) * sum w^2.

    Their `MLPRegressor` has half the mean squared error as its loss; for `nn.MSELoss` double what comes back.

    Args:
        alpha: theirs.
        batch: b, the size of a minibatch, by which they divide it; all samples with their solver "lbfgs".

    Raises:
        ValueError: `alpha` is negative or not finite, or `batch` is not positive.

    >>> perceptron(0.5, batch=2)
    L2(strength=0.25)
    """
    check_positive("perceptron", "batch", batch)
    return L2(checked("perceptron", alpha) / batch)


def independent_decay(decay: float, *, lr: float) -> L2:
    """Return the penalty of weight decay that is not multiplied by the learning rate: w <- (1 - decay) * w.

    For `how="decoupled"`, whose decay is lr * strength; with a learning rate that changes, the decay changes with it.

    Args:
        decay: the share of each weight that goes at one step.
        lr: the learning rate.

    Raises:
        ValueError: `decay` is negative or not finite, or `lr` is not positive.

    Reference: Loshchilov and Hutter (2019), "Decoupled weight decay regularization", algorithm 2 with eta = 1.

    >>> independent_decay(0.001, lr=0.5)
    L2(strength=0.002)
    """
    check_positive("independent_decay", "lr", lr)
    return L2(checked("independent_decay", decay) / lr)


def after_momentum(penalty: Penalty, momentum: float, dampening: float = 0.0) -> Penalty:
    """Return the penalty of a proximal operator with step lr that others apply after SGD with momentum.

    A gradient moves a weight by lr * (1 - dampening) / (1 - momentum) in the end, but such an operator goes on with lr:
    where both are at rest, it has solved the problem of (1 - momentum) / (1 - dampening) times the strength. LassoNet,
    PAT of torchao, and a soft threshold of lr * strength written by hand do so. Without momentum nothing changes. For
    Adam and optimizers like it there is no such number.

    Args:
        penalty: with their strength.
        momentum: of SGD, from 0 to less than 1.
        dampening: of SGD, likewise, which it ignores without momentum.

    Raises:
        ValueError: `momentum` or `dampening` is outside of its range.

    >>> after_momentum(L1(0.5), momentum=0.75)
    L1(strength=0.125)
    """
    for name, value in (("momentum", momentum), ("dampening", dampening)):
        check_number("after_momentum", name, value)
        if value >= 1:
            raise ValueError(f"after_momentum: {name} must be a number from 0 to less than 1, got {shown(value)}")
    return penalty.scaled((1 - momentum) / (1 - dampening)) if momentum else penalty


def checked(owner: str, alpha: float) -> float:
    """Return `alpha` if it is a finite number that is not negative."""
    check_number(owner, "alpha", alpha)
    return alpha


def squares(loss: object) -> float:
    """Return the factor of the squared error in a loss, relative to half of the mean.

    >>> squares("mae")
    Traceback (most recent call last):
    ValueError: loss must be "mse" (nn.MSELoss) or "half" (half of it), got 'mae'
    """
    if loss not in ("mse", "half"):
        raise ValueError(f'loss must be "mse" (nn.MSELoss) or "half" (half of it), got {shown(loss)}')
    return 2.0 if loss == "mse" else 1.0


def check_ratio(owner: str, ratio: float) -> None:
    """Raise `ValueError` unless `ratio` is a number from 0 to 1."""
    check_number(owner, "l1_ratio", ratio)
    if ratio > 1:
        raise ValueError(f"{owner}: l1_ratio must be a number from 0 to 1, got {shown(ratio)}")
