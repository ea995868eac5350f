"""Dockerfiles as values, and a root that their steps are done in without a container engine.

The root is an overlay over this machine's own in a mount namespace, which takes being root here: what is written goes
to memory and is gone with the namespace.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
# Of the base image.
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_JOINED = re.compile(r"\\\n")
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


class Stage(msgspec.Struct):
    """One FROM and what follows: the instructions in their order, comments and ARG, LABEL left out."""

    base: str
    name: str
    steps: list[tuple[str, str]]

    def last(self, instruction: str) -> str:
        """The rest of the line of its last such instruction."""
        return [rest for word, rest in self.steps if word == instruction][-1]

    def command(self, instruction: str) -> list[str]:
        """The words of a last ENTRYPOINT, CMD or HEALTHCHECK; they must be in the JSON form, which needs no shell."""
        words: list[str] = json.loads(self.last(instruction)[self.last(instruction).index("[") :])
        return words

    def environment(self) -> dict[str, str]:
        """ENV, all together; $PATH and others of the base are put in by whoever runs it."""
        given = shlex.split(" ".join(rest for word, rest in self.steps if word == "ENV"))
        return dict(word.partition("=")[::2] for word in given)


def read(path: Path) -> list[Stage]:
    """The stages of a Dockerfile, with ARG put in by its default."""
    text = _JOINED.sub(" ", re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        rest = _VARIABLE.sub(lambda found: arguments.get(found[1], found[0]), re.sub(r"\s+", " ", rest))
        if word == "ARG":
            name, _, default = rest.partition("=")
            arguments[name] = default.strip('"')
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name, []))
        else:
            stages[-1].steps.append((word, rest))
    return stages


def context(files: Iterable[str], ignore: str) -> list[str]:
    """Which of the files .dockerignore lets into the context: the last pattern that fits it, or a folder above."""
    rules = [line for line in ignore.splitlines() if line and not line.startswith("#")]

    def fits(file: str, pattern: str) -> bool:
        if pattern.startswith("**/"):
            return any(fnmatch(part, pattern.removeprefix("**/")) for part in file.split("/"))
        depth = pattern.count("/") + 1
        return fnmatch("/".join(file.split("/")[:depth]), pattern)

    def kept(file: str) -> bool:
        fitting = [rule for rule in rules if fits(file, rule.removeprefix("!"))]
        return not fitting or fitting[-1].startswith("!")

    return [file for file in files if kept(file)]


def tracked() -> list[str]:
    """The repository's files, as git lists them, new ones included."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


def script(stages: list[Stage], folder: Path, mounts: dict[str, Path]) -> str:
    """A shell script that does the steps of both stages, and then becomes ENTRYPOINT CMD in the root of the last one.

    It is to be run within ``unshare --mount``. folder: holds the context in ``context``. mounts: folders that the last
    root shows read-only, as by `docker run -v`. The last root is read-only but for /tmp and the working directory; the
    process has the image's user, no capabilities, can get none, and sees no variable but the image's.
    """
    build, last = stages
    state, user = last.last("WORKDIR"), last.last("USER").replace(":", " ").split()
    lines = ["set -eu", "mount --make-rprivate /", "mount -t tmpfs tmpfs /mnt"]
    for name, stage in (("build", build), ("last", last)):
        lines += [*_root(f"/mnt/{name}"), *_steps(stage, f"/mnt/{name}/m", folder)]
    root = "/mnt/last/m"
    for place, source in mounts.items():
        lines += [
            f"mkdir -p {root}{place}",
            f"mount --bind {source} {root}{place}",
            f"mount -o remount,ro,bind {root}{place}",
        ]
    lines += [
        f"umount {root}/tmp && mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
        f"mount -t tmpfs -o mode=0700,uid={user[0]},gid={user[1]} tmpfs {root}{state}",
        f"mount -o remount,ro {root}",
        # Inside, no way leads to the writable layers.
        f"cd {root}{state}",
        f"exec chroot {root} {' '.join(_become(user))} env -i {_environment(last)} --chdir={state} "
        + shlex.join(last.command("ENTRYPOINT") + last.command("CMD")),
    ]
    return "\n".join(lines)


def beside(stage: Stage, pid: int, command: list[str]) -> list[str]:
    """The words that run a command beside a process that ``script`` became, as `docker exec` would."""
    user = stage.last("USER").replace(":", " ").split()
    inside = ["nsenter", f"--target={pid}", "--mount", "--root", "--wd"]
    return [*inside, *_become(user), "env", "-i", *shlex.split(_environment(stage)), *command]


def _root(at: str) -> list[str]:
    """An overlay with a writable layer in memory, and a `python` that is this one with pip, as the base image has."""
    python = sys.executable
    return [
        f"mkdir -p {at}/u {at}/w {at}/m",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={at}/u,workdir={at}/w {at}/m",
        f"mount -t tmpfs tmpfs {at}/m/tmp",
        f"mount -t proc proc {at}/m/proc && mount --rbind /dev {at}/m/dev",
        f"cat /etc/resolv.conf > {at}/m/etc/resolv.conf; cat /etc/hosts > {at}/m/etc/hosts",
        # An interpreter in a home that only its owner may enter is of no use to another user.
        f"chmod 0755 {at}/m/root",
        f"mkdir -p {at}/m/opt/base && {python} -m venv --without-pip {at}/m/opt/base",
        # No link: by its own name an interpreter finds the virtual environment that it belongs to.
        f"printf '#!/bin/sh\\nexec /opt/base/bin/python \"$@\"\\n' > {at}/m/usr/local/bin/python",
        f"chmod 0755 {at}/m/usr/local/bin/python",
        f"{python} -m pip --disable-pip-version-check --python {at}/m/opt/base/bin/python install --quiet pip",
    ]


def _steps(stage: Stage, root: str, folder: Path) -> list[str]:
    lines = []
    for word, rest in stage.steps:
        if word == "RUN":
            lines.append(f"chroot {root} env PATH={PATH} sh -euc {shlex.quote(rest)}")
        elif word == "COPY" and rest.startswith("--from=build "):
            source, to = rest.removeprefix("--from=build ").split()
            lines.append(f"mkdir -p {root}{to} && cp -a /mnt/build/m{source}/. {root}{to}")
        elif word == "COPY":
            *sources, to = rest.split()
            lines.append(f"mkdir -p {root}{to}")
            lines += [f"cp -a {folder}/context/{each}{'/.' if each == '.' else ''} {root}{to}" for each in sources]
    return lines


def _become(user: list[str]) -> list[str]:
    uid, gid = user
    no_more = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", *no_more]


def _environment(stage: Stage) -> str:
    given = {name: value.replace("$PATH", PATH) for name, value in stage.environment().items()}
    return shlex.join(f"{name}={value}" for name, value in given.items())


def may_pretend() -> bool:
    """Whether this process may make such a root."""
    return os.geteuid() == 0
