"""What a refusal says; and a system that refuses to write, by a limit, which also stops torch."""

import contextlib
import errno
import os
import resource

import pytest

from spcl_lib import UserError
from spcl_lib.system import files


def message_of(call, *arguments, **options):
    """The one line of the UserError that a call gives."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextlib.contextmanager
def no_file_above(size):
    """Writing to any file fails beyond so many bytes, as on a disk with a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk_for(monkeypatch, name):
    """Putting a file of this name in its place fails, once there is no space."""
    replace = os.replace

    def full(source, target):
        if os.path.basename(target) == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
