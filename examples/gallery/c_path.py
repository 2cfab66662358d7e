"""
A path of strengths, and its choice
===================================

``path`` trains at one strength after another. The greatest strength whose score is within one standard error of the
best one gives the smallest model that the data cannot tell from the best.
"""

import torch
from torch import nn

from shrinkage import Columns, GroupLasso, path
from shrinkage.pictures.strength_paths import path_scores

torch.manual_seed(0)
inputs = torch.randn(300, 20)
targets = 2 * inputs[:, :1] - inputs[:, 1:2].relu() + 0.5 * torch.randn(300, 1)
model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))


def train(regularizer):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    regularizer.attach(optimizer)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs[:200]), targets[:200]).backward()
        optimizer.step()


def losses(model):
    return (model(inputs[200:]) - targets[200:]).square()[:, 0]


found = path(
    model,
    lambda strength: {"0.weight": GroupLasso(strength, Columns())},
    train,
    strengths=[0.001 * 2**power for power in range(10)],
    score=losses,
)
print(found)

# %%
# The share of zeros is on the upper axis.

figure = path_scores(found)
