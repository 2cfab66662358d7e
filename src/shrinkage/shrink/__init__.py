"""From exact zeros to a model that takes less memory and time."""
