"""One environment behind two doors: in this process, or in a worker process that can die or hang without taking us along.

The worker imports this file and the task, not torch: it starts fast and stays small.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

from .specs import Restorable, Task

Maker = Callable[[], Task]


class EnvError(RuntimeError):
    """An environment failed, died or hung; the message says which one and why."""


def describe(maker: Maker) -> str:
    """A short name for what a maker makes, for error messages."""
    if isinstance(maker, partial):
        arguments = [_short(a) for a in maker.args] + [f"{k}={_short(v)}" for k, v in maker.keywords.items()]
        return f"{getattr(maker.func, '__name__', maker.func)}({', '.join(arguments)})"
    return getattr(maker, "__qualname__", None) or repr(maker)


def _short(argument: Any) -> str:
    """An argument as an error line can hold it: of a whole configuration only its task."""
    text = repr(argument)
    return text if len(text) <= 80 else repr(getattr(argument, "task", None) or type(argument).__name__)


class LocalEnv:
    """A task in this process, with the two halves of a remote call: `send` does the work, `receive` hands it over."""

    def __init__(self, maker: Maker, index: int) -> None:
        self.index, self.label = index, describe(maker)
        self._result: Any = None
        with _noting(self):
            self._task = maker()
        self.label = getattr(self._task, "name", self.label)

    def send(self, command: str, *arguments: Any) -> None:
        """Carry out `command`. Errors of the task pass through, with a note that names the environment."""
        with _noting(self):
            self._result = perform(self._task, command, *arguments)

    def receive(self, started: float, timeout: float) -> Any:
        """What the last command returned."""
        return self._result

    def release(self) -> None:
        """Nothing to let go of before `close`."""

    def close(self, deadline: float) -> None:
        """Close the task."""
        self._task.close()


class _noting:
    """Adds to errors of an environment which one it was."""

    def __init__(self, env: LocalEnv) -> None:
        self.env = env

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            error.add_note(f"in environment {self.env.index} ({self.env.label})")


def perform(task: Task, command: str, *arguments: Any) -> Any:
    """Carry out one command on a task. `get_state` gives None where the task cannot be restored, `set_state` says if it was."""
    if command == "spec":
        return task.spec, getattr(task, "name", None)
    if command == "get_state":
        return _state(task)
    if command == "set_state":
        if not isinstance(task, Restorable):
            return False
        task.set_state(*arguments)
        return True
    return getattr(task, command)(*arguments)


def _state(task: Task) -> dict[str, Any] | None:
    if not isinstance(task, Restorable):
        return None
    try:
        return task.get_state()
    except NotImplementedError:  # a task may find out only now that it holds something it cannot save
        return None


class RemoteEnv:
    """A task in a worker process, started with "spawn" so that no thread, lock or OpenGL context is inherited."""

    def __init__(self, maker: Maker, index: int) -> None:
        import cloudpickle

        self.index, self.label = index, describe(maker)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, cloudpickle.dumps(maker)), daemon=True, name=f"env{index}")
        self._process.start()
        # A worker ignores SIGTERM, by which multiprocessing would end it and then wait, where nobody called `close`.
        self._forgotten = Finalize(self, self._process.kill, exitpriority=10)
        theirs.close()  # so that a dead worker is an end of file here and not silence

    def send(self, command: str, *arguments: Any) -> None:
        """Ask the worker for `command`; `receive` waits for the answer. Raises EnvError where the worker is dead."""
        try:
            self._pipe.send((command, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._dead() from error

    def receive(self, started: float, timeout: float) -> Any:
        """The answer, waited for until `timeout` seconds after `started` (of `time.monotonic`).

        Raises EnvError where the worker died, hung, or where the task failed: then with the worker's traceback.
        """
        try:
            if not self._pipe.poll(max(started + timeout - time.monotonic(), 0.0)):
                raise EnvError(f"environment {self.index} ({self.label}) hangs: no answer within {timeout:g} s")
            good, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._dead() from error
        if good:
            return answer
        raise self._failed(answer)

    def _failed(self, trace: str) -> EnvError:
        return EnvError(f"environment {self.index} ({self.label}) failed in its worker process:\n{trace}")

    def _dead(self) -> EnvError:
        self._process.join(1.0)
        if self._pipe.poll():  # it may have said why before it ended
            try:
                return self._failed(self._pipe.recv()[1])
            except (EOFError, ConnectionResetError):
                pass  # it has not; its exit code must do
        code = self._process.exitcode
        how = "was killed by signal" if code is not None and code < 0 else "ended with exit code"
        return EnvError(
            f"environment {self.index} ({self.label}) is gone: its worker process {how} {abs(code) if code is not None else 'unknown'}"
        )

    def release(self) -> None:
        """Hang up: the worker closes its task and ends, even if it is just sending an answer."""
        self._pipe.close()

    def close(self, deadline: float) -> None:
        """Wait until the worker has ended; end it by force at the deadline."""
        self._process.join(max(deadline - time.monotonic(), 0.0))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._forgotten.cancel()
        self._process.close()


def serve(pipe: Connection, maker: bytes) -> None:
    """Life of a worker process: make the task, carry out commands until the parent hangs up or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the parent decides what ends when
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_outlive_not, args=(os.getppid(),), daemon=True).start()
    try:
        task: Task = pickle.loads(maker)()
    except Exception:  # noqa: BLE001 - the parent raises it, with this traceback
        pipe.send((False, traceback.format_exc()))
        return
    try:
        while True:
            command, arguments = pipe.recv()
            try:
                answer = (True, perform(task, command, *arguments))
            except Exception:  # noqa: BLE001 - here too
                answer = (False, traceback.format_exc())
            pipe.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has hung up: the end of every worker's life
    finally:
        task.close()


def _outlive_not(parent: int) -> None:
    """End this process once its parent is gone, even while the task hangs and nobody reads the pipe."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
