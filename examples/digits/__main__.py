"""Run the demo."""

from digits.command_line import main

main()
