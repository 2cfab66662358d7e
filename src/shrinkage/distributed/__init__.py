"""Tensors that are sharded over processes: the only package that knows DTensor, FSDP and process groups."""
