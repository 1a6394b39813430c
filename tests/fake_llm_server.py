"""An OpenAI-compatible chat server that misbehaves as told; standard library only.

In a test: ``with FakeServer(faults=...) as server: OpenAIChat("fake", server.url)``. As a process
of its own, for benchmarks: ``python -m tests.fake_llm_server DELAY_S`` prints its address.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable

_CAPTION = re.compile(r"<caption>\n(.*)\n</caption>")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

# (caption, how many times it was asked before) -> what to do; None answers as asked
Fault = Callable[[str, int], str | None]


def answer(caption: str, seed: int = 0) -> str:
    """What the server says of a caption: passes every check where the caption holds a name."""
    names = [word.strip(".,:;") for word in caption.split()[1:] if word[0].isupper()]
    return f"{' and '.join(names) or 'That'} wore grey coats, answer {len(caption)}."


class FakeServer:
    """Serves on loopback in a thread. Counts what is asked and what is answered, by caption.

    Faults: "slow", "429" (with Retry-After), "500", "400", "401", "truncated", "empty", "hang",
    "close", "length", "refuse" (an answer that declines).
    """

    def __init__(self, *, delay_s: float = 0.0, faults: Fault = lambda caption, asked: None):
        self.delay_s, self.faults = delay_s, faults
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.headers: list[bytes] = []
        self.in_flight = self.most_in_flight = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before if it ran already."""
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        """Die: drop every connection and close the port."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    async def _run(self, ready: threading.Event) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(
            self._connection, "127.0.0.1", self.port, reuse_address=True
        )
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopped.wait()
        server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(_LENGTH.search(head)[1])
                self.headers.append(head)
                body = json.loads(await reader.readexactly(length))
                self.in_flight += 1
                self.most_in_flight = max(self.in_flight, self.most_in_flight)
                try:
                    data = await self._respond(body)
                finally:
                    self.in_flight -= 1
                if data is None:
                    return
                writer.write(data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _respond(self, body: dict) -> bytes | None:
        content = body["messages"][-1]["content"]
        caption = _CAPTION.search(content)[1]
        fault = self.faults(caption, self.asked[caption])
        self.asked[caption] += 1
        self.bodies.append(body)
        await asyncio.sleep(self.delay_s + (0.2 if fault == "slow" else 0.0))
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "close":
            return None
        if fault in ("429", "500", "400", "401"):
            # as real servers do, the error repeats what was sent
            return _response(int(fault), {"error": {"message": content}}, "Retry-After: 0.05\r\n")
        text = answer(caption, body.get("seed", 0))
        choices = [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "I'm sorry, but I cannot help." if fault == "refuse" else text,
                },
                "finish_reason": "length" if fault == "length" else "stop",
            }
        ]
        if fault == "empty":
            choices = []
        if fault not in ("empty", "truncated"):
            self.answered[caption] += 1
        record = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        return _response(200, {**record, "choices": choices}, cut=fault == "truncated")


def _response(status: int, body: dict, headers: str = "", *, cut: bool = False) -> bytes:
    data = json.dumps(body).encode()
    data = data[: len(data) // 2] if cut else data
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


if __name__ == "__main__":
    with FakeServer(delay_s=float(sys.argv[1])) as fake:
        print(fake.url, flush=True)
        sys.stdin.read()  # until the parent closes it
