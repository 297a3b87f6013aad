"""The third set, written by hand."""

from experts import (
    third_dense,
    third_fields,
    third_heads,
    third_metric,
    third_several,
    third_structures,
)
from experts.answer import Expert, Library


def nets() -> list[Expert]:
    """All of them."""
    net = Library("third set, by hand")
    parts = (third_metric, third_heads, third_several, third_structures, third_fields, third_dense)
    return [each for part in parts for each in part.nets(net)]
