"""Rules in the files that configure trainers: YAML of a LightningCLI, and of Hugging Face's arguments."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from torch.optim import SGD
from torch.utils.data import DataLoader

from late import transformers
from models import batches, loss_of, mlp
from shrinkage import L1, MCP, Grouped, Ramp, Rows, Rule
from shrinkage.integrations import lightning
from shrinkage.integrations.transformers import RegularizerCallback

RULES = """\
{indent}- {{select: net.2.weight, penalty: null}}
{indent}- select: net.*.weight
{indent}  penalty: Grouped
{indent}  of: {{penalty: MCP, strength: {{schedule: Ramp, high: 1e-3, updates: 8}}, gamma: 4}}
{indent}  groups: Rows
{indent}- {{select: "*bias", penalty: L1, strength: 1e-4, how: proximal}}
"""
EXPECTED = (
    Rule(None, "net.2.weight", "decoupled"),
    Rule(Grouped(MCP(Ramp(1e-3, 8), 4), Rows()), "net.*.weight", "decoupled"),
    Rule(L1(1e-4), "*bias"),
)
CONFIGURATION = """\
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks:
    - class_path: shrinkage.integrations.lightning.RegularizerCallback
      init_args:
        how: decoupled
        hold_zeros: 0.9
        rules:
""" + RULES.format(indent=" " * 10)


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def training_step(self, batch, index):
        return loss_of(self.net, batch)

    def train_dataloader(self):
        return DataLoader(batches(3), batch_size=None)

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.isinstance.treespec:FutureWarning")
@pytest.mark.filterwarnings("ignore:::jsonargparse", "ignore:::lightning")
def test_a_lightning_cli_reads_them(tmp_path):
    for package in ("jsonargparse", "docstring_parser", "typeshed_client"):  # jsonargparse[signatures]
        pytest.importorskip(package)
    from lightning.pytorch.cli import LightningCLI

    (tmp_path / "run.yaml").write_text(CONFIGURATION)
    arguments = ["fit", "--config", str(tmp_path / "run.yaml"), "--trainer.default_root_dir", str(tmp_path)]
    run = LightningCLI(Module, args=arguments)
    (callback,) = (each for each in run.trainer.callbacks if isinstance(each, lightning.RegularizerCallback))
    assert callback._rules == EXPECTED
    assert callback._options.hold_zeros == 0.9
    assert "schedule: Ramp" in (tmp_path / "config.yaml").read_text()
    assert callback.regularizer.plan.names == ["net.0.weight", "net.0.bias", "net.2.bias"]


@dataclass
class Arguments:
    rules: list[dict[str, Any]] = field(default_factory=list)


def test_arguments_of_hugging_face_read_them(tmp_path):
    (tmp_path / "run.yaml").write_text("rules:\n" + RULES.format(indent="  "))
    (arguments,) = transformers.HfArgumentParser(Arguments).parse_yaml_file(str(tmp_path / "run.yaml"))
    assert RegularizerCallback(arguments.rules, how="decoupled")._rules == EXPECTED


@pytest.mark.parametrize("callback", [RegularizerCallback, lightning.RegularizerCallback])
@pytest.mark.parametrize("rules", [[{"penalty": "L1"}], [Rule(L1(1)), {"penalty": "L1", "strength": 1}]])
def test_mistakes_are_errors_at_once(callback, rules):
    with pytest.raises((TypeError, ValueError), match=r"rules\[0\]: "):
        callback(rules)
