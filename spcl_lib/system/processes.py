"""How processes end: together with their parent, and with a word after Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from itertools import pairwise
from types import FrameType

PARENT = "SPCL_PARENT"  # the variable that tells a process the id of the parent to end with
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Ends this process when its parent, named in SPCL_PARENT, has ended for any reason.

    Linux kills the process; a thread does so where the system has no such service. The parent may
    have ended before this call: then this process has another parent, and ends at once.
    """
    parent = os.environ.pop(PARENT, None)  # it is not the parent of the processes started here
    if parent is None or os.name == "nt":  # Windows gives no child to another parent
        return
    if sys.platform == "linux":
        import ctypes  # imported here: the lesson needs none of it

        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(0.5)
        os._exit(1)

    if str(os.getppid()) != parent:
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


# --- signals --------------------------------------------------------------------------------------


class Terminated(KeyboardInterrupt):
    """SIGTERM: the process ends as after Ctrl-C, and clears up what it has half written."""


def say_stopped_while_loading() -> None:
    """Lets Ctrl-C and SIGTERM end `python -m spcl_lib` with a word while its modules load.

    Loading torch takes seconds, in which Ctrl-C would show a traceback. In all other programs that
    import the package, nothing changes.
    """
    is_ours = sys.argv[:1] == ["-m"] and ("-m", "spcl_lib") in pairwise(sys.orig_argv)
    if is_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _say_and_end)


def _say_and_end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"spcl: stopped\n")
    os._exit(128 + number)


def raise_when_stopped() -> None:
    """Raises KeyboardInterrupt in the main thread at Ctrl-C, and `Terminated` at SIGTERM."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if signal.getsignal(signal.SIGINT) is _say_and_end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
