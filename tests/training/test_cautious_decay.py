"""Weight decay where the optimizer moves a weight towards 0 anyway."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from models import batches, equal, loss_of, mlp, train
from shrinkage import L1, L2, ElasticNet, MetricError, Regularizer, Rule, Toward


def test_it_is_the_decay_by_adams_first_moment():
    """Bit for bit over 200 steps: the move of Adam has the sign of its first moment."""
    squares, products = torch.diag(torch.linspace(0.2, 2.0, 20, dtype=torch.float64)), torch.ones(1, 20).double()
    ours, theirs = (nn.Linear(20, 1, bias=False, dtype=torch.float64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer, other = (Adam(model.parameters(), lr=0.02) for model in (ours, theirs))
    Regularizer(ours, L2(0.3), how="cautious").attach(optimizer)
    for _ in range(200):
        for model, each in ((ours, optimizer), (theirs, other)):
            model.weight.grad = model.weight.detach() @ squares - products
            if each is optimizer:
                each.step()
        before = theirs.weight.detach().clone()
        other.step()
        with torch.no_grad():
            mask = other.state[theirs.weight]["exp_avg"] * before >= 0
            theirs.weight.sub_(0.02 * 0.3 * before * mask)
    assert equal(ours, theirs)


def test_what_stays_where_it_is_decays():
    model = nn.Linear(3, 1, bias=False)
    optimizer = SGD(model.parameters(), lr=0.5)
    Regularizer(model, L2(0.1), how="cautious").attach(optimizer)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0, 1.0]]))
    model.weight.grad = torch.tensor([[1.0, 0.0, -1.0]])  # towards 0, not at all, away
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.45, 0.95, 1.5]]))


@pytest.mark.parametrize("options", [{}, {"compile": False}])
def test_other_rules_go_on_as_ever(options):
    ours, theirs = mlp(), mlp()
    for model, rules in (
        (ours, [Rule(L2(0.1), "0.weight", "cautious"), Rule(L1(0.1), "2.weight")]),
        (theirs, [Rule(L1(0.1), "2.weight")]),
    ):
        optimizer = AdamW(model.parameters(), lr=0.05, weight_decay=0)
        Regularizer(model, rules, **options).attach(optimizer)
        train(model, optimizer, 1)
    assert torch.equal(ours[2].weight, theirs[2].weight)
    assert float(ours[0].weight.detach().norm()) < float(theirs[0].weight.detach().norm())


def test_an_update_that_is_skipped_decays_nothing():
    model = mlp()
    optimizer = AdamW(model.parameters(), lr=0.05, fused=True, weight_decay=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    Regularizer(model, L2(0.5), how="cautious").attach(optimizer)
    (batch,) = batches(1)
    scaler.scale(loss_of(model, batch)).backward()
    model[0].weight.grad[0, 0] = torch.inf
    before = model[0].weight.clone()
    scaler.step(optimizer)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("penalty", [L1(0.1), ElasticNet(0.1, 0.1), Toward(L2(0.1), 0.0 * torch.ones(2, 2))])
def test_other_penalties_are_refused(penalty):
    with pytest.raises(ValueError, match='how="cautious": that is weight decay, of L2 alone'):
        Rule(penalty, how="cautious")


def test_every_is_refused():
    with pytest.raises(ValueError, match="every=2"):
        Rule(L2(0.1), how="cautious", every=2)


def test_it_needs_a_learning_rate():
    model = mlp()
    with pytest.raises(MetricError, match='how="cautious"'):
        Regularizer(model, L2(0.1), how="cautious").attach(torch.optim.LBFGS(model.parameters()))
