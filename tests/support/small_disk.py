"""`python small_disk.py <bytes> <train|sample> <arguments>`: on a disk that takes no file of more bytes."""

import resource
import sys
from importlib import import_module

if __name__ == "__main__":
    _, limit, name, *arguments = sys.argv
    main = import_module(f"flowdiff.cli.{name}").main
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    sys.argv = [f"{name}.py", *arguments]
    main()
