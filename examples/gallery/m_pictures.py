"""
Pictures of your own model
==========================

Functions of ``shrinkage.pictures`` draw a model as it is, and what training did to it. They return a figure of
matplotlib: in a notebook it shows, and ``figure.savefig(path)`` saves it.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from shrinkage import Columns, GroupLasso, Regularizer, report, shrink
from shrinkage.pictures.models import column_norms, histograms, layer_sizes, zeros_by_epoch
from shrinkage.pictures.weights import networks, pixel_maps

torch.manual_seed(0)
images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16

model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
Regularizer(model, GroupLasso(2e-3, Columns()), hold_zeros=0.99).attach(optimizer)  # pixels, and neurons
history = []
for _ in range(15):
    for batch in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    history.append(report(model))

# %%
# When weights became zero, from a report after each epoch:

figure = zeros_by_epoch(history)

# %%
# How large the weights are. Zeros are a bar of their own:

figure = histograms(model)

# %%
# Which columns of the input the first layer reads:

figure = column_norms(model[0].weight, [f"row {pixel // 8}, column {pixel % 8}" for pixel in range(64)], most=20)

# %%
# Or, where columns are pixels, as images:

norms = model[0].weight.detach().norm(dim=0).reshape(8, 8)
figure = pixel_maps(images.mean(0).reshape(8, 8), {"first layer": norms})

# %%
# What is left of each layer:

small = shrink(model, images[:2])
figure = layer_sizes(model, small.model)

# %%
# The same, neuron by neuron:

nets = {"before": model, "after": small.model}
weights = {name: [net[index].weight for index in (0, 2, 4)] for name, net in nets.items()}
figure = networks(weights, ["pixels", "hidden", "hidden", "digits"])
