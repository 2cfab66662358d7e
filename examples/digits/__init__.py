"""A small experiment that runs in a minute: five ways to regularize one network, side by side."""
