"""The five ways to regularize that the demo compares, and the strengths among which it chooses."""

from dataclasses import dataclass

from shrinkage import L1, Columns, GroupLasso, Rows
from shrinkage.selection.how import How
from shrinkage.selection.rules import Rules

STRENGTHS = (1e-4, 3e-4, 1e-3)
HOLD_ZEROS = 0.99  # decay of the averaged gradients that keep zeros at zero despite minibatch noise


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to regularize the network.

    Args:
        name: what tables and pictures call it.
        about: one sentence for the report.
        strength: of its penalty, in units of the loss; 0 if there is none.
        rules: what a `Regularizer` penalizes; None if there is none.
        how: how the regularizer applies its penalties.
        in_loss: the penalty is a term of the loss instead.
        hold_zeros: decay of the averaged gradients that hold exact zeros; None if nothing holds them.
    """

    name: str
    about: str
    strength: float = 0.0
    rules: Rules | None = None
    how: How = "proximal"
    in_loss: bool = False
    hold_zeros: float | None = None


def no_penalty() -> Variant:
    """Return the variant that the others are measured against."""
    return Variant("no penalty", "The network as it is, trained by SGD with momentum.")


def l1_in_loss(strength: float) -> Variant:
    """Return the usual form: strength * sum |w| is added to the loss, and autograd differentiates it."""
    about = "The usual form: loss = loss + strength * sum |w|, and autograd differentiates it."
    return Variant("L1 in the loss", about, strength, in_loss=True)


def l1_gradient(strength: float) -> Variant:
    """Return the same objective without a graph: the penalty's derivative is added to the gradients."""
    about = "The same objective with no term in the loss: the derivative is added to the gradients before the step."
    return Variant("L1 gradient", about, strength, {"*.weight": L1(strength)}, how="gradient")


def l1_proximal(strength: float) -> Variant:
    """Return the same objective once more, with the penalty's proximal operator after each step."""
    about = (
        "The same objective once more: the proximal operator of L1, a soft threshold, is applied after the step. A "
        "zero weight stays zero while the average of its last gradients is too small to move it."
    )
    return Variant("L1 proximal", about, strength, {"*.weight": L1(strength)}, hold_zeros=HOLD_ZEROS)


def group_lasso(strength: float) -> Variant:
    """Return the group lasso: a pixel goes with its column of the first layer, a neuron with its row of the second."""
    about = (
        "All weights of a pixel, or of a neuron of the second hidden layer, are nonzero or zero together; zeros are "
        "kept at zero as above."
    )
    rules: Rules = {
        "input.weight": GroupLasso(strength, Columns()),
        "hidden.weight": GroupLasso(strength, Rows()),
    }
    return Variant("group lasso", about, strength, rules, hold_zeros=HOLD_ZEROS)
