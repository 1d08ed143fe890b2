"""A real mosquitto for tests: password file, access rules, plain and TLS listeners on free ports; can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import in_ci

AGENT, SATELLITE, STRANGER = "agent", "satellite", "stranger"
PASSWORD = "open sesame"
ACCESS = f"""
user {AGENT}
topic readwrite hermes/#
topic readwrite duologue/#
user {SATELLITE}
topic readwrite hermes/#
topic read duologue/#
user {STRANGER}
topic read duologue/status
"""


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Mosquitto:
    """One broker in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.tls_port = free_port(), free_port()
        self.ca = folder / "ca.pem"
        self._process: subprocess.Popen[bytes] | None = None
        self._make_certificates()
        self._write_passwords()
        (folder / "access").write_text(ACCESS)
        (folder / "access").chmod(0o600)
        user = "user root\n" if os.geteuid() == 0 else ""  # else it becomes one who may not read the files
        (folder / "mosquitto.conf").write_text(
            f"{user}allow_anonymous false\npassword_file {folder / 'passwords'}\nacl_file {folder / 'access'}\n"
            f"max_queued_messages 1000\nlistener {self.port} 127.0.0.1\nlistener {self.tls_port} 127.0.0.1\n"
            f"cafile {self.ca}\ncertfile {folder / 'server.pem'}\nkeyfile {folder / 'server.key'}\n"
        )

    def start(self) -> None:
        """Run it and wait until it answers."""
        log = (self.folder / "mosquitto.log").open("ab")
        path = shutil.which("mosquitto", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
        assert path is not None
        self._process = subprocess.Popen([path, "-c", str(self.folder / "mosquitto.conf")], stdout=log, stderr=log)
        log.close()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5):
                return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "mosquitto.log").read_text())

    def kill(self) -> None:
        """As a power cut would: no goodbye to anybody."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def _write_passwords(self) -> None:
        passwords = self.folder / "passwords"
        for user in (AGENT, SATELLITE, STRANGER):
            new = [] if passwords.exists() else ["-c"]
            subprocess.run(["mosquitto_passwd", "-b", *new, str(passwords), user, PASSWORD], check=True, capture_output=True)
        passwords.chmod(0o600)

    def _make_certificates(self) -> None:
        def openssl(*words: str) -> None:
            subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        for name in ("ca", "foreign"):
            openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "2")
        openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
        (self.folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
        openssl("x509", "-req", "-in", "server.csr", "-out", "server.pem", *signing)
        (self.folder / "server.key").chmod(0o600)


@contextlib.contextmanager
def running_mosquitto(folder: Path) -> Iterator[Mosquitto]:
    """A broker for the length of a block. Skips without mosquitto or openssl, fails in CI."""
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    missing = [name for name in ("mosquitto", "mosquitto_passwd", "openssl") if shutil.which(name, path=path) is None]
    if missing:
        reason = f"{', '.join(missing)} not installed (Debian: apt install mosquitto openssl)"
        pytest.fail(reason) if in_ci() else pytest.skip(reason)
    broker = Mosquitto(folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()
