"""Several processes, started with torchrun: each check of `tests/distributed` is one test.

One launch per number of processes runs all the checks that were selected; starting a process takes seconds.
"""

import sys
import time

import pytest

from distributed.launch import launch
from distributed.registry import is_slow, names

CASES = [
    pytest.param(
        world,
        name,
        id=f"{world} processes-{name.removeprefix('distributed.checks_')}",
        marks=[pytest.mark.xdist_group(f"{world} processes"), *[pytest.mark.slow] * is_slow(name, world)],
    )
    for world in (2, 4)
    for name in names(world)
]


@pytest.fixture(scope="session")
def outcomes(request, tmp_path_factory):
    """What came of all selected checks, by number of processes; launched at first use."""
    selected = [item.callspec.params for item in request.session.items if item.name.startswith("test_check[")]
    launched = {}

    def of(world):
        if world not in launched:
            chosen = [params["name"] for params in selected if params["world"] == world]
            found = launch(world, chosen, tmp_path_factory.mktemp("processes"))
            left = cut_short(found)
            if left:  # what crashes again fails
                print(f"a process crashed in {left[0]}; {len(left)} checks are run once more", file=sys.__stderr__)
                found |= launch(world, left, tmp_path_factory.mktemp("processes"))
            launched[world] = found
        return launched[world]

    return of


def cut_short(found):
    """The checks that did not end as a process had a segmentation fault, which torch has under load, rarely."""
    errors = {name: [each.get("error", "") for each in each_rank] for name, each_rank in found.items()}
    left = [name for name, each_rank in found.items() if any(each["status"] == "not run" for each in each_rank)]
    return left if any("SIGSEGV" in error for name in left for error in errors[name]) else []


def test_only_what_a_segmentation_fault_cut_short_is_run_again():
    ended, failed = {"status": "ok"}, {"status": "failed", "error": "SIGSEGV in a message"}
    crashed, hung = {"status": "not run", "error": "(SIGSEGV)"}, {"status": "not run", "error": "killed after 600 s"}
    assert cut_short({"a": [ended, ended], "b": [failed, ended]}) == []
    assert cut_short({"a": [ended, hung], "b": [hung, hung]}) == []
    assert cut_short({"a": [ended, ended], "b": [ended, crashed], "c": [crashed, crashed]}) == ["b", "c"]


@pytest.mark.parametrize(("world", "name"), CASES)
def test_check(world, name, outcomes, record_property):
    found = outcomes(world)[name]
    record_property("measured", [outcome.get("measured") for outcome in found])
    errors = [f"rank {rank} of {world}: {outcome['error']}" for rank, outcome in enumerate(found) if "error" in outcome]
    if errors:
        pytest.fail("\n".join([name, *errors]), pytrace=False)


def faulty(checks, folder, **environment):
    """The status and the errors of checks of `faulty.py` on two processes."""
    found = launch(2, [f"distributed.faulty::check_that_{name}" for name in checks], folder, **environment)
    statuses = [tuple(outcome["status"] for outcome in outcomes) for outcomes in found.values()]
    return statuses, [[outcome.get("error", "") for outcome in outcomes] for outcomes in found.values()]


@pytest.mark.slow
def test_a_check_that_fails_leaves_the_others_alone(tmp_path):
    checks = ["holds", "fails_on_one_process", "forgets_a_collective", "holds_afterwards"]
    statuses, errors = faulty(checks, tmp_path, COLLECTIVE_SECONDS="3")
    assert statuses == [("ok", "ok"), ("failed", "failed"), ("failed", "ok"), ("ok", "ok")]
    assert "as it should" in errors[1][1]
    assert "imed out" in errors[2][0]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hangs", "dies"])
def test_a_process_that_hangs_or_dies_ends_the_launch(fault, tmp_path):
    start = time.monotonic()
    statuses, errors = faulty([fault, "holds"], tmp_path, MEETING_SECONDS="4")
    assert statuses == [("ok", "not run"), ("not run", "not run")]
    assert f"check_that_{fault} did not end" in errors[1][1]
    assert time.monotonic() - start < 120


@pytest.mark.slow
def test_a_process_that_is_killed_in_a_step_and_a_run_that_resumes_from_the_checkpoint(tmp_path):
    found = []
    for check in ("is_killed", "resumes"):
        folder = tmp_path / check
        folder.mkdir()
        found.append(faulty([check], folder, CHECKPOINT=str(tmp_path / "checkpoint")))
    (((waited, killed),), messages), (resumed, errors) = found
    assert (waited != "ok", killed) == (True, "not run")
    assert "SIGKILL" in messages[0][1]
    assert resumed == [("ok", "ok")], errors
