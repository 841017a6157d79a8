"""Ends processes that must not live longer than their parent."""

from __future__ import annotations

import os
import threading
import time


def end_with_parent() -> None:
    """Ends this process when its parent, named in SPCL_PARENT, has ended for any reason."""
    parent = os.getppid()
    if os.environ.get("SPCL_PARENT") != str(parent):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
