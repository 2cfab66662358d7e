"""From exact zeros to a smaller model: dense, with the same outputs, or with sparse layers."""
