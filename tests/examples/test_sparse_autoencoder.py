"""The sparse autoencoder: features become few where they are penalized, columns have norm 1, and there is a picture."""

import pytest
import torch
from matplotlib.image import imread

from sparse_autoencoder import main, train


def test_features_become_few_and_the_picture_is_drawn(tmp_path, capsys):
    path = tmp_path / "below" / "picture.png"
    history = main(["--width", "32", "--epochs", "8", "--strength", "0.3", "--output", str(path)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["epoch", "L0", "explained", "penalty"]
    assert f"Wrote {path}" in printed
    assert imread(path).shape[2] == 4
    _, without = train(32, 0.0, 8)
    assert history[-1].l0 < 0.8 * without[-1].l0
    assert without[-1].penalty == 0
    assert history[-1].explained > 0.3


def test_columns_keep_their_norm():
    model, _ = train(16, 0.3, 1)
    assert torch.linalg.vector_norm(model.decoder.weight, dim=0).tolist() == pytest.approx([1.0] * 16, abs=1e-5)
