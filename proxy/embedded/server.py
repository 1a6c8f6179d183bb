"""The embedded engine's process: its routes, its start and its end.

Imports mlx only once `run` has set the environment that mlx reads. Speaks vLLM's dialect; the proxy
that starts it gives it a key, since others on the same machine can reach its port.
"""

import contextlib
import ctypes
import ctypes.util
import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Final, NoReturn

from strop.adapters import mlx_environment
from strop.proxy.child import follow_parent
from strop.proxy.embedded.options import Options
from strop.proxy.open_files import raise_limit

_log = logging.getLogger(__name__)

_BACKLOG: Final = 1024


def run(options: Options) -> NoReturn:
    """Serve until SIGTERM, SIGINT or the parent's end; then end the process, with 1 if it failed.

    Prints `listening on http://HOST:PORT` once the port is bound. The model is loaded after that;
    /health answers 200 when it is ready. Must be called in the main thread of a process of its own.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _exit)
    _set_environment(options)
    if options.parent_fd is not None:
        threading.Thread(
            target=follow_parent, args=(options.parent_fd, options.grace_s + 5), daemon=True
        ).start()
    listener = _listen(options)
    host, port = listener.getsockname()[:2]
    print(f"listening on http://{host}:{port}", flush=True)
    if not options.key:
        _log.info("who reaches this port needs no key, and can load weights")

    import uvicorn

    from strop.proxy.embedded.app import build

    # To import mlx_lm lowers the limit, to 2,048 of at most 4,096.
    raise_limit()
    app = build(options)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(options.grace_s)),
        )
    )
    app.state.stop = lambda: setattr(server, "should_exit", True)
    # uvicorn raises the signal that stopped it once more when it is done.
    with contextlib.suppress(SystemExit):
        server.run(sockets=[listener])
    logging.shutdown()
    # A step may take longer than it is waited for, and MLX frees what a thread has compiled after
    # its join: Python's own end would abort over either.
    os._exit(1 if app.state.has_failed else 0)


def _listen(options: Options) -> socket.socket:
    if options.listen_fd is None:
        return socket.create_server((options.host, options.port), backlog=_BACKLOG)
    listener = socket.socket(fileno=options.listen_fd)
    listener.set_inheritable(False)
    listener.listen(_BACKLOG)
    return listener


def _set_environment(options: Options) -> None:
    if not options.online:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Where it is installed, transformers would import it for nothing: a second, and 190 MB.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    mlx_environment.set_defaults()
    if sys.platform == "linux":
        # mlx's Linux wheel brings the reference BLAS; a loaded OpenBLAS takes its place, and makes
        # fp32 models 2 to 10 times as fast. Must be loaded before mlx.
        if library := ctypes.util.find_library("openblas"):
            try:
                ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                _log.warning("going on without OpenBLAS, it can't be loaded: %s", error)


def _exit(_signal: int, _frame: FrameType | None) -> None:
    # Before the server runs, and after it: uvicorn has its own handler in between.
    raise SystemExit(0)
