"""Two hosts on one machine, and a bad link between them: link.py DELAY_MS LOSS_PERCENT, as root.

The hosts are network namespaces, $TEST_HOSTS-10.77.0.1 and -10.77.0.2, in each of which `link0` leads to the other; of
pairs with different $TEST_HOSTS none knows of another. This process carries the packets (not every kernel has tc's
netem): each arrives late, and some never. It prints "up"; SIGUSR1 cuts the link, as a cable does that is pulled out;
SIGTERM takes the hosts away, and all that runs there.
"""

import fcntl
import os
import random
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections import deque

ADDRESSES = ["10.77.0.1", "10.77.0.2"]
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def host_at(address: str) -> str:
    return f"{os.environ['TEST_HOSTS']}-{address}"


def ip(*words: str, check: bool = True) -> str:
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True).stdout


def remove() -> None:
    for host in map(host_at, ADDRESSES):
        for process in ip("netns", "pids", host, check=False).split():
            os.kill(int(process), signal.SIGKILL)
        ip("netns", "delete", host, check=False)


def end_of_link(address: str) -> int:
    """A network device on the host at an address; what is read from it is what is sent there."""
    host, device = host_at(address), f"{os.getpid()}-{address[-1]}"
    ip("netns", "add", host)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    ip("link", "set", device, "netns", host, "name", "link0")
    ip("-n", host, "address", "add", f"{address}/24", "dev", "link0")
    ip("-n", host, "link", "set", "lo", "up")
    ip("-n", host, "link", "set", "link0", "up", "mtu", "9000")
    return end


def carry(ends: list[int], delay: float, loss: float) -> None:
    chance, whole = random.Random(0), [True]
    signal.signal(signal.SIGUSR1, lambda *_: whole.clear())
    on_their_way: deque[tuple[float, int, bytes]] = deque()
    with selectors.DefaultSelector() as selector:
        for end, other in zip(ends, reversed(ends), strict=True):
            selector.register(end, selectors.EVENT_READ, other)
        while True:
            wait = max(0.0, on_their_way[0][0] - time.monotonic()) if on_their_way else None
            for key, _ in selector.select(wait):
                packet = os.read(key.fd, 65536)
                if whole and chance.random() >= loss:
                    on_their_way.append((time.monotonic() + delay, key.data, packet))
            while on_their_way and on_their_way[0][0] <= time.monotonic():
                _, end, packet = on_their_way.popleft()
                if whole:
                    os.write(end, packet)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    remove()
    try:
        ends = [end_of_link(address) for address in ADDRESSES]
        print("up", flush=True)
        carry(ends, float(sys.argv[1]) / 1000, float(sys.argv[2]) / 100)
    finally:
        remove()


if __name__ == "__main__":
    main()
