"""``python -m fedge.bench._edge_fastapi MODEL NAME PORT``: a model behind FastAPI, one ``run`` per request.

What one would write without ``fedge serve``, in its quickest form: the request and the answer are binary, as
the Open Inference Protocol has them, and nothing of them is checked.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedge.bench._edge_times import session
from fedge.edge.runtime import INPUT, OUTPUT


def make_app(model: bytes, name: str) -> Any:
    """The application, with ``model`` at ``/v2/models/{name}/infer``."""
    from fastapi import FastAPI, Request, Response

    app, opened = FastAPI(), session(model)

    async def ready() -> dict[str, bool]:
        return {"live": True}

    async def infer(request: Request) -> Response:
        body, size = await request.body(), int(request.headers["inference-header-content-length"])
        (tensor,) = json.loads(body[:size])["inputs"]
        x = np.frombuffer(body, "<f4", offset=size).reshape(tensor["shape"])
        (scores,) = opened.run([OUTPUT], {INPUT: x})
        outputs = {
            "name": OUTPUT, "datatype": "FP32", "shape": scores.shape,
            "parameters": {"binary_data_size": scores.nbytes},
        }  # fmt: skip
        head = json.dumps({"model_name": name, "outputs": [outputs]}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        return Response(head + scores.tobytes(), 200, length, "application/octet-stream")

    infer.__annotations__["request"] = Request  # imported within, where FastAPI does not look
    app.get("/v2/health/ready")(ready)
    app.post(f"/v2/models/{name}/infer", response_class=Response)(infer)
    return app


def main(model: str, name: str, port: str) -> None:
    """Serve on loopback."""
    import uvicorn

    app = make_app(Path(model).read_bytes(), name)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        http="httptools",
        loop="uvloop",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
