"""Find the C headers of ONNX Runtime and print the directory that holds them.

No wheel of onnxruntime ships its headers, so the build asks this script, which looks in this order:

1. the directory a user names (``--user-dir``);
2. the directory CMake found on the system (``--system-dir``);
3. headers that an earlier run has cached;
4. Debian's package ``libonnxruntime-dev``, downloaded through a private apt root: own sources list, own lists, own
   cache, empty status file. Mirror and key are those the machine already uses, and nothing on the system changes;
5. the release archive of ONNX Runtime.

Only ``onnxruntime_c_api.h`` and what it includes are needed; nothing is linked. The script needs the standard library
alone and runs before the package exists. Standard output holds the directory and nothing else; what is going on is told
on standard error.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HEADER = "onnxruntime_c_api.h"
MIN_API_VERSION = 18
DEBIAN_SUITE = "trixie"
DEBIAN_PACKAGE = "libonnxruntime-dev"
RELEASE_VERSION = "1.21.0"
RELEASE_URL = (
    "https://github.com/microsoft/onnxruntime/releases/download/v{version}/onnxruntime-linux-{arch}-{version}.tgz"
)
# Where a tree of headers may keep them: an installed system, a release archive, a source checkout.
SUBDIRECTORIES = ("", "include", "onnxruntime", "include/onnxruntime", "include/onnxruntime/core/session")
TIMEOUT = 120


class HeadersError(Exception):
    """The headers cannot be had this way; the message says why."""


@dataclass(frozen=True)
class Mirror:
    """One archive of packages the machine already trusts: its address and the key option apt shall check it with."""

    uri: str
    signed_by: str

    def line(self, suite: str) -> str:
        """The one-line form of a source for ``suite``."""
        options = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return f"deb {options}{self.uri} {suite} main\n"


def log(message: str) -> None:
    """Tell the person who watches the build."""
    print(f"perfonnx: {message}", file=sys.stderr)


def api_version(directory: Path) -> int:
    """ORT_API_VERSION of the header in ``directory``; 0 if there is none."""
    try:
        text = (directory / HEADER).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^#define\s+ORT_API_VERSION\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def headers_under(root: Path) -> Path | None:
    """The directory at or below ``root`` with a header new enough; None if there is none."""
    for sub in SUBDIRECTORIES:
        if api_version(root / sub) >= MIN_API_VERSION:
            return root / sub
    return None


def cache_root() -> Path:
    """The user's cache directory of the project (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "perfonnx"


def cached_headers(root: Path) -> Path | None:
    """The newest headers that an earlier run left under ``root``."""
    found = [path for path in root.glob("onnxruntime-headers-*") if api_version(path) >= MIN_API_VERSION]
    return max(found, key=api_version, default=None)


def store(headers: Path, version: str, roots: list[Path]) -> Path:
    """Copy the headers into the first of ``roots`` that can be written, whole or not at all; returns the copy."""
    problem: OSError | None = None
    for root in roots:
        target = root / f"onnxruntime-headers-{version}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                copy = Path(scratch) / "headers"
                copy.mkdir()
                for header in headers.glob("*.h"):
                    shutil.copyfile(header, copy / header.name)
                if api_version(target) < MIN_API_VERSION:  # else another build has put it there meanwhile
                    shutil.rmtree(target, ignore_errors=True)
                    copy.rename(target)
        except OSError as error:
            problem = error
            continue
        return target
    raise HeadersError(f"no directory to keep the headers in: {problem}")


# --- Debian --------------------------------------------------------------------------------------------------------


def parse_one_line(text: str) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Entries (uri, signed-by, suites, components) of a sources.list."""
    for raw in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", raw)
        if found:
            options = dict(item.split("=", 1) for item in (found[1] or "").split() if "=" in item)
            yield found[2], options.get("signed-by", ""), [found[3]], found[4].split()


def parse_deb822(text: str) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Entries (uri, signed-by, suites, components) of a .sources file."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = fields.get(name, "") + "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        for uri in fields.get("uris", "").split():
            yield (
                uri,
                fields.get("signed-by", ""),
                fields.get("suites", "").split(),
                fields.get("components", "").split(),
            )


def mirrors(root: Path = Path("/etc")) -> list[Mirror]:
    """The main archives of the machine's own distribution, as its apt configuration names them.

    Archives of other publishers, and the security archive, which have no other suites, are left out.
    """
    codename = ""
    try:
        found = re.search(
            r"^VERSION_CODENAME=\"?([\w-]+)", (root / "os-release").read_text(encoding="utf-8"), re.MULTILINE
        )
        codename = found[1] if found else ""
    except OSError:
        pass
    suites = {codename, "stable", "testing", "unstable", "sid", DEBIAN_SUITE} - {""}
    result: list[Mirror] = []
    apt = root / "apt"
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for file in files:
        if file.suffix not in (".list", ".sources"):
            continue
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        entries = parse_deb822(text) if file.suffix == ".sources" else parse_one_line(text)
        for uri, key, names, components in entries:
            # An inline key block cannot go into the one-line form: apt's own trusted keys must do then.
            mirror = Mirror(uri, key if key.startswith("/") else "")
            if "main" in components and suites.intersection(names) and mirror not in result:
                result.append(mirror)
    return result


def run(command: list[str], where: Path) -> str:
    """Run a command of the packaging tools; its output, or HeadersError with its last line of complaint."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=where, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HeadersError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        complaints = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in complaints if line.startswith("E:")] or complaints or ["no message"]
        raise HeadersError(f"{command[0]} failed: {errors[-1]}")
    return done.stdout


def from_debian(work: Path) -> tuple[Path, str]:
    """Headers of Debian's package, and their version, fetched into ``work`` without touching the system."""
    if shutil.which("apt-get") is None:
        raise HeadersError("this machine has no apt-get")
    found = mirrors()
    if not found:
        raise HeadersError("apt's configuration names no Debian archive")
    problem = HeadersError("")
    for mirror in found:
        with tempfile.TemporaryDirectory(dir=work) as name:
            root = Path(name)
            for directory in ("lists/partial", "cache/archives/partial", "none"):
                (root / directory).mkdir(parents=True)
            (root / "status").touch()
            (root / "sources.list").write_text(mirror.line(DEBIAN_SUITE), encoding="utf-8")
            settings = {
                "Dir::Etc::sourcelist": root / "sources.list",
                "Dir::Etc::sourceparts": root / "none",
                "Dir::Etc::preferences": root / "none" / "preferences",
                "Dir::Etc::preferencesparts": root / "none",
                "Dir::State::lists": root / "lists",
                "Dir::State::status": root / "status",
                "Dir::Cache": root / "cache",
                "Acquire::Languages": "none",
                "Acquire::Retries": "1",
                "APT::Update::Error-Mode": "any",
                "APT::Get::AllowUnauthenticated": "false",
                # The private root belongs to whoever builds; apt's download user could not read it.
                **({"APT::Sandbox::User": "root"} if os.geteuid() == 0 else {}),
            }
            apt = ["apt-get", "-q", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
            try:
                run([*apt, "update"], root)
                run([*apt, "download", DEBIAN_PACKAGE], root)
                package = next(root.glob("*.deb"), None)
                if package is None:
                    raise HeadersError(f"apt-get downloaded no {DEBIAN_PACKAGE}")
                run(["dpkg", "-x", str(package), str(root / "tree")], root)
            except HeadersError as error:
                problem = error
                continue
            headers = headers_under(root / "tree" / "usr")
            if headers is None:
                raise HeadersError(f"{package.name} holds no {HEADER} of API version {MIN_API_VERSION} or later")
            kept = work / "debian"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(headers, kept)
            return kept, package.name.split("_")[1].split("+")[0].split("-")[0].replace("%3a", ".")
    raise problem


# --- the release archive -------------------------------------------------------------------------------------------


def from_release(work: Path, version: str, url: str) -> tuple[Path, str]:
    """Headers of the release archive, and their version."""
    arch = {"x86_64": "x64", "aarch64": "aarch64", "arm64": "aarch64"}.get(platform.machine(), "x64")
    address = url.format(version=version, arch=arch)
    target = work / "release"
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=work) as archive:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
                shutil.copyfileobj(answer, archive)
            archive.seek(0)
            with tarfile.open(fileobj=archive, mode="r:gz") as tar:
                for member in tar:
                    content = tar.extractfile(member) if member.isfile() and member.name.endswith(".h") else None
                    if content is not None:  # base name only: a path inside the archive decides nothing here
                        (target / Path(member.name).name).write_bytes(content.read())
    except (OSError, tarfile.TarError, ValueError) as error:
        raise HeadersError(f"{address}: {error}") from error
    if api_version(target) < MIN_API_VERSION:
        raise HeadersError(f"{address} holds no {HEADER} of API version {MIN_API_VERSION} or later")
    return target, version


def find(arguments: argparse.Namespace) -> Path:
    """The directory with the headers, by the first way that works.

    Raises:
        HeadersError: no way works; the message says what to install or set.
    """
    if arguments.user_dir:
        headers = headers_under(Path(arguments.user_dir).expanduser())
        if headers is None:
            raise HeadersError(
                f"ONNXRUNTIME_INCLUDE_DIR={arguments.user_dir} holds no {HEADER} of API version {MIN_API_VERSION} "
                "(onnxruntime 1.18) or later; point it at the include directory of an ONNX Runtime release, or unset it"
            )
        return headers
    if arguments.system_dir and (headers := headers_under(Path(arguments.system_dir))) is not None:
        return headers
    work = Path(arguments.work_dir).resolve()
    roots = [cache_root(), work]
    for root in roots:
        headers = cached_headers(root)
        if headers is not None:
            return headers
    work.mkdir(parents=True, exist_ok=True)
    reasons: list[str] = []
    version = arguments.release_version or RELEASE_VERSION
    url = arguments.release_url or RELEASE_URL
    ways: tuple[tuple[str, Callable[[], tuple[Path, str]]], ...] = (
        (f"Debian's package {DEBIAN_PACKAGE}", lambda: from_debian(work)),
        ("the release archive", lambda: from_release(work, version, url)),
    )
    for name, way in ways:
        log(f"fetching the headers of ONNX Runtime from {name}")
        try:
            return store(*way(), roots)
        except HeadersError as error:
            reasons.append(f"{name}: {error}")
            log(str(error))
    raise HeadersError(
        f"the headers of ONNX Runtime ({HEADER}) were not found and could not be fetched. Install {DEBIAN_PACKAGE}, "
        "or unpack an ONNX Runtime release and set ONNXRUNTIME_INCLUDE_DIR to its include directory "
        f"[{'; '.join(reasons)}]"
    )


def main() -> int:
    """Print the directory; 1 with one message if there is none."""
    parser = argparse.ArgumentParser(description="Find the C headers of ONNX Runtime and print their directory.")
    parser.add_argument("--user-dir", default="", help="directory the user names; nothing else is looked at then")
    parser.add_argument("--system-dir", default="", help="directory found on the system")
    parser.add_argument("--work-dir", default="build/headers", help="for downloads, and for the headers if need be")
    parser.add_argument("--release-version", default=os.environ.get("PERFONNX_ONNXRUNTIME_VERSION", ""))
    parser.add_argument("--release-url", default=os.environ.get("PERFONNX_ONNXRUNTIME_URL", ""))
    try:
        print(find(parser.parse_args()))
    except HeadersError as error:
        log(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
