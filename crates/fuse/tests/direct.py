"""Writes a file asynchronously past the cache while others read it through the cache; after each write, all must have the new bytes.

    direct.py libaio|io_uring FILE ROUNDS

Prints `untried ...` where the kernel lacks such writes, else each error, or nothing.
"""

import ctypes
import mmap
import os
import signal
import struct
import sys

how, path, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
SIZE = 655_360
libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    done = libc.syscall(number, *arguments)
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


def address(buffer):
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class LibAio:
    SETUP, GET_EVENTS, SUBMIT = 206, 208, 209

    def __init__(self):
        self.context = ctypes.c_ulong(0)
        call(self.SETUP, 16, ctypes.byref(self.context))

    def write(self, fd, at):
        block = ctypes.create_string_buffer(struct.pack("<QIIHhIQQqQII", 0, 0, 0, 1, 0, fd, at, SIZE, 0, 0, 0, 0), 64)
        pointer = ctypes.c_void_p(ctypes.addressof(block))
        call(self.SUBMIT, self.context, 1, ctypes.byref(pointer))
        event = ctypes.create_string_buffer(32)
        call(self.GET_EVENTS, self.context, 1, 1, event, None)
        return struct.unpack("<QQqq", event.raw)[2]


class IoUring:
    SETUP, ENTER, WRITE = 425, 426, 23
    # The offsets of head, tail, mask and the rest, as the kernel reports them.
    SUBMISSION, COMPLETION = 40, 80

    def __init__(self):
        parameters = ctypes.create_string_buffer(120)
        self.fd = call(self.SETUP, 4, parameters)
        entries, completions = struct.unpack_from("<2I", parameters.raw)
        _, self.tail, self.mask, _, _, _, self.array = struct.unpack_from("<7I", parameters.raw, self.SUBMISSION)
        self.done_head, _, self.done_mask, _, _, self.done_at = struct.unpack_from("<6I", parameters.raw, self.COMPLETION)
        self.queue = mmap.mmap(self.fd, self.array + 4 * entries, offset=0)
        self.done = mmap.mmap(self.fd, self.done_at + 16 * completions, offset=0x8000000)
        self.entries = mmap.mmap(self.fd, 64 * entries, offset=0x10000000)

    def write(self, fd, at):
        def number(memory, place):
            return struct.unpack_from("<I", memory, place)[0]

        tail = number(self.queue, self.tail)
        slot = tail & number(self.queue, self.mask)
        struct.pack_into("<BBHiQQI", self.entries, slot * 64, self.WRITE, 0, 0, fd, 0, at, SIZE)
        struct.pack_into("<I", self.queue, self.array + 4 * slot, slot)
        struct.pack_into("<I", self.queue, self.tail, tail + 1)
        call(self.ENTER, self.fd, 1, 1, 1, None, 0)
        head = number(self.done, self.done_head)
        place = self.done_at + 16 * (head & number(self.done, self.done_mask))
        struct.pack_into("<I", self.done, self.done_head, head + 1)
        return struct.unpack_from("<Qi", self.done, place)[1]


def main():
    try:
        way = {"libaio": LibAio, "io_uring": IoUring}[how]()
    except OSError as error:
        print("untried", error)
        return
    buffers = [mmap.mmap(-1, SIZE), mmap.mmap(-1, SIZE)]
    buffers[0].write(b"\x55" * SIZE)
    buffers[1].write(b"\xaa" * SIZE)
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, buffers[0], 0)
    readers = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            while True:
                reader = os.open(path, os.O_RDONLY)
                os.pread(reader, SIZE, 0)
                os.close(reader)
        readers.append(child)
    plain = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(plain, SIZE, prot=mmap.PROT_READ)
    try:
        for number in range(1, rounds + 1):
            before = os.fstat(plain).st_mtime_ns
            bytes_ = buffers[number % 2]
            wrote = way.write(fd, address(bytes_))
            if wrote != SIZE:
                print("write", number, "gave", wrote)
                return
            want = bytes(bytes_)
            for name, got in (("read", os.pread(plain, SIZE, 0)), ("mapping", mapped[:])):
                if got != want:
                    old = sum(a != b for a, b in zip(got, want))
                    print("write", number, "has ended, and the", name, "has", old, "old bytes")
                    return
            if os.fstat(plain).st_mtime_ns == before:
                print("write", number, "has ended, and mtime is what it was")
                return
    finally:
        for child in readers:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


main()
