"""All small models of our own."""

from zoo import attention, convolutional, dense, gpt, letters, sums
from zoo.case import Case

CASES: list[Case] = dense.CASES + convolutional.CASES + attention.CASES + letters.CASES + gpt.CASES + sums.CASES
