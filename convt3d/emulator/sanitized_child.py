"""The process that runs launches under a sanitizer: a script without torch, started by `sanitized.py`.

It takes pickled requests from its standard input and answers on its standard output. Each tensor is copied into memory
of exactly its size, so that the sanitizer's own guards lie where the tensor ends.

    request   a dict of the arguments of `answer`
    answers   "ready" once; then for each request [address of each tensor], and (error or None, [new bytes of each
              tensor, or None if unchanged]); after an error there are no bytes
"""

import ctypes
import os
import pickle
import select
import sys
import threading
from typing import Any, BinaryIO

libc = ctypes.CDLL(None)
libc.free.argtypes = [ctypes.c_void_p]
libc.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
poison = getattr(libc, "__asan_poison_memory_region", None)

# Addresses of tensors keep their remainder by this.
ALIGNMENT = 64


class Memory:
    """A tensor's bytes, with nothing of ours right behind them.

    Args:
        content: its bytes.
        offset: address modulo ALIGNMENT. A kernel must not touch so many bytes before it, either; of those that
            share an aligned 8 bytes with the tensor AddressSanitizer cannot tell.
    """

    def __init__(self, content: bytes, offset: int) -> None:
        self.content = content
        block = ctypes.c_void_p()
        if libc.posix_memalign(ctypes.byref(block), ALIGNMENT, offset + len(content)):
            raise MemoryError(f"no memory for a tensor of {len(content)} bytes")
        assert block.value is not None
        self.block = block.value
        self.address = self.block + offset
        if poison is not None:
            poison(block, ctypes.c_size_t(offset))
        ctypes.memmove(self.address, content, len(content))

    def changed(self) -> bytes | None:
        """Returns its bytes if a kernel wrote others, and frees it."""
        after = ctypes.string_at(self.address, len(self.content))
        libc.free(self.block)
        return None if after == self.content else after


def answer(
    replies: BinaryIO,
    library: str,
    entry: str,
    params: bytes,
    flags: tuple[int, ...],
    schedule: int,
    tensors: list[tuple[int, int, bytes]],
) -> None:
    """Runs one launch.

    Args:
        replies: where answers go.
        library: path of the compiled part.
        entry: name of its function.
        params: the parameter struct.
        flags: the integers that follow it.
        schedule: as `runtime.current_schedule` gives it.
        tensors: of each the offset of its pointer in the struct, its address modulo ALIGNMENT, its bytes.
    """
    function = getattr(ctypes.CDLL(library), entry)
    function.restype = ctypes.c_char_p
    struct = bytearray(params)
    memories = []
    for field, offset, content in tensors:
        memory = Memory(content, offset)
        memories.append(memory)
        struct[field : field + 8] = memory.address.to_bytes(8, sys.byteorder)
    send(replies, [memory.address for memory in memories])
    pointer = (ctypes.c_char * len(struct)).from_buffer(struct)
    error = function(pointer, *map(ctypes.c_int, flags), ctypes.c_void_p(schedule))
    # After an error the threads of a block stand where they stood: what they did to a tensor is in no order with us.
    contents = [] if error else [memory.changed() for memory in memories]
    send(replies, (error, contents))


def send(replies: BinaryIO, reply: Any) -> None:
    pickle.dump(reply, replies)
    replies.flush()


def end_with_parent() -> None:
    """Ends this process when the other end of its standard input is closed, even in the middle of a launch."""
    poll = select.poll()
    poll.register(0, 0)  # nothing but a hang-up
    poll.poll()
    os._exit(0)


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    threading.Thread(target=end_with_parent, daemon=True).start()
    send(replies, "ready")
    while True:
        answer(replies, **pickle.load(sys.stdin.buffer))


if __name__ == "__main__":
    main()
