"""Prints one hash for what a release is made of: PATH...

Of a folder, its *.py and *.whl with their names; of a file, what is in it.
"""

import hashlib
import sys
from pathlib import Path

KINDS = {".py", ".whl"}


def main() -> None:
    """Hash what the command line names."""
    whole = hashlib.sha256()
    for place in map(Path, sys.argv[1:]):
        inside = sorted(path for path in place.rglob("*") if path.suffix in KINDS)
        for path in inside if place.is_dir() else [place]:
            whole.update(f"{path.relative_to(place)}\n".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    sys.stdout.write(whole.hexdigest())


if __name__ == "__main__":
    main()
