"""Nets of libraries that the zoo does not have, and where an expert would read each.

Written down from what each architecture is, before any rule was run on it. A library's file is
imported only when its nets are asked for.
"""

from experts.answer import Answer, Expert, is_held_back
from experts.catalogue import LIBRARIES, catalogue

__all__ = ["LIBRARIES", "Answer", "Expert", "catalogue", "is_held_back"]
