"""Base images made from Debian's packages, under the very names that Dockerfile and compose file use.

For an engine of our own only, which reaches no registry. Python's image becomes Debian 12 with its Python 3.11;
Prometheus' image the same with Debian's Prometheus. There is none for Grafana.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.docker.commands import run
from tests.docker.engine import mirror

_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
# As the slim images do.
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# What Python's own image has: `python` under /usr/local, and a pip that may install. The host's certificates, and where
# pip finds them, are what reaches its package index from here.
_LIKE_PYTHONS_IMAGE = """
set -eu
rm -f "$1"/usr/lib/python3.11/EXTERNALLY-MANAGED
ln -s /usr/bin/python3 "$1"/usr/local/bin/python
ln -s /usr/bin/pip3 "$1"/usr/local/bin/pip
cp /etc/ssl/certs/ca-certificates.crt "$1"/etc/host-ca.crt
printf '[global]\\ncert = /etc/host-ca.crt\\n' >"$1"/etc/pip.conf
"""


def base_image(dockerfile: str) -> str:
    """The one image that a Dockerfile's stages start from.

    Raises:
        ValueError: there is not exactly one.
    """
    stages = set(re.findall(r"^FROM .* AS (\S+)", dockerfile, re.MULTILINE))
    base: str
    (base,) = set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) - stages
    return base


def make_base_archive(folder: Path) -> Path:
    """A root file system like that of Python's image, as a tar in `folder`."""
    hook = folder / "like-python"
    hook.write_text(f"#!/bin/sh\n{_LIKE_PYTHONS_IMAGE}")
    hook.chmod(0o755)
    archive = folder / "base.tar"
    options = ["--quiet", "--mode=root", "--variant=minbase", f"--include={_PACKAGES}", "--dpkgopt=force-unsafe-io"]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    run("mmdebstrap", *options, f"--customize-hook={hook}", "bookworm", archive, mirror())
    return archive


def import_base(archive: Path, name: str) -> None:
    """Give the engine the archive as the image `name`."""
    run("docker", "import", "-c", f"ENV PATH={_PATH}", "-c", 'CMD ["python3"]', archive, name)


def make_prometheus(folder: Path, base: str, name: str) -> None:
    """Prometheus' image `name`: the host's programs on the base, run by the user that the real one has."""
    context = folder / "prometheus"
    context.mkdir()
    for program in ("prometheus", "promtool"):
        shutil.copy(f"/usr/bin/{program}", context)
    (context / "Dockerfile").write_text(
        f"FROM {base}\nCOPY prometheus promtool /bin/\nRUN install -d -o 65534 -g 65534 /prometheus\n"
        'USER 65534\nWORKDIR /prometheus\nENTRYPOINT ["/bin/prometheus"]\n'
    )
    run("docker", "build", "--network", "host", "--quiet", "--tag", name, context)
