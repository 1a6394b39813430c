"""An OpenAI-compatible chat server that misbehaves as told.

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

from aiohttp import web

_CAPTION = re.compile(r"<caption>\n(.*)\n</caption>")

# (caption, how many times it was asked before) -> what to do; None answers as asked
Fault = Callable[[str, int], str | None]


def answer(caption: str) -> str:
    """What the server says of a caption: passes every check where the caption holds a name."""
    names = [word.strip(".,:;") for word in caption.split()[1:] if word[0].isupper()]
    return f"{' and '.join(names) or 'That'} wore grey coats, answer {len(caption)}."


class FakeServer:
    """Serves on loopback in a thread. Counts what is asked and what is answered, by caption.

    Faults: "slow", "429" (with Retry-After), "500", "400", "401", "truncated", "empty", "hang",
    "close", "length", "refuse" (an answer that declines).
    """

    def __init__(self, *, delay_s: float = 0.0, faults: Fault = lambda caption, asked: None):
        self.delay_s, self.faults, self.port = delay_s, faults, 0
        self.asked, self.answered = Counter(), Counter()
        self.bodies, self.headers = [], []
        self.models = [{"id": "fake", "object": "model", "created": 1, "owned_by": "tests"}]
        self.in_flight = self.most_in_flight = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> FakeServer:
        """Listen, on the same port as before if it ran already."""
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def stop(self, *_: object) -> None:
        """Die: drop every connection and close the port."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    __enter__, __exit__ = start, stop

    async def _run(self, ready: threading.Event) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        server = web.Server(self._respond, access_log=None, handler_cancellation=True)
        site = await self._loop.create_server(server, "127.0.0.1", self.port, reuse_address=True)
        self.port = site.sockets[0].getsockname()[1]
        ready.set()
        await self._stopped.wait()
        site.close()
        for connection in server.connections:
            if connection.transport:  # None: the client has closed it
                connection.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _respond(self, request: web.BaseRequest) -> web.Response:
        if request.path.endswith("/models"):
            return web.json_response({"object": "list", "data": self.models})
        self.headers.append(str(request.headers))
        self.bodies.append(await request.json())
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            return await self._answer(request, self.bodies[-1])
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.BaseRequest, body: dict) -> web.Response:
        content = body["messages"][-1]["content"]
        caption = _CAPTION.search(content)[1]
        fault = self.faults(caption, self.asked[caption])
        self.asked[caption] += 1
        await asyncio.sleep(self.delay_s + {"slow": 0.2, "hang": 3600}.get(fault, 0.0))
        if fault == "close":
            request.transport.abort()
        if fault in ("429", "500", "400", "401"):
            # as real servers do, the error repeats what was sent
            error = {"error": {"message": content}}
            return web.json_response(error, status=int(fault), headers={"Retry-After": "0.05"})
        text = "I'm sorry, but I cannot help." if fault == "refuse" else answer(caption)
        message = {"role": "assistant", "content": text}
        reason = "length" if fault == "length" else "stop"
        choices = [{"index": 0, "message": message, "finish_reason": reason}]
        record = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        data = json.dumps({**record, "choices": [] if fault == "empty" else choices})
        self.answered[caption] += fault not in ("empty", "truncated", "close")
        cut = len(data) // 2 if fault == "truncated" else None
        return web.Response(text=data[:cut], content_type="application/json")


if __name__ == "__main__":
    with FakeServer(delay_s=float(sys.argv[1])) as fake:
        print(fake.url, flush=True)
        sys.stdin.read()  # until the parent closes it
