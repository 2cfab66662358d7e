"""Smaller models in a process that has not made them: `python -m benchmarks.loading KIND`, started by `round_trips`.

Reads the name of a folder from each line of its input, loads the model that is there, compares what it returns and
generates with what the folder says, saves it, loads that again, and answers with a line of JSON. Kinds: `ordinary`
loads by transformers alone, without this library; `plan` imports `shrinkage.integrations.transformers` before; `file`
calls `load_smaller`.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.harness import difference

SECOND = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForPreTraining")  # of models that have a class of their own
AT_MOST = "50KB"  # of one file, when a model is saved again


def ordinary(folder: Path) -> dict[str, Any]:
    """Load by `from_pretrained`, save in several files, and load again."""
    import transformers

    transformers.logging.set_verbosity_error()
    automatic = automatic_class(transformers.AutoConfig.from_pretrained(folder / "model"))
    model, told = automatic.from_pretrained(folder / "model", output_loading_info=True)
    found, same = compared(model, folder), bool(compared(model, folder, "generated") == 0)
    model.save_pretrained(folder / "again", max_shard_size=AT_MOST)
    again = automatic.from_pretrained(folder / "again")
    return {
        "how": automatic.__name__,
        "difference": found,
        "again": compared(again, folder),
        "told": [
            *(f"{kind}: {sorted(map(str, names))[0]}" for kind, names in told.items() if names),
            *(() if same else ("generates something else",)),
        ],
        "library": "shrinkage" in sys.modules,
    }


def plan(folder: Path) -> dict[str, Any]:
    """Do the same where this library has told transformers of plans."""
    import shrinkage.integrations.transformers  # noqa: F401 - the import is what tells it

    return ordinary(folder)


def file(folder: Path) -> dict[str, Any]:
    """Load by `load_smaller`, save again, and load that without memory for the dense model."""
    from benchmarks.families import chosen
    from shrinkage import PlanError, load_smaller, save_smaller

    (_, case) = next(iter(chosen([(folder / "name").read_text()])))
    small = load_smaller(folder / "model.safetensors", case.build)
    found = compared(small.model, folder)
    save_smaller(folder / "again.safetensors", small)
    try:
        again = load_smaller(folder / "again.safetensors", case.build, low_memory=True)
        told = []
    except PlanError as error:
        again, told = load_smaller(folder / "again.safetensors", case.build), [f"low_memory=True: {error}"]
    return {"how": "load_smaller", "difference": found, "again": compared(again.model, folder), "told": told}


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {"ordinary": ordinary, "plan": plan, "file": file}


def automatic_class(config: Any) -> Any:
    """Return the class called `AutoModelForX` that makes the architecture that a configuration names."""
    from transformers.models.auto import modeling_auto

    names = [name for name in modeling_auto.__all__ if name.startswith("AutoModel")]
    for name in sorted(names, key=lambda name: name in SECOND):
        made = getattr(modeling_auto, name)._model_mapping.get(type(config), ())
        if config.architectures[0] in {each.__name__ for each in (made if isinstance(made, tuple) else (made,))}:
            return getattr(modeling_auto, name)
    raise LookupError(f"no class of transformers called AutoModelFor... makes {config.architectures[0]}")


def compared(model: nn.Module, folder: Path, what: str = "outputs") -> float:
    """Return how far the outputs of a model, or what it generates, are from the dense one's, which `folder` has."""
    content = torch.load(folder / "calls.pt")
    return difference(content[what], answers(model.eval(), content["calls"])[what])


@torch.no_grad()
def answers(model: Any, calls: list[Any]) -> dict[str, Any]:
    """Return what a model returns, and the words that one generates which does."""
    generated = None
    if hasattr(model, "can_generate") and model.can_generate():
        inputs = {name: x for name, x in calls[0][1].items() if isinstance(x, Tensor) and "decoder" not in name}
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return {"outputs": [model(*args, **kwargs) for args, kwargs in calls], "generated": generated}


def answer(kind: str, folder: Path) -> dict[str, Any]:
    """Return what became of a folder: whatever goes wrong belongs into its line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return KINDS[kind](folder)
    except Exception as error:  # Whatever packages raise.
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # packages may print what they like
    for line in sys.stdin:
        print(json.dumps(answer(sys.argv[1], Path(line.strip()))), file=out, flush=True)


if __name__ == "__main__":
    main()
