"""RunPod's own package for Python as a client of the fake RunPod.

usage: runpod_client.py PLAN.json

The plan names the address, the endpoints and what their workers must say (see runPodPlan in vendors_test.go).
"""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from checks import check, equal, holds, main, plan, raises, until

os.environ["RUNPOD_ENDPOINT_BASE_URL"] = plan["url"]  # read by the import
os.environ["RUNPOD_LOG_LEVEL"] = "ERROR"  # of the worker, which logs to stdout
import requests
import runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_job

runpod.api_key = plan["key"]
ask = plan["ask"]
no_jobs = {"completed": 0, "failed": 0, "inProgress": 0, "inQueue": 0, "retried": 0}
no_workers = {"idle": 0, "initializing": 0, "ready": 0, "running": 0, "throttled": 0, "unhealthy": 0}
one_idle = no_workers | {"idle": 1, "ready": 1}


def endpoint(name):
    return runpod.Endpoint(plan["endpoints"][name])


def openai_input(question, stream=False):
    """The input of a worker that speaks OpenAI's protocol."""
    return {
        "openai_route": "/v1/chat/completions",
        "openai_input": {
            "model": question["model"],
            "messages": [{"role": "user", "content": question["prompt"]}],
            "max_tokens": question["max_tokens"],
            "stream": stream,
        },
    }


def text_of(events):
    """The text of a stream of server-sent events that the worker yielded in pieces."""
    holds(all(isinstance(e, str) for e in events), f"a piece that is no text: {events!r}")
    data = [line[6:] for line in "".join(events).split("\n") if line.startswith("data: ")]
    equal(data[-1], "[DONE]", "last event")
    chunks = [json.loads(d) for d in data[:-1]]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def content(output):
    """The text of the one answer that the worker yielded whole."""
    equal(len(output), 1, "yields")
    return output[0]["choices"][0]["message"]["content"]


def uuid_of(job_id, prefix=""):
    holds(job_id.startswith(prefix) and job_id.endswith("-u1"), f"id {job_id!r}")
    equal([len(p) for p in job_id.removeprefix(prefix).split("-")], [8, 4, 4, 4, 12, 2], f"parts of the id {job_id}")


@check
def health_idle():
    equal(endpoint("counted").health(), {"jobs": no_jobs, "workers": one_idle}, "health")


@check
def run():
    job = endpoint("counted").run({"input": openai_input(ask)})
    uuid_of(job.job_id)
    equal(content(job.output(timeout=20)), ask["text"], "output")
    equal(job.status(), "COMPLETED", "status")


@check
def run_sync():
    equal(content(endpoint("counted").run_sync(openai_input(ask))), ask["text"], "output")


@check
def run_prompt():
    """A bare input, as the client wraps it, for the handler's own form."""
    output = endpoint("native").run_sync({"prompt": ask["prompt"], "sampling_params": {"max_tokens": ask["max_tokens"]}})
    equal("".join(t for y in output for t in y["choices"][0]["tokens"]), ask["text"], "tokens")
    equal(output[-1]["usage"]["output"], ask["max_tokens"], "usage")


@check
def status():
    """The whole answer of /status, of which the client shows parts."""
    e = endpoint("counted")
    job = e.run(openai_input(ask))
    got = until(lambda: (s := e.rp_client.get(f"{e.endpoint_id}/status/{job.job_id}"))["status"] == "COMPLETED" and s, "completed")
    equal(sorted(got), ["delayTime", "executionTime", "id", "output", "status", "workerId"], "members")
    holds(all(isinstance(got[k], int) and 0 <= got[k] < 20_000 for k in ("delayTime", "executionTime")), f"times: {got}")
    equal(got["id"], job.job_id, "id")
    holds(isinstance(got["workerId"], str) and len(got["workerId"]) > 8, f"worker {got['workerId']!r}")
    equal(content(got["output"]), ask["text"], "output")


@check
def health_counts():
    equal(endpoint("counted").health(), {"jobs": no_jobs | {"completed": 3}, "workers": one_idle}, "health")


@check
def stream():
    job = endpoint("fast").run(openai_input(ask, stream=True))
    pieces = list(job.stream())
    equal(text_of(pieces), ask["text"], "text")
    equal(job.status(), "COMPLETED", "status")
    equal(job.output(), pieces, "output behind the stream")


@check
def stream_while_it_runs():
    """The pieces of several polls, in order and none twice."""
    pieces, polls = [], 0
    job = endpoint("slow").run(openai_input(plan["longer"], stream=True))
    fetch = job._fetch_job

    def counted(source="status"):
        nonlocal polls
        got = fetch(source)
        polls += bool(got["stream"])
        return got

    job._fetch_job = counted
    pieces = list(job.stream())
    equal(text_of(pieces), plan["longer"]["text"], "text")
    holds(polls > 1, f"all pieces came by {polls} polls")


@check
def cancel_running():
    e = endpoint("slow")
    job = e.run(openai_input(plan["endless"], stream=True))
    until(lambda: job.status() == "IN_PROGRESS", "in progress")
    got = e.health()
    equal((got["jobs"]["inProgress"], got["workers"]["running"]), (1, 1), f"health {got}")
    holds(next(job.stream()), "a piece")
    equal(job.cancel(), {"id": job.job_id, "status": "CANCELLED"}, "cancel")
    equal(job.status(), "CANCELLED", "status")
    equal(job.output(), None, "output")


@check
def cancel_queued():
    e = endpoint("stuck")
    job = e.run(openai_input(ask))
    equal(job.status(), "IN_QUEUE", "status")
    equal(e.health(), {"jobs": no_jobs | {"inQueue": 1}, "workers": no_workers}, "health")
    equal(job.cancel(), {"id": job.job_id, "status": "CANCELLED"}, "cancel")
    equal(job.status(), "CANCELLED", "status")


@check
def output_times_out():
    job = endpoint("stuck").run(openai_input(ask))
    raises(TimeoutError, lambda: job.output(timeout=1))
    job.cancel()


@check
def purge_queue():
    """Two calls in ten seconds is what the service allows an endpoint: this and the one of asyncio."""
    e = endpoint("stuck")
    for _ in range(3):
        e.run(openai_input(ask))
    equal(e.purge_queue(), {"removed": 3, "status": "completed"}, "purge")
    equal(e.health()["jobs"]["inQueue"], 0, "jobs in the queue")


@check
def failed():
    e = endpoint("broken")
    job = e.run(openai_input(ask))
    until(lambda: job.status() == "FAILED", "failed")
    equal(job.output(), None, "output")
    equal(e.run_sync(openai_input(ask)), None, "output of run_sync")
    holds("NoneType" in e.rp_client.get(f"{e.endpoint_id}/status/{job.job_id}")["error"], "the handler's words")
    equal(e.health()["jobs"]["failed"], 2, "failed jobs")


async def worker(handler):
    """What the package's own worker reports of a job that handler, a generator function, does: its yields and its result."""
    yields, results = [], []

    async def stream_result(session, item, job):
        yields.append(item)

    async def send_result(session, result, job, is_stream):
        results.append(result)

    with mock.patch.multiple(rp_job, stream_result=stream_result, send_result=send_result), contextlib.redirect_stdout(io.StringIO()):
        await rp_job.handle_job(None, {"handler": handler, "return_aggregate_stream": True}, {"id": "x", "input": {"a": 1}})
    equal(len(results), 1, "results")
    return yields, results[0]


def failure(name):
    """The error of a job of an endpoint where all jobs fail."""
    e = endpoint(name)
    job = e.run(openai_input(ask))
    until(lambda: job.status() == "FAILED", "failed")
    got = e.rp_client.get(f"{e.endpoint_id}/status/{job.job_id}")
    equal(sorted(got), ["delayTime", "error", "executionTime", "id", "status", "workerId"], "members")
    return got["error"]


@check
async def worker_raises():
    """A traceback as the package's own worker makes it, but for the frames in the middle."""

    def handler(job):
        yield "a"
        None.get

    yields, result = await worker(handler)
    equal(yields, [{"output": "a"}], "yields")
    want, got = ([re.sub('".*/runpod/(.*)", line [0-9]+', r"\1", l) for l in e.split("\n")] for e in (result["error"], failure("broken")))
    equal(got[:3] + got[-2:], want[:3] + want[-2:], "error")


@check
async def worker_yields_an_error():
    """An object that the package's own worker makes text of."""

    def handler(job):
        yield {"error": {"message": plan["dead"], "type": "worker_error", "code": None}}

    yields, result = await worker(handler)
    equal((yields, {"error": failure("dead")}), ([], result), "error")


@check
async def worker_streams():
    """Yields, and all of them as the output, as the package's own worker reports them."""
    e = endpoint("fast")
    job = e.run(openai_input(ask, stream=True))
    until(lambda: e.rp_client.get(f"{e.endpoint_id}/status/{job.job_id}")["status"] == "COMPLETED", "completed")
    got = e.rp_client.get(f"{e.endpoint_id}/stream/{job.job_id}")

    def handler(job):
        yield from (item["output"] for item in got["stream"])

    yields, result = await worker(handler)
    equal(got, {"status": "COMPLETED", "stream": yields}, "stream")
    equal(job.output(), result["output"], "output")
    equal(e.rp_client.get(f"{e.endpoint_id}/stream/{job.job_id}"), {"status": "COMPLETED", "stream": []}, "stream that was read")


@check
def timed_out():
    job = endpoint("late").run(openai_input(ask))
    until(lambda: job.status() == "TIMED_OUT", "timed out")


@check
def wrong_key():
    e = runpod.Endpoint(plan["endpoints"]["fast"], api_key="rpa_OTHER")
    for call in (e.health, e.purge_queue, lambda: e.run(openai_input(ask)), lambda: e.run_sync(openai_input(ask))):
        holds("401 Unauthorized" in str(raises(RuntimeError, call)), "the client's own words")


def refused(status, call):
    got = raises(requests.HTTPError, call).response
    equal(got.status_code, status, "status")
    return got.json()


@check
def unknown_endpoint():
    for call in (runpod.Endpoint("nobody0").health, lambda: runpod.Endpoint("nobody0").run(openai_input(ask))):
        equal(refused(404, call), {"status": 404, "title": "Not Found", "detail": "endpoint not found"}, "body")


@check
def unknown_job():
    job = runpod.endpoint.Job(plan["endpoints"]["fast"], "c165626f-0000-4000-8000-000000000000-u1", endpoint("fast").rp_client)
    for call in (job.status, job.cancel, lambda: next(job.stream())):
        equal(refused(404, call), {"status": 404, "title": "Not Found", "detail": "job not found"}, "body")


@check
def too_many():
    """The client does not send a POST again."""
    refused(429, lambda: endpoint("busy").run(openai_input(ask)))


@check
async def asyncio_run():
    async with AsyncClientSession() as session:
        job = await runpod.AsyncioEndpoint(plan["endpoints"]["fast"], session).run(openai_input(ask))
        uuid_of(job.job_id)
        equal(content(await job.output(timeout=20)), ask["text"], "output")
        equal(await job.status(), "COMPLETED", "status")


@check
async def asyncio_stream():
    async with AsyncClientSession() as session:
        job = await runpod.AsyncioEndpoint(plan["endpoints"]["fast"], session).run(openai_input(ask, stream=True))
        equal(text_of([piece async for piece in job.stream()]), ask["text"], "text")
        equal(await job.status(), "COMPLETED", "status")


@check
async def asyncio_cancel():
    async with AsyncClientSession() as session:
        e = runpod.AsyncioEndpoint(plan["endpoints"]["stuck"], session)
        job = await e.run(openai_input(ask))
        equal(await job.status(), "IN_QUEUE", "status")
        equal(await job.cancel(), {"id": job.job_id, "status": "CANCELLED"}, "cancel")
        equal(await job.status(), "CANCELLED", "status")


@check
async def asyncio_health_and_purge():
    async with AsyncClientSession() as session:
        e = runpod.AsyncioEndpoint(plan["endpoints"]["stuck"], session)
        await e.run(openai_input(ask))
        equal(await e.health(), {"jobs": no_jobs | {"inQueue": 1}, "workers": no_workers}, "health")
        equal(await e.purge_queue(), {"removed": 1, "status": "completed"}, "purge")


main()
