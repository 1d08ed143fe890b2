"""Fetching weights: every way it can go wrong on real sockets, real wheels and a real (or really full) disk, and how it goes on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from agent import weight_cache, weight_hubs, weight_sources, weights
from agent.profiles import Profile
from agent.weight_list import Artifact, Conversion, Hub, Source, WeightList, WheelPart, load_weight_list
from duplex.errors import ConfigError, WeightsError

DATA = bytes(range(256)) * 9000  # 2.3 MB: several blocks
SHA = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves DATA; can cut a body short, send other bytes, or forget how to resume."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = DATA
        self.cuts: list[int] = []  # for each coming request: send at most so many bytes
        self.resumes = True
        self.ranges: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/w.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if not self.path.endswith("w.bin"):
            self.send_error(404)
            return
        wanted = self.headers.get("Range", "") if self.server.resumes else ""
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.server.body[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


class Heard(weights.Quiet):
    """Keeps what a fetch says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[int] = []

    def advance(self, done: int) -> None:
        self.done.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DUOLOGUE_WEIGHTS_DIR", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


def listed(*sources: Source, sha256: str = SHA, conversion: str = "") -> WeightList:
    artifact = Artifact("w.bin", len(DATA), sha256, "MIT", "nobody", sources)
    made = {"fast": Conversion("w", conversion, 1, 100)} if conversion else {}
    return WeightList({"w": artifact}, made)


def fetch(weight_list: WeightList, *names: str, **options: bool) -> tuple[dict[str, Path], Heard]:
    heard = Heard()
    profile = Profile("mine", "", "bridge", "bridge", weights=names or ("w",), file="mine.yaml")
    return weights.fetch(profile, heard, weights=weight_list, **options), heard


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, content in members.items():
            wheel.writestr(member, content)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        wheel.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index: pip looks nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def wheel_source(cut: int = 1_000_000) -> Source:
    first = WheelPart("du-test-one==1.0", "du_test_one/a.bin", cut, 1000)
    second = WheelPart("du-test-two==1.0", "du_test_two/b.bin", len(DATA) - cut, 1000)
    return Source(wheels=(first, second))


def dead_url() -> str:
    """An address where nobody listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        return f"http://127.0.0.1:{closed.server_address[1]}/w.bin"


# --- http


def test_http_brings_the_bytes_and_the_second_run_needs_no_network(server: Server) -> None:
    weight_list = listed(Source(url=server.url))
    paths, heard = fetch(weight_list)
    assert paths["w"].read_bytes() == DATA
    assert heard.done[-1] == len(DATA)
    again, heard = fetch(listed(Source(url=dead_url())))
    assert again == paths
    assert (heard.notes, heard.done, len(server.ranges)) == ([], [], 1)


def test_a_truncated_body_is_resumed(server: Server) -> None:
    server.cuts = [1_500_000]
    paths, _ = fetch(listed(Source(url=server.url)))
    assert paths["w"].read_bytes() == DATA
    assert server.ranges == ["", "bytes=1500000-"]


def test_an_interrupted_fetch_goes_on_in_the_next_run(server: Server, cache: Path) -> None:
    server.cuts = [700_000, 0]
    with pytest.raises(WeightsError, match="goes on where it stopped"):
        fetch(listed(Source(url=server.url)))
    assert (cache / "weights/w/w.bin.part").stat().st_size == 700_000
    paths, _ = fetch(listed(Source(url=server.url)))
    assert paths["w"].read_bytes() == DATA
    assert server.ranges[-1] == "bytes=700000-"


def test_a_server_that_cannot_resume_starts_again(server: Server) -> None:
    server.resumes, server.cuts = False, [900_000]
    assert fetch(listed(Source(url=server.url)))[0]["w"].read_bytes() == DATA


def test_a_damaged_part_is_thrown_away_and_fetched_once_more(server: Server, cache: Path) -> None:
    part = cache / "weights/w/w.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"other bytes" * 100)
    assert fetch(listed(Source(url=server.url)))[0]["w"].read_bytes() == DATA
    assert not part.exists()


def test_a_complete_part_only_needs_its_name(cache: Path) -> None:
    part = cache / "weights/w/w.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA)
    assert fetch(listed(Source(url=dead_url())))[0]["w"].read_bytes() == DATA


def test_a_wrong_hash_is_one_sentence_and_leaves_nothing(server: Server, cache: Path) -> None:
    server.body = DATA[:-1] + b"!"
    with pytest.raises(WeightsError, match="wrong sha256") as caught:
        fetch(listed(Source(url=server.url)))
    assert "DUOLOGUE_WEIGHTS_DIR" in str(caught.value)
    assert [path for path in (cache / "weights").rglob("*") if path.is_file()] == []


def test_a_source_with_wrong_bytes_moves_on_to_the_next(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"not it")
    paths, heard = fetch(listed(Source(folder=str(tmp_path)), Source(url=server.url)))
    assert paths["w"].read_bytes() == DATA
    assert any("wrong sha256" in note for note in heard.notes)


def test_an_endless_body_is_not_stored(server: Server) -> None:
    server.body = DATA + bytes(1_000_000)
    assert fetch(listed(Source(url=server.url)))[0]["w"].stat().st_size == len(DATA)


def test_no_network_is_one_sentence(cache: Path) -> None:
    with pytest.raises(WeightsError, match="could not be reached") as caught:
        fetch(listed(Source(url=dead_url())))
    assert "Check the network and run the same command again" in str(caught.value)
    assert not (cache / "staging").exists()


def test_a_missing_page_is_named(server: Server) -> None:
    with pytest.raises(WeightsError, match="answered 404"):
        fetch(listed(Source(url=server.url + ".old")))


def test_hub_addresses(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    base = server.url.removesuffix("/w.bin")
    monkeypatch.setenv("HF_ENDPOINT", base)
    hub = Hub("owner/name", "deep/w.bin", "v1.0.0")
    assert weight_hubs.address(Source(hugging_face=hub)) == f"{base}/owner/name/resolve/v1.0.0/deep/w.bin"
    assert fetch(listed(Source(hugging_face=hub)))[0]["w"].read_bytes() == DATA


# --- wheels


def test_wheels_are_joined_and_removed(wheels: Path, cache: Path) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/a.bin": DATA[:1_000_000], "du_test_one/__init__.py": b"raise SystemExit"})
    make_wheel(wheels, "du_test_two", {"du_test_two/b.bin": DATA[1_000_000:]})
    paths, _ = fetch(listed(wheel_source()))
    assert paths["w"].read_bytes() == DATA
    assert list(cache.rglob("*.whl")) == []
    assert not (cache / "staging").exists()


def test_wheels_go_on_after_the_last_complete_part(wheels: Path, cache: Path) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/a.bin": DATA[:1_000_000]})
    with pytest.raises(WeightsError, match="could not download du-test-two"):
        fetch(listed(wheel_source()))
    for wheel in wheels.glob("du_test_one*"):
        wheel.unlink()
    make_wheel(wheels, "du_test_two", {"du_test_two/b.bin": DATA[1_000_000:]})
    assert fetch(listed(wheel_source()))[0]["w"].read_bytes() == DATA


def test_wheels_go_on_from_a_broken_http_download(wheels: Path, server: Server) -> None:
    server.cuts = [1_200_000, 0]
    make_wheel(wheels, "du_test_two", {"du_test_two/b.bin": DATA[1_000_000:]})  # the first part is not needed any more
    assert fetch(listed(Source(url=server.url), wheel_source()))[0]["w"].read_bytes() == DATA


def test_a_wheel_without_the_file_is_named(wheels: Path) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/other.bin": b"x"})
    with pytest.raises(WeightsError, match=r"lacks du_test_one/a\.bin"):
        fetch(listed(wheel_source()))


def test_a_short_member_is_named(wheels: Path) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/a.bin": b"x"})
    with pytest.raises(WeightsError, match="too short"):
        fetch(listed(wheel_source()))


def test_one_wheel_serves_two_artifacts_and_comes_once(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(wheels, "du_test_one", {"du_test_one/a.bin": DATA, "du_test_one/b.bin": DATA[::-1]})
    pieces = {name: WheelPart("du-test-one==1.0", f"du_test_one/{name}.bin", len(DATA), 1000) for name in "ab"}
    contents = {"a": DATA, "b": DATA[::-1]}
    artifacts = {
        name: Artifact(f"{name}.bin", len(DATA), hashlib.sha256(contents[name]).hexdigest(), "MIT", "x", (Source(wheels=(piece,)),))
        for name, piece in pieces.items()
    }
    calls: list[list[str]] = []
    popen = weight_sources.subprocess.Popen

    def counted(command: list[str], **options: object) -> object:
        calls.append(command)
        return popen(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(weight_sources.subprocess, "Popen", counted)
    paths, _ = fetch(WeightList(artifacts), "a", "b")
    assert paths["b"].read_bytes() == DATA[::-1]
    assert len(calls) == 1


# --- a folder of the user


def test_a_local_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(DATA)
    monkeypatch.setenv("DUOLOGUE_WEIGHTS_DIR", str(tmp_path))
    paths, heard = fetch(listed(Source(url=dead_url())))
    assert paths["w"].read_bytes() == DATA
    assert str(tmp_path) in heard.notes[0]


# --- the disk


def test_a_disk_that_fills_up_is_one_sentence_and_the_next_run_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = weight_cache.write_block, [0]

    def full(file: BinaryIO, block: bytes) -> None:
        if written[0] >= 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        written[0] += 1
        real(file, block)

    monkeypatch.setattr(weight_cache, "write_block", full)
    with pytest.raises(WeightsError, match="is full") as caught:
        fetch(listed(Source(url=server.url)))
    assert caught.value.exit_code == 4
    monkeypatch.setattr(weight_cache, "write_block", real)
    assert fetch(listed(Source(url=server.url)))[0]["w"].read_bytes() == DATA
    assert server.ranges[-1] == f"bytes={weight_cache.BLOCK_BYTES}-"


def test_too_little_space_is_said_before_anything_is_fetched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(WeightsError, match="GB are free"):
        fetch(listed(Source(url=server.url)))
    assert server.ranges == []


def test_a_cache_that_cannot_be_made_is_one_sentence(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DUOLOGUE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(WeightsError, match="cannot be written"):
        fetch(listed(Source(url=server.url)))


# --- what is there


def test_a_file_changed_after_its_check_is_noticed(server: Server) -> None:
    weight_list = listed(Source(url=server.url))
    path = fetch(weight_list)[0]["w"]
    path.write_bytes(DATA[:1000])
    profile = Profile("mine", "", "bridge", "bridge", weights=("w",))
    with pytest.raises(WeightsError, match="run: duologue fetch mine"):
        weights.locate(profile, weight_list)
    assert fetch(weight_list)[0]["w"].read_bytes() == DATA


def test_verify_finds_what_a_glance_cannot(server: Server) -> None:
    weight_list = listed(Source(url=server.url))
    path = fetch(weight_list)[0]["w"]
    stamp = path.stat()
    path.write_bytes(DATA[:-1] + b"!")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    fetch(weight_list)
    assert path.read_bytes() != DATA
    _, heard = fetch(weight_list, verify=True)
    assert path.read_bytes() == DATA
    assert any("damaged" in note for note in heard.notes)


def test_missing_weights_say_what_to_run() -> None:
    with pytest.raises(WeightsError, match=r"are not on this machine yet .*; run: duologue fetch edge"):
        weights.locate("edge")


def test_two_fetches_at_once_download_once(server: Server) -> None:
    weight_list, results = listed(Source(url=server.url)), []
    threads = [threading.Thread(target=lambda: results.append(fetch(weight_list)[0]["w"].read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [DATA] * 3
    assert len(server.ranges) == 1


# --- conversions


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A converter in a module of its own: writes the size of its source; fails while `broken` exists."""
    (tmp_path / "du_test_converter.py").write_text(
        "import pathlib\n"
        "def convert(source, out, progress=None):\n"
        "    out.mkdir()\n"
        "    progress(1, 2)\n"
        "    (out / 'size').write_text(str(source.stat().st_size))\n"
        f"    if pathlib.Path({str(tmp_path / 'broken')!r}).exists(): raise RuntimeError('half done')\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as calls: calls.write('x')\n"
    )
    monkeypatch.delitem(sys.modules, "du_test_converter", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "du_test_converter:convert"


def test_a_conversion_is_made_once_and_again_for_a_new_version(server: Server, converter: str, tmp_path: Path) -> None:
    weight_list = listed(Source(url=server.url), conversion=converter)
    paths, heard = fetch(weight_list, "fast")
    assert (paths["fast"] / "size").read_text() == str(len(DATA))
    assert set(paths) == {"fast", "w"}
    assert 50 in heard.done
    fetch(weight_list, "fast")
    assert (tmp_path / "calls").read_text() == "x"
    newer = WeightList(weight_list.artifacts, {"fast": Conversion("w", converter, 2, 100)})
    with pytest.raises(WeightsError, match="duologue fetch"):
        weights.locate(Profile("mine", "", "bridge", "bridge", weights=("fast",)), newer)
    fetch(newer, "fast")
    assert (tmp_path / "calls").read_text() == "xx"


def test_a_conversion_that_fails_leaves_nothing(server: Server, converter: str, tmp_path: Path, cache: Path) -> None:
    weight_list = listed(Source(url=server.url), conversion=converter)
    (tmp_path / "broken").touch()
    with pytest.raises(RuntimeError, match="half done"):
        fetch(weight_list, "fast")
    assert list((cache / "converted").iterdir()) == []
    (tmp_path / "broken").unlink()
    assert fetch(weight_list, "fast")[0]["fast"].is_dir()


def test_a_truncated_conversion_is_made_again(server: Server, converter: str) -> None:
    weight_list = listed(Source(url=server.url), conversion=converter)
    folder = fetch(weight_list, "fast")[0]["fast"]
    (folder / "size").write_text("")
    assert (fetch(weight_list, "fast")[0]["fast"] / "size").read_text() == str(len(DATA))
    (folder / "size").write_text("0" * len(str(len(DATA))))  # right size, wrong bytes: only --verify looks that closely
    fetch(weight_list, "fast", verify=True)
    assert (folder / "size").read_text() == str(len(DATA))


def test_slim_keeps_the_conversion_only(server: Server, converter: str) -> None:
    weight_list = listed(Source(url=server.url), conversion=converter)
    paths, _ = fetch(weight_list, "fast", slim=True)
    assert set(paths) == {"fast"}
    assert fetch(listed(Source(url=dead_url()), conversion=converter), "fast")[0] == paths


# --- the list itself


def test_the_shipped_list_is_whole() -> None:
    weight_list = load_weight_list()
    assert {"qwen-gguf", "whisper-tiny-en", "vits-joe", "vits-joe-config", "silero-vad"} <= set(weight_list.artifacts)
    assert all(artifact.licence and artifact.publisher and artifact.sources for artifact in weight_list.artifacts.values())


def test_wrong_lists_are_refused(tmp_path: Path) -> None:
    good = {"file": "w.bin", "bytes": 3, "sha256": SHA, "licence": "MIT", "publisher": "x", "sources": [{"url": "http://x/w"}]}
    for change, message in (
        ({"sha256": "12"}, "64 lower-case hexadecimal digits"),
        ({"file": "../w.bin"}, "plain file name"),
        ({"sources": [{"url": "x", "folder": "y"}]}, "exactly one of"),
        ({"sources": [{"wheels": [{"package": "a", "member": "m", "bytes": 3, "wheel_bytes": 3}]}]}, "pinned"),
        ({"sources": [{"wheels": [{"package": "a==1", "member": "m", "bytes": 2, "wheel_bytes": 3}]}]}, "do not add up"),
    ):
        path = tmp_path / "weights.yaml"
        path.write_text(json.dumps({"artifacts": {"w": {**good, **change}}}))
        with pytest.raises(ConfigError, match=message):
            load_weight_list(path)
    with pytest.raises(ConfigError, match="did you mean qwen-int8"):
        load_weight_list().split(["qwen-int9"])
