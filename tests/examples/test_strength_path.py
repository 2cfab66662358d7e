"""The example of a path, cut down to seconds: it chooses, refits and draws."""

import strength_path


def test_the_example_prints_a_choice_and_draws_it(tmp_path, capsys):
    found = strength_path.main(["--quick", "--output", str(tmp_path)])
    assert len(found) == 2
    assert len(found.refits) == 2
    assert "one standard error" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {"strength_path_scores.png", "strength_path_pixels.png"}
