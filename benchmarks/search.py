"""How long it takes to find the channels of models of timm, and to make them smaller: seconds of the process."""

import gc
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.skipping import SkippedError, needs
from shrinkage import Coupled, CoupledChannels, GroupError, shrink
from shrinkage.errors import first_line
from shrinkage.tables import table

TWO = {"depth": 2}  # blocks of transformers, which are all alike
MODELS: dict[str, tuple[int, dict[str, Any]]] = {  # the side of an image, and what makes it smaller
    "tf_efficientnetv2_b0": (192, {}),
    "convnextv2_atto": (160, {}),
    "ghostnet_050": (160, {}),
    "repvgg_a0": (160, {}),
    "mobilevit_xxs": (256, {}),
    "edgenext_xx_small": (256, {}),
    "levit_128s": (224, {}),
    "cs3darknet_s": (160, {}),
    "vit_tiny_patch16_224": (224, TWO),
    "deit3_small_patch16_224": (224, TWO),
    "beit_base_patch16_224": (224, TWO | {"embed_dim": 192, "num_heads": 3}),
    "cait_xxs24_224": (224, TWO),
    "eva02_tiny_patch14_224": (224, TWO),
    "swinv2_tiny_window8_256": (256, {"embed_dim": 48, "depths": (1, 1, 2, 1)}),
    "resnest14d": (160, {}),
    "nf_regnet_b0": (192, {}),
    "pvt_v2_b0": (224, {}),
    "coatnet_pico_rw_224": (224, {}),
}
QUICK = {"test_nfnet": (96, dict[str, Any]())}
SHARE = 0.35  # of the groups, which are set to zero
NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


@dataclass
class Search:
    """What became of one model; seconds are those of the process, so that others on the machine count little."""

    name: str
    groups: int = 0
    parameters: tuple[int, int] = (0, 0)
    error: float = 0.0
    couple_seconds: float = 0.0
    shrink_seconds: float = 0.0
    skipped: str | None = None

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name}: skipped, {self.skipped}"
        rows = [
            ["groups", f"{self.groups:,}"],
            ["parameters", f"{self.parameters[0]:,} to {self.parameters[1]:,}"],
            ["largest relative difference of outputs", f"{self.error:.1e}"],
            ["CoupledChannels, s", f"{self.couple_seconds:.1f}"],
            ["shrink, s", f"{self.shrink_seconds:.1f}"],
            ["both, s", f"{self.couple_seconds + self.shrink_seconds:.1f}"],
        ]
        return table([self.name, ""], rows, right=[1])


def imported() -> Any:
    """Return timm, which stands aside where torchvision does; see tests/zoo/torchvision_models.py."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    with needs("timm"):
        from zoo.torchvision_models import aside

        with aside():
            import timm
    return timm


@torch.no_grad()
def randomize_(model: nn.Module) -> None:
    """Draw what belongs to norms, which is the same in all channels otherwise."""
    for norm in model.modules():
        if isinstance(norm, NORMS) and norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)


@torch.no_grad()
def zero_(model: nn.Module, channels: Coupled) -> None:
    """Set a random share of the groups to zero."""
    gone = torch.zeros(channels.count, dtype=torch.bool)
    gone[torch.randperm(channels.count)[: int(SHARE * channels.count)]] = True
    for member in channels.members:
        groups = torch.tensor(member.groups)
        zero = (groups >= 0) & gone[groups.clamp_min(0)]
        model.get_parameter(member.parameter).index_fill_(member.dim, zero.nonzero().reshape(-1), 0.0)


def measure_search(name: str, size: int, options: dict[str, Any]) -> Search:
    """Return what it takes to find the channels of a model, and to remove those that are zero."""
    try:
        timm = imported()
    except SkippedError as error:
        return Search(name, skipped=str(error))
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=10, **options).eval(), torch.randn(2, 3, size, size)
    randomize_(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of channels that are in no group
        start = process_time()
        try:
            channels = CoupledChannels(model, x)
        except GroupError as error:
            return Search(name, skipped=first_line(error))
        couple_seconds = process_time() - start
        zero_(model, channels)
        gc.collect()
        start = process_time()
        small = shrink(model, x)
        shrink_seconds = process_time() - start
    counts = small.report.before.parameters, small.report.after.parameters
    return Search(name, channels.count, counts, _difference(model, small.model, x), couple_seconds, shrink_seconds)


@torch.no_grad()
def _difference(model: nn.Module, small: nn.Module, like: Tensor) -> float:
    x = torch.randn_like(like)
    known: Tensor = model(x)
    return float((known - small(x)).abs().max() / known.abs().max())
