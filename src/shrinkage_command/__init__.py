"""The `shrinkage` command. It lies outside of the package, whose import takes seconds because it imports torch."""

import sys
from importlib.metadata import version


def main() -> None:
    """Answer `--version` at once, and leave everything else to `shrinkage.cli`."""
    if sys.argv[1:] == ["--version"]:
        print(version("shrinkage"))
        return
    from shrinkage.cli.app import app

    app()
