"""Which request gets which answer: the Open Inference Protocol's paths, and ``/metrics``."""

from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from fedge import __version__
from fedge.errors import DataError, FedgeError
from fedge.serving._json import RequestError, to_json
from fedge.serving.about import About
from fedge.serving.batcher import Batcher
from fedge.serving.http_words import BINARY, Answer, Request, inflated, refusal
from fedge.serving.limits import Limits
from fedge.serving.metrics import CONTENT_TYPE, Counts, metrics_text
from fedge.serving.model import Answered, Served
from fedge.serving.oip import Face, Inference, other_model, parse_inference
from fedge.serving.oip_answer import model_metadata, response, server_metadata
from fedge.serving.peer import PeerError, PeerRefusalError

Reply = Callable[[Answer], None]


class FrontDesk:
    """Answers the requests to one server.

    Attributes:
        counts: what was answered.
        ready: whether the server says that it takes requests.
        connections: says how many are open.
    """

    def __init__(
        self,
        served: Served,
        batcher: Batcher,
        limits: Limits,
        counts: Counts,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` is that of ``Request.arrived``."""
        self._served, self._batcher, self._limits, self._clock = served, batcher, limits, clock
        self.counts, self.ready = counts, True
        self.connections: Callable[[], int] = lambda: 0
        self._infer = b"/v2/models/" + served.face().name.encode() + b"/infer"

    def handle(self, request: Request, reply: Reply) -> None:
        """See :class:`fedge.serving.http_words.Desk`."""
        try:
            if request.method == b"POST" and request.target == self._infer:
                self._start(request, reply)
            else:
                self._route(request, reply)
        except Exception as error:  # whatever it is, this client hears of it, and the others go on
            reply(refusal(_blamed(error)))

    def _route(self, request: Request, reply: Reply) -> None:
        path = [part.decode("utf-8", "replace") for part in _parts(request.target)]
        if path[:2] == ["v2", "models"] and path[-1] == "infer":
            _check_method(request, b"POST")
            self._face(path[2:-1])
            self._start(request, reply)
            return
        _check_method(request, b"GET", b"HEAD")
        reply(self._page(path))

    def _page(self, path: list[str]) -> Answer:
        match path:
            case ["metrics"]:
                return self._metrics()
            case ["fedge"]:
                return Answer(200, self._about().to_bytes())
            case ["fedge", "manifest"]:
                return Answer(200, self._served.manifest())
            case ["v2"]:
                return Answer(200, server_metadata("fedge", __version__))
            case ["v2", "health", "live"]:
                return Answer(200, to_json({"live": True}))
            case ["v2", "health", "ready"]:
                return self._readiness({"ready": self._is_ready()})
            case ["v2", "models", *model, "ready"]:
                return self._readiness({"name": self._face(model).name, "ready": self._is_ready()})
            case ["v2", "models", *model] if model:
                face = self._face(model)
                return Answer(200, model_metadata(face, face.most(self._limits)))
        raise RequestError(404, "no such page: see /v2 and /metrics")

    def _is_ready(self) -> bool:
        return self.ready and self._served.ready()

    def _readiness(self, said: dict[str, object]) -> Answer:
        return Answer(200 if said["ready"] else 503, to_json(said))

    def _about(self) -> About:
        face, stage = self._served.face(), self._served.face().details.get("stage", "")
        most, ready = face.most(self._limits), self._is_ready()
        return About(
            face.name, face.version, face.model, str(stage), ready, face.input, face.output.size, most
        )

    def _metrics(self) -> Answer:
        now = (self._is_ready(), self._batcher.waiting, self.connections())
        return Answer(200, metrics_text(self.counts, self._served.face(), *now), CONTENT_TYPE)

    def _face(self, path: list[str]) -> Face:
        """The model that ``NAME`` or ``NAME/versions/VERSION`` asks for."""
        face = self._served.face()
        if path in ([face.name], [face.name, "versions", str(face.version)]):
            return face
        here = f"version {face.version} of the model {face.name!r}"
        raise RequestError(404, f"there is no such model or page of one; {here} is here")

    def _start(self, request: Request, reply: Reply) -> None:
        """Read a request to infer and hand it to the model."""
        try:
            inference = self._read(request)

            def done(result: Answered | FedgeError) -> None:
                reply(self._answer(request, inference, result))

            self._batcher.submit(inference.x, done)
        except RequestError as error:
            self.counts.requests[error.status] += 1
            raise

    def _read(self, request: Request) -> Inference:
        headers, face = request.headers, self._served.face()
        body = inflated(request.body, headers.get(b"content-encoding"), self._limits.body_bytes)
        said = headers.get(b"inference-header-content-length")
        if said is not None and not (said.isdigit() and len(said) < 12):
            raise RequestError(400, "Inference-Header-Content-Length is no number of bytes")
        return parse_inference(body, None if said is None else int(said), face, self._limits)

    def _answer(self, request: Request, inference: Inference, result: Answered | FedgeError) -> Answer:
        if isinstance(result, FedgeError):
            error = _blamed(result)
            self.counts.requests[error.status] += 1
            return refusal(error)
        face, scores = result
        if inference.model not in (None, face.model):  # another took over meanwhile
            return self._answer(request, inference, other_model(face, inference.model))
        body, size = response(inference, face, scores)
        self.counts.requests[200] += 1
        self.counts.answered(len(scores), self._clock() - request.arrived)
        return Answer(200, body) if size is None else Answer(200, body, BINARY, size)


def _parts(target: bytes) -> list[bytes]:
    """The path's parts, percent-decoded, without a query; a slash at the end does not count."""
    path = target.partition(b"?")[0].strip(b"/")
    return [unquote_to_bytes(part) for part in path.split(b"/")[:8]]


def _check_method(request: Request, *allowed: bytes) -> None:
    if request.method not in allowed:
        raise RequestError(405, f"the method must be {allowed[0].decode()} here")


def _blamed(error: Exception) -> RequestError:
    """Whose fault it was that there are no scores."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, PeerError):
        busy = isinstance(error, PeerRefusalError) and error.status == 503
        return RequestError(503 if busy else 502, str(error))
    if isinstance(error, FedgeError):
        return RequestError(400 if isinstance(error, DataError) else 500, str(error))
    return RequestError(500, f"a fault of the server: {type(error).__name__}")
