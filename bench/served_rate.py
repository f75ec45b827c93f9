"""How many events the simulator streams a second, and how punctually, from one process.

    python -m bench.served_rate [STREAMS]

Each line is one step time for so many streams that start together (256 unless told): events/s as
they arrived, the server's CPU an event, how late steps began to be written and how long that took.
Steps of no length measure what the server can do at most; there "late" only says that it is behind.
The client is a loop over raw sockets that counts, so that it takes as little as possible of the
machine; run it where nothing else runs.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from itertools import pairwise
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil

from reference_server.process import SimProcess

TOKENS = 300
ENGINE = (
    *("--max-num-seqs", "4096", "--max-num-batched-tokens", "65536"),
    *("--kv-cache-tokens", "8000000", "--prefill-base", "1ms", "--prefill-per-token", "0"),
    *("--decode-per-sequence", "0", "--decode-per-kv-token", "0"),
)


def main() -> None:
    """Measure each step time and print its line."""
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    for step in ("50ms", "25ms", "12.8ms", "8.5ms", "1us"):
        line(streams, step)


def line(streams: int, step: str) -> None:
    """Measure one step time and print its line."""
    with SimProcess("--model", "m", "--decode-base", step, *ENGINE) as process:
        server = psutil.Process(process.pid)
        before = server.cpu_times()
        events, took_s = count_events(process.url, streams)
        after = server.cpu_times()
        page = urlopen(f"{process.url}/metrics").read().decode()
    cpu_s = after.user + after.system - before.user - before.system
    print(
        f"{streams} streams, steps of {step:7} {events / took_s:7,.0f} events/s   "
        f"{cpu_s / events * 1e6:5.1f} us CPU an event   "
        f"late p99 <= {p99(page, 'sim:step_lateness_seconds')}   "
        f"spread p99 <= {p99(page, 'sim:step_spread_seconds')}",
        flush=True,
    )


def count_events(url: str, streams: int) -> tuple[int, float]:
    """Events that came over so many streams at once, and seconds until the last one."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    poll, sockets = select.epoll(), {}
    for _ in range(streams):
        sock = socket.create_connection((host, port))
        sockets[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    message = {"role": "user", "content": "How are you?"}
    body = json.dumps({"messages": [message], "stream": True, "max_tokens": TOKENS}).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: sim\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    began, events, done = time.monotonic(), 0, 0
    tails = dict.fromkeys(sockets, b"")  # too short to hold what is counted
    for sock in sockets.values():
        sock.sendall(request)
    while done < streams:
        for number, _ in poll.poll():
            data = tails[number] + sockets[number].recv(1 << 18)
            events += data.count(b"data: {")
            done += data.count(b"data: [")
            tails[number] = data[-6:]
    took_s = time.monotonic() - began
    for sock in sockets.values():
        sock.close()
    return events, took_s


def p99(page: str, name: str) -> str:
    """The edge of the bucket that a histogram's p99 lies in, milliseconds."""
    rows = re.findall(rf'^{name}_bucket{{.*le="([^"]+)".*}} (\S+)$', page, re.MULTILINE)
    counts = [(0.0, 0.0), *((float(edge), float(count)) for edge, count in rows)]
    wanted = 0.99 * counts[-1][1]
    edge = next(edge for (_, before), (edge, count) in pairwise(counts) if before < wanted <= count)
    return f"{edge * 1000:g} ms"


if __name__ == "__main__":
    main()
