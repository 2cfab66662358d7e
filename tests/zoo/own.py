"""All small models of our own."""

from zoo import attention, convolutional, dense, gpt, letters, normed, only_dividing, sums
from zoo.case import Case

SMALL = (dense, convolutional, attention, letters, gpt, sums, only_dividing, normed)
CASES: list[Case] = [case for kind in SMALL for case in kind.CASES]
