"""Where the build finds onnxruntime's headers, and what it says when it does not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "find_onnxruntime_headers.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("find_onnxruntime_headers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FINDER = _load()


def _headers(directory: Path, version: int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "onnxruntime_c_api.h").write_text(f"#pragma once\n#define ORT_API_VERSION {version}\n")
    return directory


def _run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, on a machine without apt-get, with a cache of its own."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "--work-dir", str(tmp_path / "work"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_user_s_directory_comes_first(tmp_path: Path) -> None:
    headers = _headers(tmp_path / "ort" / "include", 20)
    system = _headers(tmp_path / "system", 20)
    done = _run(tmp_path, "--user-dir", str(tmp_path / "ort"), "--system-dir", str(system))
    assert done.stdout.strip() == str(headers)


def test_a_user_s_directory_without_headers_is_an_error_not_a_hint(tmp_path: Path) -> None:
    system = _headers(tmp_path / "system", 20)
    done = _run(tmp_path, "--user-dir", str(tmp_path), "--system-dir", str(system))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ONNXRUNTIME_INCLUDE_DIR" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("version", "taken"), [(17, False), (18, True), (31, True)])
def test_system_headers_must_be_new_enough(tmp_path: Path, version: int, taken: bool) -> None:
    system = _headers(tmp_path / "system", version)
    done = _run(tmp_path, "--system-dir", str(system), "--release-url", "file:///nonexistent")
    assert (done.stdout.strip() == str(system)) == taken


def test_release_archive_is_unpacked_and_cached(tmp_path: Path) -> None:
    tree = tmp_path / "onnxruntime-linux-1.22.0"
    _headers(tree / "include", 22)
    archive = tmp_path / "release-1.22.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, arcname=tree.name)
    url = f"file://{tmp_path}/release-{{version}}.tgz"
    done = _run(tmp_path, "--release-url", url, "--release-version", "1.22.0")
    found = Path(done.stdout.strip())
    assert found == tmp_path / "cache" / "perfonnx" / "onnxruntime-headers-1.22.0"
    assert FINDER.api_version(found) == 22
    archive.unlink()
    assert _run(tmp_path, "--release-url", url).stdout.strip() == str(found)


def test_nothing_found_is_one_message_that_says_what_to_do(tmp_path: Path) -> None:
    done = _run(tmp_path, "--release-url", "file:///nonexistent.tgz")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "ONNXRUNTIME_INCLUDE_DIR" in last
    assert "libonnxruntime-dev" in last


def _machine(root: Path, files: dict[str, str]) -> list[tuple[str, str]]:
    (root / "apt" / "sources.list.d").mkdir(parents=True)
    (root / "os-release").write_text('PRETTY_NAME="x"\nVERSION_CODENAME=bookworm\n')
    for name, text in files.items():
        (root / "apt" / name).write_text(text)
    return [(mirror.uri, mirror.signed_by) for mirror in FINDER.mirrors(root)]


def test_one_line_sources(tmp_path: Path) -> None:
    text = (
        "# deb https://commented.test/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/keys/a.gpg] https://one.test/debian bookworm main contrib # note\n"
        "deb-src https://source.test/debian bookworm main\n"
        "deb https://security.test/debian bookworm-security main\n"
        "deb https://vendor.test/apt vendor main\n"
        "deb https://one.test/other bookworm vendor\n"
    )
    assert _machine(tmp_path, {"sources.list": text}) == [("https://one.test/debian", "/keys/a.gpg")]


def test_deb822_sources(tmp_path: Path) -> None:
    text = (
        "Types: deb\n# a comment inside\nURIs: https://two.test/debian https://three.test/debian\n"
        "Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /keys/b.gpg\n\n"
        "Types: deb\nURIs: https://off.test/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n\n"
        "Types: deb\nURIs: https://inline.test/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n"
        " -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n Comment: key\n -----END PGP PUBLIC KEY BLOCK-----\n\n"
        "Types: deb-src\nURIs: https://source.test/debian\nSuites: bookworm\nComponents: main\n"
    )
    assert _machine(tmp_path, {"sources.list.d/x.sources": text, "sources.list.d/x.save": text}) == [
        ("https://two.test/debian", "/keys/b.gpg"),
        ("https://three.test/debian", "/keys/b.gpg"),
        ("https://inline.test/debian", ""),
    ]
