"""The calling conventions of other packages, on top of this one."""
