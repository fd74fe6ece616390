"""A shell whose ``hwbench`` is the command line of this process: scripts run without an import."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from _check import Call

_ASK = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({path!r})
    asked.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    code, out, err = json.load(asked.makefile())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
"""What stands on the path as ``hwbench``: it hands its arguments to the test."""


def run(script: str, folder: Path, environment: Mapping[str, str], hwbench: Call) -> int:
    """The exit code of a script of ``bash -e`` in a folder."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    door = tools / "door"
    door.unlink(missing_ok=True)
    command = tools / "hwbench"
    command.write_text(_ASK.format(python=sys.executable, path=str(door)))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    path = f"{tools}{os.pathsep}{environment['PATH']}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(door))
        listening.listen()
        listening.settimeout(0.01)
        shell = subprocess.Popen(
            ["bash", "-e", "-c", script], cwd=folder, env={**environment, "PATH": path}
        )
        while shell.poll() is None:
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            with connection:
                _answer(connection, hwbench)
    return shell.wait()


def _answer(connection: socket.socket, hwbench: Call) -> None:
    connection.setblocking(True)
    arguments, folder, environment = json.loads(connection.makefile().readline())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        outcome = hwbench(*arguments)
    connection.sendall(json.dumps(outcome).encode())
