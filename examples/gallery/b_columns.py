"""
Which columns of a table matter?
================================

Thirty measurements of tumours and ten columns of noise. A group lasso on the columns of the first layer sets all
weights of a column to zero if the loss does not need it.
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from shrinkage import Columns, GroupLasso, Regularizer
from shrinkage.pictures.models import column_norms

torch.manual_seed(0)
data = load_breast_cancer()
table = torch.cat([torch.as_tensor(data.data).float(), torch.randn(len(data.data), 10)], dim=1)
table = (table - table.mean(0)) / table.std(0)
labels = torch.as_tensor(data.target)
names = [*data.feature_names, *(f"noise {number}" for number in range(1, 11))]

model = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
Regularizer(model, {"0.weight": GroupLasso(0.01, Columns())}, hold_zeros=0.99).attach(optimizer)
for _ in range(20):
    for batch in torch.randperm(len(table)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(table[batch]), labels[batch]).backward()
        optimizer.step()

norms = model[0].weight.detach().norm(dim=0)
print(f"{int((norms != 0).sum())} of 40 columns are left, {int((norms[30:] != 0).sum())} of them noise")

# %%
# The bars are norms of the columns that are left.

figure = column_norms(model[0].weight, names)
