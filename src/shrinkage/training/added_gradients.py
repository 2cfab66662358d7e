"""Derivatives of penalties that are added to gradients when the user says so, and not by the step."""

from collections.abc import Sequence

from torch.optim import Optimizer

from shrinkage.errors import AttachmentError
from shrinkage.optimizers.introspection import unwrapped
from shrinkage.training.attachment import Attachment


def add_gradients_now(attached: Sequence[tuple[Optimizer, Attachment]], optimizer: Optimizer | None) -> None:
    """Add the derivatives to the gradients of one of the attached optimizers, or of all; see `Regularizer`.

    Raises:
        AttachmentError: the optimizer is not attached to, or its gradients have them already; nothing is added then.
    """
    wanted = None if optimizer is None else unwrapped(optimizer)
    chosen = [(held, attachment) for held, attachment in attached if wanted is None or held is wanted]
    if not chosen:
        raise AttachmentError("add_gradients_() needs an optimizer that this regularizer is attached to: attach it")
    for held, attachment in chosen:
        attachment.check_addition(held)
    for held, attachment in chosen:
        attachment.add_gradients(held)
