"""A stand-in, not CUDA: device memory is host memory, and work put on a stream waits until it is synchronised.

Install it with `polygraphy.cuda.cuda.G_CUDA = stand_in_cuda.Cuda()`: it has the methods of Polygraphy's wrapper.
"""

import ctypes
from collections.abc import Callable

QUEUES: dict[int, list[Callable[[], None]]] = {}


class Cuda:
    def __init__(self) -> None:
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.streams = 0

    def create_stream(self) -> int:
        self.streams += 1
        QUEUES[self.streams] = []
        return self.streams

    def stream_synchronize(self, stream: int) -> None:
        for work in QUEUES[stream]:
            work()
        QUEUES[stream].clear()

    def destroy_stream(self, stream: int) -> None:
        assert not QUEUES.pop(stream), "a stream was destroyed with work on it"

    def malloc(self, nbytes: int) -> int:
        block = ctypes.create_string_buffer(b"\x7f" * max(nbytes, 1), max(nbytes, 1))
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, pointer: int) -> None:
        if pointer:  # as cudaFree, which ignores a null pointer
            del self.memory[pointer]

    def memcpy(self, dst: int, src: int, nbytes: int, kind: object, stream_ptr: int | None = None) -> None:
        if stream_ptr is None:
            ctypes.memmove(dst, src, nbytes)
        else:
            QUEUES[stream_ptr].append(lambda: ctypes.memmove(dst, src, nbytes))
