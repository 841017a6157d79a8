"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import os
import threading
import time


def end_with_parent() -> None:
    """Ends this process when the one named in SPCL_PARENT is gone, however it ended."""
    parent = os.getppid()
    if os.environ.get("SPCL_PARENT") != str(parent):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
