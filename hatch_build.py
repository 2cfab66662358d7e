"""Wheels with native kernels inside: what `make wheel` has built, for the system and machine that the wheel names."""

import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PREBUILT = Path("src/shrinkage/execution/prebuilt")


class PrebuiltHook(BuildHookInterface):
    """Adds the libraries; without any, the wheel is for all machines, and kernels are built at first use."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files, and the system and machine, whatever version of Python."""
        libraries = sorted((Path(self.root) / PREBUILT).glob("*.so"))
        if self.target_name != "wheel" or version == "editable" or not libraries:
            return
        build_data["force_include"] |= {str(path): f"shrinkage/execution/prebuilt/{path.name}" for path in libraries}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
