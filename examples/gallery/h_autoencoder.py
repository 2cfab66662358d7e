"""
A sparse autoencoder
====================

``Activities`` penalizes what the encoder puts out, and ``UnitNorm`` keeps the columns of the decoder at norm 1. These
columns are the parts of which digits are made.
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from shrinkage import L1, Activities, Columns, Ramp, Regularizer, UnitNorm

torch.manual_seed(0)
images = torch.as_tensor(load_digits().data).float() / 16
model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
Regularizer(model, {"2.weight": UnitNorm(Columns())}).attach(optimizer)
activities = Activities(model, {"1": L1(Ramp(0.2, 200))})
for update in range(800):
    x = images[torch.randint(len(images), (64,))]
    loss = activities.mark((model(x) - x).square().sum(1).mean(), update=update)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

features = model[:2](images).detach()
print(f"{(features != 0).float().sum(1).mean():.1f} of 96 features are not zero for an image")

# %%
# The 24 features that occur most often.

figure = Figure(figsize=(8, 3), layout="constrained")
for place, feature in zip(figure.subplots(3, 8).flat, features.gt(0).sum(0).argsort(descending=True), strict=False):
    place.imshow(model[2].weight.detach()[:, feature].reshape(8, 8).numpy(), cmap="coolwarm", vmin=-0.5, vmax=0.5)
    place.set_axis_off()
