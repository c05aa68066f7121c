"""Parts of one model on several servers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compress.test_export import exported
from edge.build import manifest
from numpy.typing import NDArray

from fedge.edge.disk import FolderDisk
from fedge.edge.home import Home
from fedge.edge.runtime import Runtime
from fedge.edge.watch import Promise
from fedge.errors import ConfigError, DataError, ReleaseError, SetupError
from fedge.release.manifest import Input, Manifest, ModelFile, SelfTest
from fedge.serving.batcher import Bounds
from fedge.serving.peer import Address, Peer, PeerError
from fedge.serving.server import Settings
from fedge.serving.stages import Ahead, Place, Stage, open_stage

from .build import Fake, Raw, ask, get, infer_request, running
from .hostile_peer import hangs, misbehaving
from .test_server import start

WINDOW = (30, 3)
SETTINGS = Settings(Bounds(budget=5.0, threads=4, inline=False), grace=2)


def release(content: bytes) -> Manifest:
    x = np.random.default_rng(1).normal(size=(2, *WINDOW)).astype(np.float32)
    scores = Runtime(content).predict(x)
    names = tuple("abcdefg")
    return manifest(
        content, input=Input(WINDOW, ("x", "y", "z")), classes=names, self_test=SelfTest.of(x, scores, 1e-3)
    )


MODEL = exported().int8
OTHER = exported(family="separable").int8
X = np.random.default_rng(2).normal(size=(40, *WINDOW)).astype(np.float32)


def stage(place: str, port: int | None, model: bytes = MODEL, deadline: float = 10.0) -> Stage:
    ahead = None if port is None else Ahead(Address("127.0.0.1", port), None, deadline)
    return Stage(release(model), model, Place.parse(place), None, ahead)


@contextmanager
def chain(count: int) -> Iterator[tuple[int, list[Stage]]]:
    """All parts, each on a server of its own; gives the first one's port."""
    port, stages = None, list[Stage]()
    with ExitStack() as stack:
        for index in range(count, 0, -1):
            stages.append(stage(f"{index}/{count}", port))
            port = stack.enter_context(running(stages[-1], SETTINGS))
        assert port is not None
        yield port, stages


def scores(port: int, x: NDArray[Any]) -> NDArray[np.float32]:
    return ask(port, infer_request(x)).scores


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_chain_answers_bit_for_bit_as_one_process(count: int) -> None:
    whole = Runtime(MODEL)
    with chain(count) as (port, _):
        for x in (X[:1], X[3:10], X):
            assert scores(port, x).tobytes() == whole.predict(x).tobytes()


def test_many_clients_at_once_get_their_own_scores() -> None:
    whole = Runtime(MODEL).predict(X)
    with chain(2) as (port, _), ExitStack() as stack:
        clients = [stack.enter_context(Raw(port)) for _ in range(8)]
        for turn in range(5):
            for i, client in enumerate(clients):
                client.send(infer_request(X[i + turn : i + turn + 1]))
            for i, client in enumerate(clients):
                assert client.read().scores.tobytes() == whole[i + turn].tobytes()


def test_nan_is_the_clients_fault_in_the_first_part() -> None:
    bad = X[:2].copy()
    bad[1, 4, 0] = np.nan
    with chain(2) as (port, _):
        assert ask(port, infer_request(bad)).status == 400
    with pytest.raises(DataError):
        stage("1/2", 1).predict(bad)


def test_a_part_is_ready_when_those_after_it_are() -> None:
    first = stage("1/2", 1)
    assert not first.ready()
    assert "waits" in str(first.follow())
    assert first.follow() is None  # it has been said
    with running(stage("2/2", None)) as port:
        first = stage("1/2", port)
        assert "answers" in str(first.follow())
        assert first.ready()
        first.close()


def test_parts_of_different_models_say_so_and_answer_nothing() -> None:
    with running(stage("2/2", None, OTHER)) as port:
        first = stage("1/2", port)
        assert "serves another model" in str(first.follow())
        assert not first.ready()
        with running(first, SETTINGS) as front:
            assert ask(front, get("/v2/health/ready")).status == 503
            said = ask(front, infer_request(X))
            assert said.status == 502
            assert "another release" in said.json["error"]


def test_a_part_in_the_wrong_place_is_noticed() -> None:
    with running(stage("3/3", None)) as port:
        first = stage("1/3", port)
        assert "part 3/3" in str(first.follow())
        with pytest.raises(PeerError, match=r"must be|input is"):
            first.predict(X)
        first.close()
    with running(Fake()) as port:
        first = stage("1/2", port)
        assert first.follow()
        assert not first.ready()
        first.close()


def test_a_next_part_that_is_gone_or_hangs_is_said_within_the_deadline() -> None:
    with running(stage("2/2", None)) as gone:
        pass
    with misbehaving(hangs) as hung:
        for port in (gone, hung):
            with running(stage("1/2", port, deadline=0.5), SETTINGS) as front:
                said = ask(front, infer_request(X))
                assert said.status == 502
                assert str(port) in said.json["error"]


def test_bytes_that_are_not_what_crosses_the_cut_are_refused() -> None:
    with running(stage("2/2", None)) as port, Peer(Address("127.0.0.1", port), None, 5) as peer:
        for x in (np.zeros((2, 7), np.uint8), np.zeros((2, 7, 3), np.float32)):
            with pytest.raises(PeerError, match=r"must be|input is"):
                peer.infer("test", release(MODEL).model.sha256, "window", "UINT8", x, 7)


def test_the_ends_of_a_chain_must_be_ends() -> None:
    with pytest.raises(ConfigError, match="no --next"):
        stage("2/2", 1)
    with pytest.raises(ConfigError, match="give --next"):
        stage("1/2", None)
    for text in ("", "1", "0/2", "3/2", "a/b", "1/2/3", "1/99", "-1/2"):
        with pytest.raises(ConfigError, match="--stage"):
            Place.parse(text)


def write(folder: Path, content: bytes = MODEL) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "manifest.json").write_bytes(release(content).to_bytes())
    return folder


def test_a_damaged_release_is_not_cut(tmp_path: Path) -> None:
    folder = write(tmp_path / "v1")
    assert open_stage(folder, Place(1, 1), None, None).face().model == ModelFile.of(MODEL).sha256
    (folder / "model.onnx").write_bytes(MODEL[:-1] + bytes([MODEL[-1] ^ 1]))
    with pytest.raises(ReleaseError, match="damaged"):
        open_stage(folder, Place(1, 1), None, None)
    with pytest.raises(SetupError):
        open_stage(tmp_path / "nowhere.onnx", Place(1, 1), None, None)


def test_a_part_of_what_a_device_has_installed(tmp_path: Path) -> None:
    said = release(MODEL)
    home = Home(FolderDisk(tmp_path))
    with pytest.raises(SetupError, match="no release yet"):
        open_stage(tmp_path, Place(1, 1), None, None)
    home.install(home.slots(), said.to_bytes(), MODEL, Promise())
    one = open_stage(tmp_path, Place(1, 1), "mine", None)
    assert one.face().name == "mine"
    assert one.predict(X)[1].tobytes() == Runtime(MODEL).predict(X).tobytes()


def test_the_command_chains_parts(tmp_path: Path) -> None:
    folder = write(tmp_path / "v1")
    last, port = start(folder, "--stage", "2/2")
    first, front = start(folder, "--stage", "1/2", "--next", f"127.0.0.1:{port}", "--budget-ms", "2000")
    try:
        assert scores(front, X).tobytes() == Runtime(MODEL).predict(X).tobytes()
        assert ask(front, get("/v2/models/test")).json["parameters"]["stage"] == "1/2"
    finally:
        for process in (first, last):
            process.terminate()
            process.communicate(timeout=20)
    assert (first.returncode, last.returncode) == (0, 0)


def test_the_manifest_is_the_whole_models() -> None:
    one = stage("2/2", None)
    assert one.manifest() == release(MODEL).to_bytes()
    assert replace(one.face(), name="x").details["stage"] == "2/2"
