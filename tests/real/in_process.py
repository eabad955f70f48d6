"""`ENV/bin/python tests/real/in_process.py FOLDER ARGUMENTS...` runs pytest inside a real engine's own environment.

An engine in this process needs this library, its dependencies and pytest beside the engine. They are not installed into
the environment, which other lanes share: FOLDER is the site-packages of the environment in which this library is
developed, of the same Python, and is looked in last. So the engine's own packages come first wherever both have one.
`site.addsitedir` reads FOLDER's `.pth` files too, by which an editable installation is found.
"""

from __future__ import annotations

import site
import sys

if __name__ == "__main__":  # an engine's processes import this file anew, under another name
    site.addsitedir(sys.argv[1])
    import pytest

    sys.exit(pytest.main(sys.argv[2:]))
