"""
A smaller convolutional network
===============================

A budget of parameters decides which channels go, in training. ``shrink`` then removes them: the outputs are the same.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from shrinkage import Budget, CoupledChannels, Regularizer, shrink
from shrinkage.pictures.models import layer_sizes

torch.manual_seed(0)
images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16


def block(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


model = nn.Sequential(
    *block(1, 16),
    *block(16, 24),
    nn.MaxPool2d(2),
    *block(24, 32),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 10),
)
updates = 120
channels = CoupledChannels(model, images[:2])
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
Regularizer(model, Budget(parameters=3000, updates=updates, groups=channels)).attach(optimizer)
for _ in range(updates):
    batch = torch.randint(len(images), (64,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
    optimizer.step()

small = shrink(model, images[:2])
accuracy = (small.model.eval()(images).argmax(1) == labels).float().mean()
print(f"accuracy on the training images: {accuracy:.3f}")
print(small.model)

# %%
# Each layer, before and after.

figure = layer_sizes(model, small.model)
