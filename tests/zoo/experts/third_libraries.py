"""The third set, of libraries."""

from experts import third_packages, third_vision
from experts.answer import Expert, Library


def nets() -> list[Expert]:
    """All of them."""
    net = Library("third set, libraries")
    parts = (third_vision, third_packages)
    return [each for part in parts for each in part.nets(net)]
