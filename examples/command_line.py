"""What the examples' command lines share: how Ctrl-C ends them, and the kinds of numbers that their options take."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading

INTERRUPTED = 130  # 128 + SIGINT, what a shell expects


def leave_at_ctrl_c(message: str) -> None:
    """Let Ctrl-C say `message` and end the process at once, with status 130, even while XLA compiles.

    Not by KeyboardInterrupt: the main thread meets it only when XLA returns, Python drops it where it strikes inside a
    callback or a finalizer, and XLA may crash when Python is torn down under it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where KeyboardInterrupt has to do
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # in the threads that start from here on as well

    def wait() -> None:
        signal.sigwait({signal.SIGINT})
        os.write(2, f"\n{message}\n".encode())  # the main thread may hold the lock of sys.stderr
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, daemon=True).start()


def whole(text: str) -> int:
    """An option's whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """An option's whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def number(text: str) -> float:
    """An option's finite number of at least 0."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")


def share(text: str) -> float:
    """An option's share: at least 0, below 1."""
    value = number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not below 1")
    return value
