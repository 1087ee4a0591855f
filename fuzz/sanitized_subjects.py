"""The program that fuzz.compute_sanitizer starts under a tool: runs subjects on the cases that it is sent.

python -m fuzz.sanitized_subjects SOCKET
"""

from __future__ import annotations

import socket
import sys
from multiprocessing.connection import Connection

import torch

from fuzz import subjects
from fuzz.separate_memory import SeparateMemory
from fuzz.worker_process import attempt


def serve(address: str) -> None:
    """Answers pairs of subject and case with outcomes until the other side is gone."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        connection = Connection(client.detach())
    subjects.new_memory = SeparateMemory
    while True:
        try:
            name, case = connection.recv()
        except (EOFError, OSError):
            return
        outcome = attempt(subjects.under_tool[name], case)
        try:
            torch.cuda.synchronize()  # the tool reports when a kernel has ended
        except RuntimeError:
            pass  # and has said by now why
        connection.send(outcome)


if __name__ == "__main__":
    serve(sys.argv[1])
