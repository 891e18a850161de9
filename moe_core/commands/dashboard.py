"""dashboard: the pages in a browser, from any folder. The command line without a command is this one."""

import argparse
import os
import socket
import sys
from typing import Any

from moe_core.commands.common import take_runs, whole_flag
from moe_core.folders import APP


def declare(commands: Any) -> None:
    help = "open the dashboard; so does the command line without a command"
    sub = commands.add_parser("dashboard", help=help, description=help, allow_abbrev=False)
    take_runs(sub)
    sub.add_argument("--port", type=port_flag, metavar="N", help="default 8501, or the next one that is free")
    sub.add_argument(
        "--address",
        type=address_flag,
        metavar="IP",
        help="default 127.0.0.1; 0.0.0.0 lets others in who have the token",
    )
    sub.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    sub.set_defaults(run_command=dashboard_command, name="the dashboard", extra="dashboard")


def port_flag(text: str) -> int:
    """A port's number."""
    if not 1 <= (port := whole_flag(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"must be between 1 and 65535, got {text}")
    return port


def address_flag(text: str) -> str:
    """An address of this machine, which a server can listen at."""
    try:
        family, *_, place = socket.getaddrinfo(text, 0)[0]
        socket.create_server(place, family=family).close()
    except (OSError, UnicodeError):
        raise argparse.ArgumentTypeError(
            f"must be an address of this machine, such as 127.0.0.1, got {text!r}"
        ) from None
    return text


def dashboard_command(arguments: argparse.Namespace) -> int:
    """This process becomes the server. Streamlit takes its settings from the folder of app.py, whatever the current one is."""
    if arguments.runs:
        os.environ["MOE_RUNS"] = os.path.abspath(arguments.runs)
    flags = {"port": arguments.port, "address": arguments.address, "headless": "true" if arguments.no_browser else None}
    words = [word for name, value in flags.items() if value is not None for word in (f"--server.{name}", str(value))]
    # -P: a file of the current folder must not be taken for a module of the same name.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "streamlit", "run", str(APP / "app.py"), *words])
