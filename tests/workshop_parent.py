"""A program with a workshop that makes three files, one of the other, for a test to end in the middle.

Arguments: the folder of the cache. The passes are those of `workshop_child`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from workshop_tools import copying, shop

from compiler.workshop.cache import Cache

if __name__ == "__main__":
    cache = Cache(Path(sys.argv[1]))
    with cache.scratch() as scratch:
        chain = [*copying("one", "two"), *copying("three", name="gate")]
        (made,) = shop(cache, scratch).make([chain])
        print(made)
