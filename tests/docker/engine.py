"""A container engine: the one that answers or, where that is allowed, one of our own that leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docker.commands import CommandError, run

PERMISSION = "SUCCESSOR_OWN_DOCKER"
PACKAGES = ("docker.io", "iptables", "mmdebstrap", "prometheus")
# Compose and buildx are not in Debian 12; these are programs without dependencies.
PLUGINS = ("docker-compose", "docker-buildx")
PLUGINS_RELEASE = "trixie"

Docker = Callable[..., bool]

_START_S = 60.0
_STOP_S = 30.0


class NoEngineError(Exception):
    """No engine answers, and none of our own may or can be started; the message says why."""


@dataclass(frozen=True)
class Engine:
    """An engine that answers to the `docker` of this process's environment.

    Args:
        own: it was started here and has no network but the host's: builds need it, and base images are stand-ins.
    """

    own: bool

    @property
    def build_options(self) -> tuple[str, ...]:
        """What `docker build` needs to reach a package index."""
        return ("--network", "host") if self.own else ()


def docker_works(*arguments: str) -> bool:
    """Whether `docker` is there and does what it is asked; `version` asks the engine."""
    try:
        run("docker", *arguments, timeout=20)
    except CommandError:
        return False
    return True


def must_be_own(environment: Mapping[str, str], docker: Docker) -> bool:
    """Whether an engine has to be started, because none answers.

    Args:
        environment: has the permission to start one, or not.
        docker: runs `docker` with some arguments and says whether that worked.

    Raises:
        NoEngineError: none answers, and the environment or the system doesn't let us start one.
    """
    if docker("version"):
        for plugin in ("compose", "buildx"):
            if not docker(plugin, "version"):
                raise NoEngineError(f"an engine answers, but `docker {plugin}` does not: install it")
        return False
    if environment.get(PERMISSION) != "1":
        raise NoEngineError(f"no container engine answers, and {PERMISSION}=1, which lets this start one, is not set")
    if os.geteuid() != 0:
        raise NoEngineError("no container engine answers, and only root can start one")
    if not _is_debian_12():
        raise NoEngineError("no container engine answers, and this can install one on Debian 12 only")
    return True


def install() -> None:
    """Install the engine, and what base images are made with, where they are not there yet.

    Raises:
        NoEngineError: the system's package sources don't have them, or can't be reached.
    """
    if all(shutil.which(program) for program in ("dockerd", "iptables", "mmdebstrap", "prometheus")):
        return
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        run("apt-get", "update", "-qq", variables=quiet)
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES, variables=quiet)
    except CommandError as error:
        raise NoEngineError(f"no container engine answers, and none can be installed: {error}") from error


@contextlib.contextmanager
def own_engine(folder: Path) -> Iterator[Engine]:
    """Start dockerd in `folder`, point `docker` at it, and end it with all that it holds.

    Raises:
        NoEngineError: it doesn't start, as in a container that lacks the rights.
    """
    install_plugins(folder / "apt", folder / "config" / "cli-plugins")
    socket = folder / "s"
    state = ("--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid")
    network = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false")
    # A session of its own: Ctrl-C reaches the tests alone, which end the engine in order. Killed, they take it along.
    command = ["setpriv", "--pdeathsig", "TERM", "dockerd", *map(str, state), "-H", f"unix://{socket}", *network]
    before = {name: os.environ.get(name) for name in ("DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_BUILDKIT")}
    os.environ |= {"DOCKER_HOST": f"unix://{socket}", "DOCKER_CONFIG": str(folder / "config"), "DOCKER_BUILDKIT": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        give_up = time.monotonic() + _START_S
        while not docker_works("version"):
            if process.poll() is not None or time.monotonic() > give_up:
                raise NoEngineError(
                    f"a container engine of our own does not start:\n{(folder / 'log').read_text()[-800:]}"
                )
            time.sleep(0.2)
        yield Engine(own=True)
    finally:
        _end(process)
        for mounted in (folder / "exec" / "netns").glob("*"):
            subprocess.run(["umount", str(mounted)], check=False, capture_output=True)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def install_plugins(apt: Path, target: Path) -> None:
    """Put compose and buildx of a later release into `target`; the system's sources and state stay as they are."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    sources = apt / "later.list"
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources.write_text(f"deb [signed-by={keyring}] {mirror()} {PLUGINS_RELEASE} main\n")
    options = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": apt / "state",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "root",
    }
    apt_get = ("apt-get", "-qq", *(part for name, value in options.items() for part in ("-o", f"{name}={value}")))
    run(*apt_get, "update")
    run(*apt_get, "download", *PLUGINS, folder=apt)
    for package in apt.glob("*.deb"):
        run("dpkg", "-x", package, apt / "unpacked")
    target.mkdir(parents=True)
    for program in (apt / "unpacked/usr/libexec/docker/cli-plugins").iterdir():
        shutil.copy(program, target)


def mirror() -> str:
    """The address that this system takes its Debian packages from."""
    addresses = run("apt-get", "indextargets", "--format", "$(CREATED_BY) $(CODENAME) $(REPO_URI)")
    for line in addresses.splitlines():
        kind, codename, address = line.split(maxsplit=2)
        if (kind, codename) == ("Packages", "bookworm"):
            return address
    raise CommandError(f"apt has no source for Debian 12:\n{addresses}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_debian_12() -> bool:
    release = Path("/etc/debian_version")
    return release.exists() and release.read_text().startswith("12.")
