"""The official openai package for Python as a client of Headrace.

usage: sdk.py PLAN.json

The plan names the address, the models and what each must answer (see plan in plan_test.go). One JSON line is printed for
every check, {"check": NAME, "ok": true} or with "error"; the Go test turns the lines into subtests.
"""

import asyncio
import base64
import hashlib
import json
import sys
import time
import traceback

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

with open(sys.argv[1], encoding="utf-8") as f:
    plan = json.load(f)

options = {"base_url": plan["base_url"], "api_key": plan["api_key"], "max_retries": 0, "timeout": 60}
client = OpenAI(**options)
checks = []


def check(f):
    checks.append(f)
    return f


def equal(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: got {clip(got)}, want {clip(want)}")


def holds(condition, what):
    if not condition:
        raise AssertionError(what)


def clip(value):
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]} ({len(text)} characters)"


def request(case):
    return {
        "model": case["model"],
        "messages": [{"role": "user", "content": case.get("prompt") or case["unit"] * case["repeat"]}],
        "max_tokens": case["max_tokens"],
    }


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@check
def chat():
    case = plan["chat"]
    answer = client.chat.completions.create(**request(case))
    equal(answer.choices[0].message.content, case["text"], "content")
    equal(answer.choices[0].finish_reason, "length", "finish_reason")
    equal(answer.usage.completion_tokens, case["max_tokens"], "completion_tokens")
    equal(answer.usage.total_tokens, answer.usage.prompt_tokens + case["max_tokens"], "total_tokens")
    holds(answer._request_id, "no x-request-id in the answer")


@check
def chat_n():
    answer = client.chat.completions.create(**request(plan["chat"]), n=3)
    equal([c.index for c in answer.choices], [0, 1, 2], "indexes")
    equal([c.message.content for c in answer.choices], plan["choices"], "contents")


@check
def chat_logprobs():
    case = plan["chat"]
    answer = client.chat.completions.create(**request(case), logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    equal(len(content), case["max_tokens"], "tokens with logprobs")
    equal("".join(t.token for t in content), case["text"], "tokens joined")
    holds(all(t.logprob <= 0 and len(t.top_logprobs) == 2 for t in content), "a logprob above 0, or no two top_logprobs")


class Person(BaseModel):
    name: str
    age: int
    married: bool
    tags: list[str]


@check
def chat_structured():
    case = plan["chat"]
    answer = client.chat.completions.parse(
        model=case["model"],
        messages=[{"role": "user", "content": case["prompt"]}],
        response_format=Person,
    )
    holds(isinstance(answer.choices[0].message.parsed, Person), f"not parsed: {answer.choices[0].message.content!r}")


@check
def stream():
    case = plan["chat"]
    chunks = list(client.chat.completions.create(**request(case), stream=True))
    equal(text_of(chunks), case["text"], "text")
    equal([c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason], ["length"], "finish reasons")
    holds(all(c.usage is None for c in chunks), "usage though nobody asked for it")


@check
def stream_usage():
    case = plan["chat"]
    chunks = list(client.chat.completions.create(**request(case), stream=True, stream_options={"include_usage": True}))
    equal(text_of(chunks), case["text"], "text")
    equal([i for i, c in enumerate(chunks) if c.usage], [len(chunks) - 1], "chunks with usage")
    equal(chunks[-1].choices, [], "choices of the last chunk")
    equal(chunks[-1].usage.completion_tokens, case["max_tokens"], "completion_tokens")


@check
def stream_continued():
    case = plan["mortal"]
    chunks = list(client.chat.completions.create(**request(case), stream=True, stream_options={"include_usage": True}))
    equal(text_of(chunks), case["text"], "text")
    equal({c.id for c in chunks}, {chunks[0].id}, "ids")
    choices = [choice for c in chunks for choice in c.choices]
    equal([c.finish_reason for c in choices if c.finish_reason], ["length"], "finish reasons")
    equal([c.delta.role for c in choices if c.delta.role], ["assistant"], "roles")
    equal(chunks[-1].usage.completion_tokens, case["max_tokens"], "completion_tokens")


tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "the weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


@check
def stream_tools():
    name, arguments, ids, finish = "", "", [], None
    for chunk in client.chat.completions.create(**request(plan["chat"]), tools=tools, tool_choice="required", stream=True):
        choice = chunk.choices[0]
        finish = choice.finish_reason or finish
        for call in choice.delta.tool_calls or []:
            equal(call.index, 0, "index")
            ids += [call.id] if call.id else []
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    equal(name, "get_weather", "name")
    equal(len(ids), 1, "ids")
    equal(finish, "tool_calls", "finish_reason")
    holds(isinstance(json.loads(arguments)["city"], str), f"arguments {arguments!r}")


@check
def stream_emoji():
    case = plan["emoji"]
    text = text_of(client.chat.completions.create(**request(case), stream=True))
    equal(text, case["text"], "text")
    holds(any(ord(c) > 0xFFFF for c in text), "the plan's text has no emoji")


@check
def streams_50():
    async def one(many, case):
        chunks = [c async for c in await many.chat.completions.create(**request(case), stream=True)]
        equal(text_of(chunks), case["text"], "text")

    async def run():
        async with AsyncOpenAI(**options) as many:
            await asyncio.gather(*(one(many, case) for case in plan["streams"]))

    equal(len(plan["streams"]), 50, "streams in the plan")
    asyncio.run(run())


@check
def stream_abort():
    with client.chat.completions.create(**request(plan["slow"]), stream=True) as chunks:
        got = 0
        for chunk in chunks:
            got += bool(chunk.choices and chunk.choices[0].delta.content)
            if got == 3:
                break
    equal(got, 3, "chunks before the end")


@check
def big_prompt():
    case = plan["big"]
    equal(client.chat.completions.create(**request(case)).choices[0].message.content, case["text"], "content")


@check
def completions():
    case = plan["completion"]
    answer = client.completions.create(model=case["model"], prompt=case["prompt"], max_tokens=case["max_tokens"])
    equal(answer.choices[0].text, case["text"], "text")


@check
def completions_stream():
    case = plan["completion"]
    chunks = client.completions.create(
        model=case["model"], prompt=case["prompt"], max_tokens=case["max_tokens"], stream=True
    )
    equal("".join(c.choices[0].text for c in chunks), case["text"], "text")


@check
def embeddings():
    case = plan["embeddings"]
    for encoding in ({}, {"encoding_format": "float"}):  # without a wish the SDK asks for base64 and decodes it
        answer = client.embeddings.create(model=plan["model"], input=case["inputs"], **encoding)
        equal([d.index for d in answer.data], list(range(len(case["inputs"]))), "indexes")
        for got, want in zip(answer.data, case["vectors"], strict=True):
            equal(len(got.embedding), len(want), "dimensions")
            holds(all(abs(x - y) < 1e-6 for x, y in zip(got.embedding, want)), f"another vector {encoding}")


@check
def responses():
    case = plan["chat"]
    answer = client.responses.create(model=case["model"], input=case["prompt"], max_output_tokens=case["max_tokens"])
    equal(answer.output_text, case["text"], "output_text")
    equal(answer.usage.output_tokens, case["max_tokens"], "output_tokens")


@check
def responses_stream():
    case = plan["chat"]
    text, last = "", None
    for event in client.responses.create(
        model=case["model"], input=case["prompt"], max_output_tokens=case["max_tokens"], stream=True
    ):
        last = event
        if event.type == "response.output_text.delta":
            text += event.delta
    equal(text, case["text"], "text")
    holds(last.type in ("response.completed", "response.incomplete"), f"the last event is {last.type}")
    equal(last.response.usage.output_tokens, case["max_tokens"], "output_tokens")


@check
def transcription():
    case = plan["upload"]
    audio = bytes(i * 31 & 0xFF for i in range(256)) * (case["bytes"] // 256)
    equal(hashlib.sha256(audio).hexdigest(), case["sha256"], "the script's own bytes")
    answer = client.audio.transcriptions.create(model=case["model"], file=("talk.wav", audio, "audio/wav"))
    holds(case["sha256"] in answer.to_json() or case["sha256"] in answer.text, f"the host saw other bytes: {answer.text!r}")


@check
def speech():
    case = plan["speech"]
    with client.audio.speech.with_streaming_response.create(
        model=case["model"], voice="alloy", input=case["input"]
    ) as answer:
        got = b"".join(answer.iter_bytes())
    equal(len(got), case["bytes"], "bytes")
    equal(hashlib.sha256(got).hexdigest(), case["sha256"], "sha256")


@check
def image():
    answer = client.images.generate(model=plan["model"], prompt="a weir", response_format="b64_json")
    holds(base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG"), "not a PNG")


@check
def moderation():
    answer = client.moderations.create(model=plan["model"], input="a weir")
    holds(answer.results[0].flagged in (True, False), "no verdict")


@check
def models():
    ids = [m.id for m in client.models.list()]
    holds(plan["model"] in ids and plan["chat"]["model"] in ids, f"models {ids}")
    equal(client.models.retrieve(plan["model"]).id, plan["model"], "id")


def refused(kind, case, **more):
    try:
        client.chat.completions.create(**(request(case) | more))
    except openai.APIStatusError as e:
        equal(type(e).__name__, kind.__name__, f"exception ({e})")
        equal(e.status_code, case["status"], "status")
        holds(isinstance(e.body, dict) and e.body.get("message"), f"not OpenAI's error object: {e.body!r}")
        holds(plan["secret"] not in str(e.body) + str(dict(e.response.headers)), "the host's key leaked")
        return e
    raise AssertionError("no error")


@check
def error_bad_request():
    refused(openai.BadRequestError, plan["too_long"])


@check
def error_not_found():
    equal(refused(openai.NotFoundError, plan["unknown"]).code, "model_not_found", "code")


@check
def error_host_key_refused():
    refused(openai.InternalServerError, plan["locked"])


@check
def error_rate_limit():
    e = refused(openai.RateLimitError, plan["busy"])
    holds(1 <= int(e.response.headers["retry-after"]) <= plan["busy"]["retry_after"] + 30, "Retry-After")  # behind those told before


@check
def error_upstream():
    refused(openai.InternalServerError, plan["broken"])


@check
def error_unreachable():
    refused(openai.InternalServerError, plan["down"])


@check
def error_stream_refused():
    refused(openai.InternalServerError, plan["broken"], stream=True)


@check
def error_stream_cut():
    text = ""
    try:
        for chunk in client.chat.completions.create(**request(plan["cut"]), stream=True):
            text += text_of([chunk])
    except openai.APIError as e:
        holds(text and plan["cut"]["text"].startswith(text), f"text before the cut: {text!r}")
        holds(not isinstance(e, openai.APIStatusError), f"an error status after the head: {e!r}")
        return
    raise AssertionError(f"a clean end after {text!r}")


for f in checks:
    line, began = {"check": f.__name__, "ok": True}, time.monotonic()
    try:
        f()
    except Exception as e:
        line |= {"ok": False, "error": f"{type(e).__name__}: {e}", "trace": traceback.format_exc(limit=-4)}
    print(json.dumps(line | {"ms": round((time.monotonic() - began) * 1000)}), flush=True)
