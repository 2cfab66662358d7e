"""Models that smaller ones are made of: `own` is written here, `real` comes from torchvision, timm and transformers."""
