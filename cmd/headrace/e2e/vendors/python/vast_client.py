"""Vast.ai's own package for Python, and its command line, as clients of the fake Vast.ai.

usage: vast_client.py PLAN.json

The plan names the addresses, the instances and the offers that there are (see vastPlan in vendors_vast_test.go).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from checks import check, equal, holds, main, plan, raises, until

os.environ["VAST_URL"] = plan["url"]  # read by the import
os.environ["VAST_API_KEY"] = plan["key"]
os.environ["VAST_LOG_LEVEL"] = "error"
os.environ["COLUMNS"] = "200"  # of the tables that the command line prints
import requests
import vastai
from vastai.cli.display import displayable_fields
from vastai.data.instance import InstanceConfig
from vastai.data.query import Query

vast = vastai.VastAI()
rows = {r["id"]: r for r in plan["instances"]}
offers = {o["id"]: o for o in plan["offers"]}
spare = plan["spare"]  # ids by what a check does with them; all others stay as they are


def same(got, want):
    """Checks the members of a row that the plan knows."""
    for name, value in want.items():
        equal(got[name], value, f"{name} of {want['id']}")


def refused(status, code, call):
    got = raises(requests.HTTPError, call).response
    equal(got.status_code, status, "status")
    equal(got.json()["error"], code, "error")
    equal(got.json()["success"], False, "success")


def close(got, want):
    return abs(got - want) < 1e-6


@check
def show_user():
    same(vast.show_user(), {"id": plan["user"], "credit": plan["credit"]})


@check
def show_instances():
    """Three pages of the service as one list."""
    got = vast.show_instances()
    equal([r["id"] for r in got], sorted(rows), "ids")
    for row in got:
        want = rows[row["id"]]
        same(row, want)
        same(row, {"id": row["id"], "actual_status": "running", "extra_env": {"-p 8000:8000": "1"}})
        holds(close(row["dph_total"], row["dph_base"] + row["storage_total_cost"]), f"dph_total {row['dph_total']}")
        holds(0 <= row["duration"] < 600, f"duration {row['duration']}")  # of the client: the age in seconds
        ((inner, at),) = row["ports"].items()
        equal((inner, at[0]["HostIp"]), ("8000/tcp", "0.0.0.0"), "ports")
        holds(at[0]["HostPort"].isdigit() and row["public_ipaddr"] == "127.0.0.1", f"address {row['public_ipaddr']} {at}")


def pages(params):
    """The pages of a list, which must come to an end."""
    for _ in rows:
        page = vast.show_instances_v1(params)
        yield page
        if not page["next_token"]:
            return
        params["after_token"] = page["next_token"]
    raise AssertionError("more pages than instances")


@check
def show_instances_v1():
    """Page by page: limit, token, order and columns."""
    got = []
    for page in pages({"limit": 20, "order_by": [{"col": "id", "dir": "desc"}], "select_cols": ["id", "label"]}):
        equal((page["success"], page["total_instances"], page["instances_found"]), (True, len(rows), len(rows)), "counts")
        equal(sum(page["label_counts"].values()), len(rows), "instances by label")
        got.append(page["instances"])
    equal([len(p) for p in got], [20] * (len(rows) // 20), "rows of the pages")
    equal(
        [r for p in got for r in p],
        [{"id": i, "label": rows[i]["label"]} for i in sorted(rows, reverse=True)],
        "columns",
    )


@check
def show_instances_filtered():
    for filters, matches in (
        ({"label": {"eq": "gw"}}, lambda r: r["label"] == "gw"),
        ({"label": {"in": [None]}}, lambda r: r["label"] == ""),
        ({"is_bid": {"eq": True}}, lambda r: r["is_bid"]),
        ({"gpu_name": {"in": ["RTX 4090", "none"]}, "id": {"gte": 1030}}, lambda r: r["gpu_name"] == "RTX 4090" and r["id"] >= 1030),
        ({"actual_status": {"eq": "loading"}}, lambda r: False),
    ):
        got = [r["id"] for page in pages({"select_filters": filters}) for r in page["instances"]]
        equal(got, [i for i in sorted(rows) if matches(rows[i])], f"ids by {filters}")


@check
def show_instances_by_what_is_computed():
    refused(400, "invalid_request", lambda: raise_for(vast.client.get("/api/v1/instances/", {"order_by": [{"col": "dph_total", "dir": "asc"}]})))


def raise_for(response):
    response.raise_for_status()
    return response.json()


@check
def show_instances_of_old():
    """The list that the service no longer has."""
    refused(410, "deprecated_endpoint", lambda: raise_for(vast.client.get("/instances/", {"owner": "me"})))


@check
def show_instance():
    for want in list(rows.values())[:3]:
        same(vast.show_instance(want["id"]), want)
    equal(vast.show_instance(7), None, "instance that there is not")
    holds(vast.ssh_url(next(iter(rows))).startswith("ssh://root@ssh"), "ssh_url")


@check
def show_instance_filters():
    got = {tuple(sorted(f.items())) for f in vast.show_instance_filters()}
    want = {
        (("actual_status", "running"), ("gpu_name", r["gpu_name"]), ("verification", r["verification"])) for r in rows.values()
    }
    equal(got, want, "filters")


def expected(matches):
    """The offers that match and that the client asks for by itself, by price."""
    found = [o for o in offers.values() if o["verification"] == "verified" and matches(o)]
    return [o["id"] for o in sorted(found, key=lambda o: o["dph_base"])]


@check
def search_offers():
    for query, matches in (
        ("", lambda o: True),
        ("gpu_name=RTX_4090", lambda o: o["gpu_name"] == "RTX 4090"),
        ("num_gpus>=2", lambda o: o["num_gpus"] >= 2),
        ("gpu_ram>40 reliability>0.9", lambda o: o["gpu_ram"] > 40000),
        ("gpu_name in [RTX_4090,A100_SXM4] num_gpus=1", lambda o: o["gpu_name"] in ("RTX 4090", "A100 SXM4") and o["num_gpus"] == 1),
        ("geolocation=SE", lambda o: o["geolocation"] == "Sweden, SE"),
        ("geolocation notin [SE]", lambda o: o["geolocation"] != "Sweden, SE"),
        ("dph_total<1", lambda o: o["dph_base"] + o["storage"] < 1),
        ("gpu_name=RTX_9999", lambda o: False),
    ):
        got = vast.search_offers(query, order="dph_total", storage=10)
        equal([o["id"] for o in got], expected(matches), f"ids by {query!r}")
    for o in got:
        same(o, {"id": o["id"], "rentable": True, "rented": False, "is_bid": False})


@check
def search_offers_rows():
    for got in vast.search_offers("", order="dph_total", storage=10):
        want = offers[got["id"]]
        same(got, {n: want[n] for n in ("id", "gpu_name", "num_gpus", "gpu_ram", "dph_base", "min_bid", "verification", "geolocation")})
        same(got, {"id": want["id"], "is_bid": False, "rentable": True, "rented": False, "verified": True})
        equal(got["ask_contract_id"], want["id"], "ask_contract_id")
        holds(close(got["dph_total"], want["dph_base"] + want["storage"]), f"dph_total {got['dph_total']}")
        for name, _, form, convert, _ in displayable_fields:  # what the command line shows
            holds(got[name] is not None, f"no {name}")
            form.format((convert or (lambda x: x))(got[name]))


@check
def search_offers_order():
    for order, key in (("num_gpus-,dph_total", lambda o: (-o["num_gpus"], o["dph_total"])), ("score-", lambda o: -o["score"])):
        got = vast.search_offers("verified=any", order=order)
        equal(len(got), len(offers), "offers")
        equal([o["id"] for o in got], [o["id"] for o in sorted(got, key=key)], f"ids by {order}")


@check
def search_offers_limit():
    equal([o["id"] for o in vast.search_offers("", order="dph_total", limit=2)], expected(lambda o: True)[:2], "ids")


@check
def search_offers_bid():
    got = vast.search_offers("num_gpus=1", type="bid", order="min_bid")
    equal([o["id"] for o in got], expected(lambda o: o["num_gpus"] == 1), "ids")
    for o in got:
        same(o, {"id": o["id"], "is_bid": True, "dph_base": offers[o["id"]]["min_bid"]})


@check
def search_offers_new():
    equal([o["id"] for o in vast.search_offers_new("num_gpus>=2", order="dph_total")], expected(lambda o: o["num_gpus"] >= 2), "ids")


@check
def label_instance():
    equal(vast.label_instance(spare["label"], "set by the client"), {"success": True}, "answer")
    equal(vast.show_instance(spare["label"])["label"], "set by the client", "label")
    equal([r["id"] for r in vast.show_instances_v1({"select_filters": {"label": {"eq": "set by the client"}}})["instances"]], [spare["label"]], "ids")
    refused(400, "label_too_long", lambda: vast.label_instance(spare["label"], "x" * 257))
    refused(404, "no_such_instance", lambda: vast.label_instance(7, "x"))
    vast.label_instance(spare["label"], "")
    equal(vast.show_instance(spare["label"])["label"], "", "label taken away")


@check
def change_bid():
    id = spare["bid"]
    equal(vast.change_bid(id, price=0.333)["success"], True, "success")
    row = vast.show_instance(id)
    same(row, {"id": id, "dph_base": 0.333, "is_bid": True})
    holds(close(row["dph_total"], 0.333 + row["storage_total_cost"]), f"dph_total {row['dph_total']}")
    vast.change_bid(id)  # one that wins
    holds(vast.show_instance(id)["dph_base"] >= row["min_bid"], "a bid below min_bid")
    refused(400, "invalid_price", lambda: vast.change_bid(id, price=1000))
    refused(400, "invalid_args", lambda: vast.change_bid(spare["on_demand"], price=0.2))


@check
def create_instance():
    offer = expected(lambda o: True)[0]
    got = vast.create_instance(offer, image="vllm/vllm-openai:v0.11.2", disk=20, label="new", env={"-p 8000:8000": "1", "MODEL": "m"})
    equal((got["success"], type(got["new_contract"])), (True, int), "answer")
    row = until(lambda: (r := vast.show_instance(got["new_contract"]))["actual_status"] == "running" and r, "running")
    same(row, {"id": got["new_contract"], "label": "new", "image_uuid": "vllm/vllm-openai:v0.11.2", "disk_space": 20.0, "is_bid": False})
    equal(row["extra_env"], {"-p 8000:8000": "1", "MODEL": "m"}, "extra_env")
    vast.destroy_instance(got["new_contract"])


@check
def create_instance_refused():
    offer = expected(lambda o: True)[0]
    refused(404, "no_such_ask", lambda: vast.create_instance(7, image="x"))
    refused(400, "invalid_args", lambda: vast.create_instance(offer))
    low = raises(requests.HTTPError, lambda: vast.create_instance(offer, image="x", bid_price=0.001)).response.json()
    equal(low["error"], "invalid_price", "error of a low bid")
    holds(vast.show_instance(low["new_contract"])["intended_status"] == "stopped", "the instance of a low bid runs")
    vast.destroy_instance(low["new_contract"])


def state(id):
    return vast.show_instance(id)["actual_status"]


@check
def stop_and_start():
    id = spare["stop"]
    equal(vast.stop_instance(id), {"success": True}, "stop")
    row = until(lambda: (r := vast.show_instance(id))["actual_status"] != "running" and r, "stopped")
    same(row, {"id": id, "actual_status": "exited", "intended_status": "stopped", "cur_state": "stopped", "ports": None, "gpu_util": None})
    equal(row["instance"]["gpuCostPerHour"], 0.0, "price of the GPU")
    equal(vast.start_instance(id), {"success": True}, "start")
    until(lambda: state(id) == "running" and vast.show_instance(id)["ports"], "running")


@check
def stop_and_start_many():
    ids = spare["many"]
    equal(vast.stop_instances(ids)["success"], True, "stop")
    until(lambda: all(state(i) == "exited" for i in ids), "stopped")
    equal(vast.start_instances(ids)["success"], True, "start")
    until(lambda: all(state(i) == "running" for i in ids), "running")


@check
def start_without_a_gpu():
    """The service says so with 200."""
    vast.stop_instance(spare["queued"])
    until(lambda: state(spare["queued"]) == "exited", "stopped")
    got = vast.start_instance(spare["queued"])
    equal((got["success"], got["error"]), (False, "resources_unavailable"), "answer")


@check
def reboot_and_recycle():
    for call in (vast.reboot_instance, vast.recycle_instance):
        equal(call(spare["reboot"]), {"success": True}, "answer")
        until(lambda: state(spare["reboot"]) == "running", "running")


@check
def logs():
    """The log is at another address, which the client asks until it is there."""
    holds("Application startup complete." in vast.logs(spare["label"], tail="100"), "no log")


@check
def price_increases():
    got = vast.show_pending_price_increases()
    equal((got["success"], got["count"], got["truncated"]), (True, 2, False), "envelope")
    more, less = (next(r for r in got["pending_price_increases"] if r["contract_id"] == spare[k]) for k in ("accept", "reject"))
    holds(close(more["new_gpu_costpersec"] * 3600, plan["increase"]), f"new price {more}")
    before = vast.show_instance(spare["reject"])["dph_base"]
    equal(vast.accept_price_increase(spare["accept"])["contract_id"], spare["accept"], "accepted")
    equal(vast.reject_price_increase(spare["reject"])["pending_price_increase_id"], less["pending_price_increase_id"], "rejected")
    equal(vast.show_pending_price_increases()["count"], 0, "increases left")
    equal(vast.show_instance(spare["reject"])["dph_base"], before, "price of the one that was rejected")
    raises(LookupError, lambda: vast.accept_price_increase(spare["accept"]))


@check
def charges():
    day = {"gte": time.time() - 86400, "lte": time.time() + 86400}
    got = raise_for(vast.client.get("/charges/", {"select_filters": {"day": day, "type": {"in": ["instance"]}}, "format": "table", "limit": 100}))
    holds({f"instance-{i}" for i in rows if i not in spare["destroyed"]} <= {r["source"] for r in got["results"]}, "sources")


@check
def destroy_instance():
    id = spare["destroy"]
    equal(vast.destroy_instance(id)["success"], True, "answer")
    equal(vast.show_instance(id), None, "instance")
    refused(404, "no_such_instance", lambda: vast.destroy_instance(id))


@check
def destroy_instances():
    equal(vast.destroy_instances(spare["destroy_many"])["success"], True, "answer")
    equal([vast.show_instance(i) for i in spare["destroy_many"]], [None] * len(spare["destroy_many"]), "instances")


@check
def wrong_key():
    other = vastai.VastAI(api_key="not a key")
    for call in (other.show_instances, other.show_user, lambda: other.show_instance(next(iter(rows))), lambda: other.label_instance(1, "x")):
        refused(404, "auth_error", call)
    equal(len(other.search_offers("", limit=2)), 2, "offers, which need no key")


@check
def no_key():
    vast_without = vastai.VastAI(api_key="")
    refused(403, "auth_error", vast_without.show_instances)


@check
def too_many():
    """The service throttles; the client asks three times, then gives up."""
    holds(vast.client.retry == 3, "the client's own retries")
    got = raises(requests.HTTPError, lambda: vast.client.get("/metrics/gpu/current/").raise_for_status())
    equal(got.response.status_code, 429, "status")


@check
def sync_client():
    client = vastai.SyncClient(vast_server=plan["url"])
    left = [i for i in sorted(rows) if i not in spare["destroyed"]]
    equal([i.id for i in client.show_instances()], left, "ids")
    query = Query.search_defaults()
    query.query["gpu_name"] = {"eq": "RTX 4090"}
    found = client.search(query, order=[["dph_total", "asc"]], type_="on-demand")
    equal([o.id for o in found], expected(lambda o: o["gpu_name"] == "RTX 4090"), "offers")
    made = found[0].create_instance(InstanceConfig(image="vllm/vllm-openai:v0.11.2", disk=16, label="by sync"))
    equal((made.label, made.gpu_name), ("by sync", "RTX 4090"), "instance")
    made.destroy()
    equal(vast.show_instance(made.id), None, "instance")


@check
async def async_client():
    vastai.AsyncClient.SSL_CERT_URL = plan["url"] + "/static/jvastai_root.cer"
    async with vastai.AsyncClient(vast_server=plan["url"]) as client:
        equal([i.id for i in await client.show_instances()], [i for i in sorted(rows) if i not in spare["destroyed"]], "ids")


@check
async def serverless():
    """The endpoint's worker by /route/, over TLS that Vast.ai's root vouches for."""
    ask = plan["ask"]
    body = {"model": ask["model"], "messages": [{"role": "user", "content": ask["prompt"]}], "max_tokens": ask["max_tokens"]}
    url = plan["serverless"]["url"]
    vastai.CoroutineServerless.SSL_CERT_URL = url + "/static/jvastai_root.cer"
    async with vastai.CoroutineServerless(plan["key"], autoscaler_url=plan["serverless"]["run_url"], webserver_url=url) as client:
        equal([e.name for e in await client.get_endpoints()], [plan["serverless"]["name"]], "endpoints")
        endpoint = await client.get_endpoint(plan["serverless"]["name"])
        options = {"cost": ask["max_tokens"], "timeout": 10}
        got = await endpoint.request("/v1/chat/completions", body, **options)
        equal((got["ok"], got["status"]), (True, 200), "answer")
        equal(got["response"]["choices"][0]["message"]["content"], ask["text"], "content")
        holds(got["url"].startswith("https://") and got["request_idx"] > 0, f"worker {got['url']} {got['request_idx']}")
        got = await endpoint.request("/v1/chat/completions", body | {"stream": True}, stream=True, **options)
        text = "".join([c["choices"][0]["delta"].get("content") or "" async for c in got["response"] if c["choices"]])
        equal(text, ask["text"], "text of the stream")
        (worker,) = await endpoint.get_workers()
        equal((worker.status, worker.id > 0, worker.measured_perf > 0), ("idle", True, True), "worker")


def cli(*args, key=None):
    """What the command line prints on its two outputs."""
    env = os.environ | ({"VAST_API_KEY": key} if key else {})
    done = subprocess.run(
        [sys.executable, "-I", "-B", str(Path(sys.executable).parent / "vastai"), *map(str, args)],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=60,
    )
    holds("Traceback" not in done.stderr, done.stderr)
    return done.stdout, done.stderr


@check
def cli_show_instances():
    out, err = cli("show", "instances", "--raw")
    equal([r["id"] for r in json.loads(out)], [i for i in sorted(rows) if i not in spare["destroyed"]], "ids")
    equal(err, "", "stderr")


@check
def cli_show_instances_table():
    """The table, with the filters and the summary above it."""
    out, _ = cli("--no-color", "show", "instances", "--label", "gw")
    shown = {i: r for i, r in rows.items() if r["label"] == "gw"}
    for id, r in shown.items():
        line = next((l for l in out.splitlines() if f" {id} " in l), "")
        for word in ("running", "gw", f"{r['num_gpus']}x {r['gpu_name']}", r["verification"]):
            holds(f" {word} " in line, f"no {word!r} in the line of {id}:\n{out}")
    holds(f"Total: {len(rows) - len(spare['destroyed'])} instances" in out and "--gpu-name:" in out, out)


@check
def cli_show_instance():
    want = next(iter(rows.values()))
    same(json.loads(cli("show", "instance", want["id"], "--raw")[0]), want)


@check
def cli_search_offers():
    out, err = cli("search", "offers", "num_gpus>=2", "-o", "dph_total", "--raw")
    equal([o["id"] for o in json.loads(out)], expected(lambda o: o["num_gpus"] >= 2), "ids")
    equal(err, "", "stderr")


@check
def cli_label_and_bid():
    out, _ = cli("label", "instance", spare["cli"], "by hand")
    equal(out, f"label for {spare['cli']} set to by hand.\n", "output")
    out, _ = cli("change", "bid", spare["cli"], "--price", "0.444")
    equal(out, "Per gpu bid price changed\n", "output")
    same(vast.show_instance(spare["cli"]), {"id": spare["cli"], "label": "by hand", "dph_base": 0.444})


@check
def cli_destroy():
    equal(cli("destroy", "instance", spare["cli"], "-y")[0], f"destroying instance {spare['cli']}.\n", "output")
    equal(vast.show_instance(spare["cli"]), None, "instance")


@check
def cli_wrong_key():
    equal(cli("show", "instances", key="not a key"), ("", "Failed with error 404: Invalid user key\n"), "outputs")


main()
