"""Print one hash of the sources of a release: PATH...

Of a folder it covers the *.py and *.whl files and their names; of a file, its content.
"""

import hashlib
import sys
from pathlib import Path

KINDS = {".py", ".whl"}


def main() -> None:
    """Hash the paths of the command line."""
    whole = hashlib.sha256()
    for place in map(Path, sys.argv[1:]):
        inside = sorted(path for path in place.rglob("*") if path.suffix in KINDS)
        for path in inside if place.is_dir() else [place]:
            whole.update(f"{path.relative_to(place)}\n".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    sys.stdout.write(whole.hexdigest())


if __name__ == "__main__":
    main()
