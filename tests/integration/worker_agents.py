"""Agents that behave as no agent should, for tests of worker processes. Loaded by path; not a test module."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from carrel import Agent, AgentContext, Request

SEEN: list[str] = []


def tried(act: Any) -> str:
    """What came of it: "done", or the error's name."""
    try:
        act()
    except BaseException as error:  # noqa: BLE001
        return type(error).__name__
    return "done"


def in_memory(half: bytes, rest: bytes) -> bool:
    """Whether the two stand together anywhere in this process; they are not put together to look for them."""
    regions = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    for region in regions:
        if region[1].startswith("r") and not region[-1].startswith("[v"):
            begin, end = (int(item, 16) for item in region[0].split("-"))
            data = ctypes.string_at(begin, end - begin)
            at = data.find(half)
            while at >= 0:
                if data[at + len(half) :].startswith(rest):
                    return True
                at = data.find(half, at + 1)
    return False


def readable(path: str | Path) -> bool:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


class Behaves(Agent):
    """Does what its parameter ``do`` names."""

    name = "behaves"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        act = getattr(self, f"do_{request.params['do']}")
        result = act(ctx, request.params)
        if asyncio.iscoroutine(result):
            result = await result
        return result or {}

    async def do_nothing(self, ctx: AgentContext, params: Any) -> dict[str, Any]:
        SEEN.append(ctx.context.user_id)
        return {"pid": os.getpid(), "seen": list(SEEN), "patched": json.dumps.__module__ != "json"}

    async def do_nap(self, ctx: AgentContext, params: Any) -> None:
        await asyncio.sleep(1.5)

    async def do_write_globals(self, ctx: AgentContext, params: Any) -> None:
        SEEN.append("worst")
        type(ctx).thinking = None  # type: ignore[method-assign,assignment]
        os.environ.clear()

    async def do_monkeypatch(self, ctx: AgentContext, params: Any) -> None:
        def broken(*_: Any, **__: Any) -> str:
            raise OSError

        for module, name in ((json, "dumps"), (asyncio, "sleep")):
            setattr(module, name, broken)

    async def do_ignore_cancel(self, ctx: AgentContext, params: Any) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def do_wait(self, ctx: AgentContext, params: Any) -> None:
        await ctx.thinking(str(os.getpid()))
        await asyncio.sleep(60)

    async def do_loop(self, ctx: AgentContext, params: Any) -> None:
        await ctx.thinking(str(os.getpid()))
        while True:
            pass

    def do_exit(self, ctx: AgentContext, params: Any) -> None:
        print("last words")
        os._exit(3)

    def do_segfault(self, ctx: AgentContext, params: Any) -> None:
        ctypes.string_at(0)

    def do_allocate(self, ctx: AgentContext, params: Any) -> None:
        kept = []
        while True:
            kept.append(bytearray(32 << 20))

    def do_share_memory(self, ctx: AgentContext, params: Any) -> None:
        import mmap

        shared = mmap.mmap(-1, 300 << 20)
        for offset in range(0, 300 << 20, 4096):
            shared[offset] = 1
        time.sleep(30)

    def do_burn(self, ctx: AgentContext, params: Any) -> None:
        while True:
            sum(range(10000))

    def do_burn_stubbornly(self, ctx: AgentContext, params: Any) -> None:
        signal.signal(signal.SIGXCPU, lambda *_: None)
        self.do_burn(ctx, params)

    def do_fill(self, ctx: AgentContext, params: Any) -> None:
        for number in range(1000):
            Path(f"file-{number}").write_bytes(b"x" * (1 << 20))
        time.sleep(30)

    def do_leave_files(self, ctx: AgentContext, params: Any) -> dict[str, Any]:
        folder = Path("a/b")
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
        folder.chmod(0)
        return {"folder": str(Path.cwd())}

    def do_print(self, ctx: AgentContext, params: Any) -> None:
        line = "x" * 16383
        print("first")
        for _ in range(params["mb"] * 64):
            print(line)
        print("last", file=sys.stderr)

    def do_close_everything(self, ctx: AgentContext, params: Any) -> None:
        os.closerange(0, 1000)
        time.sleep(30)

    def do_garble(self, ctx: AgentContext, params: Any) -> None:
        socket.socket(fileno=os.dup(3)).send(b"\xff" * 64)
        time.sleep(30)

    def do_fork(self, ctx: AgentContext, params: Any) -> dict[str, Any]:
        def thread() -> None:
            worker = threading.Thread(target=SEEN.append, args=("thread",))
            worker.start()
            worker.join()

        return {
            "forks": [tried(os.fork) for _ in range(100)],
            "subprocess": tried(lambda: subprocess.run(["/bin/true"], check=True)),
            "spawn": tried(lambda: os.posix_spawn("/bin/true", ["true"], {})),
            "exec": tried(lambda: os.execv("/bin/true", ["true"])),
            "thread": tried(thread),
        }

    def do_kill(self, ctx: AgentContext, params: Any) -> dict[str, Any]:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        libc = ctypes.CDLL(None, use_errno=True)

        def own_io_signal() -> None:
            import fcntl

            fcntl.fcntl(3, fcntl.F_SETOWN, os.getppid())

        return {
            "all": tried(lambda: os.kill(-1, signal.SIGKILL)),
            "parent": tried(lambda: os.kill(os.getppid(), signal.SIGKILL)),
            "service": tried(lambda: os.kill(params["service"], signal.SIGKILL)),
            "sibling": tried(lambda: os.kill(params["sibling"], signal.SIGKILL)),
            "group": tried(lambda: os.killpg(params["sibling"], signal.SIGKILL)),
            "pidfd": tried(lambda: os.pidfd_open(params["sibling"])),
            "owner": tried(own_io_signal),
            "prlimit": tried(lambda: __import__("resource").prlimit(params["sibling"], 7, (1, 1))),
            "affinity": tried(lambda: os.sched_setaffinity(params["sibling"], [0])),
            "priority": tried(lambda: os.setpriority(os.PRIO_PROCESS, params["sibling"], 19)),
            "pdeathsig": libc.prctl(1, 0, 0, 0, 0),
            "self": tried(lambda: os.kill(os.getpid(), signal.SIGUSR1)),
        }

    def do_look(self, ctx: AgentContext, params: Any) -> dict[str, Any]:
        others = {"parent": os.getppid(), "service": params["service"], "sibling": params["sibling"]}
        names = ("environ", "mem", "maps", "fd", "cmdline", "cwd/.", "root/etc/shadow")
        found = [f"{who}/{name}" for who, pid in others.items() for name in names if readable(f"/proc/{pid}/{name}")]
        return {
            "found": found,
            "files": [path for path in params.get("files", ()) if readable(path)],
            "environment": dict(os.environ),
            "descriptors": sorted(int(item.name) for item in Path("/proc/self/fd").iterdir()),
            "canary": "half" in params and in_memory(params["half"].encode(), params["rest"].encode()),
            "own": readable(__file__) and readable(json.__file__) and readable("/dev/urandom"),
        }

    def do_write(self, ctx: AgentContext, params: Any) -> dict[str, Any]:
        Path("mine").write_text("x")
        here = Path(__file__)
        return {
            "own": Path("mine").read_text(),
            "agents": tried(lambda: here.write_text("")),
            "tmp": tried(lambda: (Path(params["outside"]) / "x").write_text("x")),
            "siblings": tried(lambda: list(Path.cwd().parent.iterdir())),
            "unix": tried(lambda: socket.socket(socket.AF_UNIX)),
            "mount": ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, None),
            "unshare": ctypes.CDLL(None).unshare(0x10000000),
        }

    def do_environment(self, ctx: AgentContext, params: Any) -> dict[str, Any]:
        return {"environment": dict(os.environ), "cwd": str(Path.cwd())}


class Breeds(Agent):
    """May start processes."""

    name = "breeds"
    processes = True

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return self.breed(request.params["sibling"])

    def breed(self, sibling: int) -> dict[str, Any]:
        done = subprocess.run(["/bin/echo", "child"], capture_output=True, text=True, check=True)
        sleeper = subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
        killed = subprocess.Popen(["/bin/sleep", "60"])
        killed.kill()
        return {
            "said": done.stdout,
            "left": sleeper.pid,
            "killed": killed.wait(),
            "all": tried(lambda: os.kill(sibling, signal.SIGKILL)),
        }
