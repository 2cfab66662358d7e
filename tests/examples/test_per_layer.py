"""The example of a penalty per layer, cut down to seconds: only the declared L1 gives zeros."""

import per_layer


def test_only_proximal_steps_give_exact_zeros(tmp_path, capsys):
    networks = per_layer.main(["--epochs", "3", "--output", str(tmp_path)])
    zeros = {name: int((model[0].weight == 0).sum()) for name, model in networks.items()}
    assert zeros[per_layer.TERM] == 0 < zeros[per_layer.PROXIMAL]
    assert all((model[2].weight != 0).all() for model in networks.values())
    assert [file.name for file in tmp_path.iterdir()] == ["per_layer.png"]
    assert capsys.readouterr().out.count("% zeros") == 2
