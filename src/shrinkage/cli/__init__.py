"""The `shrinkage` command."""
