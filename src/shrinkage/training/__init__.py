"""When a penalty acts: rules attached to optimizers, around each of their steps."""
