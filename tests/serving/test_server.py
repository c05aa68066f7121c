"""A whole server: the protocol's paths, tritonclient, overload, swaps and the end."""

import asyncio
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge.build import CLASSES, TIME, WEIGHTS
from edge.releases import install, weighted

from fedge.edge.disk import FolderDisk
from fedge.edge.runtime import Runtime
from fedge.errors import DataError, SetupError
from fedge.serving.batcher import Bounds
from fedge.serving.limits import Limits
from fedge.serving.model import Whole
from fedge.serving.server import Settings, is_loopback, listen

from .build import (
    CHANNELS,
    FACE,
    MANIFEST,
    Fake,
    Raw,
    Said,
    ask,
    expected,
    get,
    infer_head,
    infer_request,
    post,
    running,
    whole,
    windows,
    write_release,
)

INFER = "/v2/models/test/infer"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running(whole(tmp_path_factory.mktemp("release"))) as taken:
        yield taken


def test_the_protocols_pages(port: int) -> None:
    def page(path: str) -> Any:
        said = ask(port, get(path))
        assert said.status == 200
        assert said.headers["content-type"] == "application/json"
        return said.json

    for path in ("/v2", "/v2/", "/v2?x=1"):
        assert page(path)["extensions"] == ["binary_tensor_data", "classification"]
    assert page("/v2/health/live") == {"live": True}
    assert page("/v2/health/ready") == {"ready": True}
    for path in ("/v2/models/test", "/v2/models/test/versions/1", "/v2/models/%74est"):
        model = page(path)
        assert model["name"] == "test"
        assert model["inputs"][0]["shape"] == [-1, TIME, CHANNELS]
        assert model["parameters"]["classes"] == ["x", "y", "z"]
        assert model["parameters"]["channels"] == ["a", "b"]
    assert page("/v2/models/test/ready") == {"name": "test", "ready": True}
    assert page("/v2/models/test/versions/1/ready")["ready"]
    assert page("/fedge")["model"] == FACE.model
    assert ask(port, get("/fedge/manifest")).body == MANIFEST.to_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v2/models", "/v2/models/", "/v2/models/other", "/v2/models/test/versions/2",
        "/v2/models/test/versions", "/v2/models/test/versions/1/versions/1", "/v2/models/test/x",
        "/v2/health", "/v2/models/other/ready", "/v2/models/ready", "/v2/models/%ff%fe",
        "/v2/models/../../etc/passwd", "/v2/models/" + "x/" * 500, "*",
    ],
)  # fmt: skip
def test_there_is_nothing_elsewhere(port: int, path: str) -> None:
    said = ask(port, get(path))
    assert said.status == 404
    assert said.json["error"]
    assert ask(port, post("/v2/models/other/infer", b"{}")).status == 404


def test_other_methods_are_refused(port: int) -> None:
    assert ask(port, get(INFER)).status == 405
    assert ask(port, post("/v2", b"{}")).status == 405
    assert ask(port, post("/metrics", b"")).headers["allow"] == "GET, POST"


def test_scores_are_those_of_the_model(port: int) -> None:
    x = windows(5)
    data = {"name": "window", "datatype": "FP32", "shape": x.shape, "data": x.tolist()}
    plain = ask(port, post(INFER, json.dumps({"id": "q", "inputs": [data]}).encode())).json
    assert plain["id"] == "q"
    scores = np.array(plain["outputs"][0]["data"], np.float32).reshape(plain["outputs"][0]["shape"])
    assert np.allclose(scores, expected(x), atol=1e-5)
    assert np.array_equal(ask(port, infer_request(x)).scores, scores)
    raw = ask(port, post(INFER, x.tobytes(), {"Inference-Header-Content-Length": 0}))
    assert np.array_equal(raw.scores, scores)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_their_neighbours_answered(port: int, bad: float) -> None:
    x = windows(1)
    spoiled = x.copy()
    spoiled[0, 3, 1] = bad
    with Raw(port) as raw:
        raw.send(infer_request(x) + infer_request(spoiled) + infer_request(x))
        first, second, third = raw.read(), raw.read(), raw.read()
    assert (first.status, second.status, third.status) == (200, 400, 200)
    assert "NaN" in second.json["error"]


@pytest.mark.parametrize("said", ["x", "-1", "1.0", "", "9" * 40, "0x10"])
def test_a_header_length_that_is_none_is_refused(port: int, said: str) -> None:
    assert ask(port, post(INFER, b"{}", {"Inference-Header-Content-Length": said})).status == 400


def test_a_client_may_insist_on_a_model(port: int) -> None:
    x = windows(1)

    def asked(model: str) -> Said:
        head = json.loads(infer_head([*x.shape], x.nbytes))
        head["parameters"]["model_sha256"] = model
        text = json.dumps(head).encode()
        return ask(port, post(INFER, text + x.tobytes(), {"Inference-Header-Content-Length": len(text)}))

    assert asked(FACE.model).status == 200
    assert asked("0" * 64).status == 409


def test_who_insists_on_a_model_gets_nothing_from_the_one_that_took_over() -> None:
    served, x = Fake(), windows(1)
    served.hold.clear()
    head = json.loads(infer_head([*x.shape], x.nbytes))
    head["parameters"]["model_sha256"] = f"{1:064x}"
    text = json.dumps(head).encode()
    settings = Settings(Bounds(inline=False), grace=2)
    with running(served, settings) as port, Raw(port) as raw:
        raw.send(post(INFER, text + x.tobytes(), {"Inference-Header-Content-Length": len(text)}))
        assert ask(port, get("/v2")).status == 200  # so it has been read
        served.version = 2
        served.hold.set()
        said = raw.read()
    assert said.status == 409
    assert "another release" in said.json["error"]


def test_metrics_count_what_was_done(tmp_path: Path) -> None:
    def value(text: str, name: str) -> float:
        (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found)

    with running(whole(tmp_path)) as port, Raw(port) as raw:
        for n in (1, 2, 3):
            raw.ask(infer_request(windows(n)))
        raw.ask(post(INFER, b"{}"))
        text = raw.ask(get("/metrics")).body.decode()
    assert value(text, 'fedge_serve_requests_total{code="200"}') == 3
    assert value(text, 'fedge_serve_requests_total{code="400"}') == 1
    assert value(text, "fedge_serve_windows_total") == 6
    assert value(text, "fedge_serve_batch_windows_sum") == 6
    assert value(text, 'fedge_serve_batch_windows_bucket{le="2"}') == 2
    assert value(text, "fedge_serve_request_seconds_count") == 3
    assert value(text, 'fedge_serve_request_seconds_bucket{le="+Inf"}') == 3
    assert value(text, "fedge_serve_connections") == 1
    assert value(text, "fedge_serve_ready") == 1
    assert f'fedge_serve_model_info{{name="test",version="1",sha256="{FACE.model}"}} 1' in text
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \S+ .+|\w+(\{(\w+="[^"]*",?)+\})? [\d.e+-]+', line), line


# The client that others use.


@pytest.fixture
def triton(port: int) -> Iterator[Any]:
    httpclient = pytest.importorskip("tritonclient.http", reason="tritonclient has no wheel here")
    with httpclient.InferenceServerClient(f"127.0.0.1:{port}", concurrency=4) as client:
        yield client


def _input(x: np.ndarray[Any, Any], *, binary: bool = True) -> Any:
    from tritonclient.http import InferInput
    from tritonclient.utils import np_to_triton_dtype

    given = InferInput("window", x.shape, np_to_triton_dtype(x.dtype))
    given.set_data_from_numpy(x, binary_data=binary)
    return given


def test_tritonclient_finds_server_and_model(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("test")
    assert triton.is_model_ready("test", "1")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["name"] == "fedge"
    assert triton.get_model_metadata("test")["outputs"][0]["shape"] == [-1, CLASSES]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritonclient_gets_the_models_scores(
    triton: Any, compression: str | None, binary_in: bool, binary_out: bool | None
) -> None:
    from tritonclient.http import InferRequestedOutput

    x = windows(3)
    wanted = None if binary_out is None else [InferRequestedOutput("scores", binary_data=binary_out)]
    result = triton.infer(
        "test", [_input(x, binary=binary_in)], outputs=wanted, request_id="7",
        request_compression_algorithm=compression, response_compression_algorithm=compression,
    )  # fmt: skip
    assert np.allclose(result.as_numpy("scores"), expected(x), atol=1e-5)
    assert result.get_response()["id"] == "7"


def test_tritonclient_gets_classes(triton: Any) -> None:
    from tritonclient.http import InferRequestedOutput

    x = windows(2)
    result = triton.infer("test", [_input(x)], outputs=[InferRequestedOutput("scores", class_count=1)])
    best = expected(x).argmax(axis=1)
    texts = [text.decode().split(":") for text in result.as_numpy("scores").ravel()]
    assert [(int(i), name) for _, i, name in texts] == [(b, "xyz"[b]) for b in best]


def test_tritonclient_asks_at_once(triton: Any) -> None:
    lots = [windows(1 + i % 3, seed=i) for i in range(20)]
    waiting = [triton.async_infer("test", [_input(x)]) for x in lots]
    for x, one in zip(lots, waiting, strict=True):
        assert np.allclose(one.get_result().as_numpy("scores"), expected(x), atol=1e-5)


def test_tritonclient_hears_what_is_wrong(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="must be"):
        triton.infer("test", [_input(windows(1)[:, :3])])
    with pytest.raises(InferenceServerException, match="no such model"):
        triton.infer("other", [_input(windows(1))])


# Load.


def test_overload_is_refused_at_once_and_what_was_taken_is_answered() -> None:
    """More than the model can do: a clear 503 in place of a timeout, and no request is lost."""
    served = Fake()
    served.hold.clear()
    settings = Settings(Bounds(queue=4, inline=False), Limits(), grace=2)
    with running(served, settings) as port:
        many = [Raw(port) for _ in range(40)]
        for raw in many:
            raw.send(infer_request(windows(1)))
        with ThreadPoolExecutor(40) as pool:
            answers = [pool.submit(raw.read) for raw in many]
            # At most four in the batch that is being answered and four behind it: the others hear at once.
            while sum(a.done() for a in answers) < 32:
                time.sleep(0.01)
            refused = [a.result() for a in answers if a.done()]
            assert {said.status for said in refused} == {503}
            assert all(said.headers["retry-after"] == "1" for said in refused)
            assert ask(port, get("/v2/health/ready")).status == 200
            served.hold.set()
            statuses = [a.result().status for a in answers]
        for raw in many:
            raw.socket.close()
    assert 5 <= statuses.count(200) <= 8
    assert statuses.count(200) + statuses.count(503) == 40


def test_swaps_under_load_fail_no_request(tmp_path: Path, wide: bool) -> None:
    """Releases go into a home while clients ask: every answer is one release's, whole, and says which."""
    swaps = 100 if wide else 20
    x, disk = windows(2), FolderDisk(tmp_path)
    models = [weighted(np.roll(WEIGHTS, shift, axis=1)) for shift in range(3)]
    scores = [Runtime(content).predict(x).tobytes() for content in models]
    install(disk, 1, models[1])
    stop, answers = threading.Event(), deque[tuple[int, bytes]](maxlen=10_000)

    def client(port: int) -> int:
        with Raw(port) as raw:
            for count in itertools.count():
                if stop.is_set():
                    return count
                said = raw.ask(infer_request(x))
                assert said.status == 200, said.body
                size = int(said.headers["inference-header-content-length"])
                version = int(json.loads(said.body[:size])["model_version"])
                assert said.body[size:] == scores[version % 3]
                answers.append((version, said.body[size:]))
        raise AssertionError

    settings = Settings(grace=2, follow=0.02)
    with running(Whole.open(tmp_path), settings) as port, ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, port) for _ in range(4)]
        for version in range(2, swaps + 2):
            install(disk, version, models[version % 3])
            while not any(one.done() for one in clients) and (not answers or answers[-1][0] != version):
                time.sleep(0.001)
        stop.set()
        assert all(one.result() > swaps for one in clients)
        assert metric(port, "fedge_serve_swaps_total") == swaps


def metric(port: int, name: str) -> float:
    (found,) = re.findall(rf"^{name} (\S+)$", ask(port, get("/metrics")).body.decode(), re.MULTILINE)
    return float(found)


def test_a_model_that_fails_says_so_and_the_server_goes_on() -> None:
    def fails(x: np.ndarray[Any, Any]) -> Exception | None:
        return DataError("bad") if x[0, 0, 0] == 1 else ValueError("bug") if x[0, 0, 0] == 2 else None

    with running(Fake(fails=fails)) as port, Raw(port) as raw:
        for first, status in ((1, 400), (2, 500), (3, 200)):
            x = windows(1)
            x[0, 0, 0] = first
            assert raw.ask(infer_request(x)).status == status


# The end.


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_what_is_in_progress_when_the_server_ends_is_answered(closing: ExitStack) -> None:
    served = Fake()
    served.hold.clear()
    with running(served, Settings(Bounds(inline=False), grace=20)) as port:
        busy, idle = Raw(port), Raw(port)
        closing.callback(busy.socket.close)
        closing.callback(idle.socket.close)
        assert idle.ask(get("/v2/health/ready")).status == 200
        busy.send(infer_request(windows(1)))
        assert ask(port, get("/v2")).status == 200  # so it has been read
        ending = threading.Thread(target=_end_soon, args=(port, idle, served))
        ending.start()
    ending.join()
    said = busy.read()
    assert said.status == 200
    assert said.headers["connection"] == "close"


def _end_soon(port: int, idle: Raw, served: Fake) -> None:
    """While the server ends: an open connection hears that it is not ready, and nobody new is let in."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            break
    said = idle.ask(get("/v2/health/ready"))
    assert said.status == 503
    assert said.headers["connection"] == "close"
    served.hold.set()


def test_the_end_waits_no_longer_than_the_grace(closing: ExitStack) -> None:
    served = Fake()
    served.hold.clear()
    with running(served, Settings(Bounds(inline=False), grace=0.2)) as port:
        busy = closing.enter_context(Raw(port))
        busy.send(infer_request(windows(1)))
        assert ask(port, get("/v2")).status == 200
        threading.Timer(1.0, served.hold.set).start()
    with pytest.raises((EOFError, ConnectionError)):
        busy.read()


# The command.


def start(release: Path, *more: str) -> tuple["subprocess.Popen[str]", int]:
    command = [sys.executable, "-m", "fedge", "serve", str(release), "--port", "0", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.search(r"at https?://[^ ]*:(\d+)/v2/models/(\S+)$", line)
    if match is None:
        process.kill()
        raise AssertionError(line + process.communicate()[1])
    return process, int(match[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(tmp_path: Path, number: int) -> None:
    process, port = start(write_release(tmp_path), "--name", "my model")
    try:
        assert ask(port, infer_request(windows(1), "my%20model")).status == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert err == ""
    assert out == ""


def test_the_command_loads_neither_torch_nor_flwr(tmp_path: Path) -> None:
    code = (
        "import sys; from fedge.cli import main\n"
        f"code = main(['serve', {str(write_release(tmp_path))!r}, '--port', '0'])\n"
        "print(sorted({'torch', 'flwr', 'onnx', 'tuf', 'uvicorn'} & set(sys.modules)), code)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(re.findall(r":(\d+)/", process.stdout.readline())[0])
    assert ask(port, infer_request(windows(1))).status == 200
    process.terminate()
    assert process.communicate(timeout=30)[0] == "[] 0\n"


def test_it_says_when_anybody_may_connect(tmp_path: Path) -> None:
    process, _ = start(write_release(tmp_path), "--host", "0.0.0.0")  # noqa: S104 (that is the point)
    process.terminate()
    assert "without TLS" in process.communicate(timeout=20)[1]


def test_what_is_wrong_with_an_address_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SetupError, match="cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(SetupError, match="cannot listen"):
        listen("no-such-host.invalid", 0)
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "::", "10.0.0.1", "example")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_a_loop_that_runs_elsewhere_is_left_alone() -> None:
    """The server of these tests runs in a thread: nothing of it may need the main one."""
    with running(Fake()) as port:
        assert ask(port, get("/v2/health/live")).status == 200
    asyncio.run(asyncio.sleep(0))
