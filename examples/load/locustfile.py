"""Locust against Penstock's demo (`make demo` leaves it running).

    pip install locust
    locust -f examples/load/locustfile.py --host http://127.0.0.1:8080
    locust -f examples/load/locustfile.py --host http://127.0.0.1:8080 \
        --headless --users 64 --run-time 30s

`python -m bench load` carries several times the rate on one core, and counts latency from the time
at which a request was due; this is for people who have their scenarios in Locust.
"""

from __future__ import annotations

import random

from locust import FastHttpUser, constant_throughput, task


class Reader(FastHttpUser):
    """One client: ten digits a second, each as JSON, and a look at the model now and then."""

    wait_time = constant_throughput(10)

    @task(50)
    def classify(self) -> None:
        image = [float(random.randrange(17)) for _ in range(64)]
        tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": image}
        body = {"inputs": [tensor], "outputs": [{"name": "digit"}]}
        with self.client.post("/v2/models/digits/infer", json=body, catch_response=True) as answer:
            if answer.status_code == 429:
                # The gateway sheds what it could not answer in time: no fault of the server's.
                answer.failure(f"shed; come back in {answer.headers.get('retry-after')} s")
            elif answer.status_code == 200 and answer.json()["outputs"][0]["name"] != "digit":
                answer.failure("another output than was asked for")

    @task(1)
    def look(self) -> None:
        self.client.get("/v2/models/digits/ready", name="ready")
