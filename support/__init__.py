"""What some flags need, a module per topic. A script and common.py train without them."""

from support import exits  # noqa: F401  before any module that imports torch, which takes seconds
