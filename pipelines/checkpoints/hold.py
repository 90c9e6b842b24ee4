"""A lock on a folder that is being filled: it dies with its process, and leaves nothing behind."""

import fcntl
import os
from pathlib import Path


def hold(folder: Path, wait: bool = True) -> int:
    """A descriptor that locks a folder until it is closed or its process ends.

    0 where another process holds it (unless this waits) and where the file system has no locks: it then stays as it is.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        os.close(descriptor)
        return 0
