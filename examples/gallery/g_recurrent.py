"""
A smaller recurrent network
===========================

Units of an LSTM are channels as well. The task: add the numbers of a sequence that a second input marks.
"""

import torch
from matplotlib.figure import Figure
from torch import nn

from shrinkage import Budget, CoupledChannels, Regularizer, shrink


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(2, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, sequence):
        return self.head(self.memory(sequence)[0][:, -1])


def batch(samples=64, length=10):
    numbers, marks = torch.rand(samples, length), (torch.rand(samples, length) < 0.3).float()
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(1, keepdim=True)


torch.manual_seed(0)
model = Adder()
example = batch(2)[0]
updates = 400
channels = CoupledChannels(model, example)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
Regularizer(model, Budget(parameters=1160, updates=updates, groups=channels)).attach(optimizer)
losses = []
for _ in range(updates):
    inputs, targets = batch()
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

small = shrink(model, example)
sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (model, small.model)]
print(small.model)

# %%
# The loss in training, and what is left.

figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.add_subplot()
axes.semilogy(losses, linewidth=0.8)
axes.set(xlabel="update", ylabel="mean squared error")
axes.set_title(f"{small.model.memory.hidden_size} of 32 units, {sizes[1]:,} of {sizes[0]:,} parameters")
