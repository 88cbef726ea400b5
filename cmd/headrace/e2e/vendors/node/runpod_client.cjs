// RunPod's own package for Node as a client of the fake RunPod.
//
// usage: node runpod_client.cjs NODE_MODULES PLAN.json
//
// The plan names the address, the endpoints and what their workers must say (see runPodPlan in vendors_test.go). One JSON line
// is printed for every check, {"check": NAME, "ok": true} or with "error"; the Go test turns the lines into subtests.
'use strict';

const { readFileSync } = require('node:fs');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { setTimeout: sleep } = require('node:timers/promises');
const { isDeepStrictEqual, inspect } = require('node:util');

const plan = JSON.parse(readFileSync(process.argv[3], 'utf8'));
const noJobs = { completed: 0, failed: 0, inProgress: 0, inQueue: 0, retried: 0 };
const noWorkers = { idle: 0, initializing: 0, ready: 0, running: 0, throttled: 0, unhealthy: 0 };
const oneIdle = { ...noWorkers, idle: 1, ready: 1 };
const print = console.log;
let printed = []; // by the package
console.log = (...words) => printed.push(words.join(' '));

function clip(value) {
  const text = inspect(value, { depth: 5, maxStringLength: 400 });
  return text.length <= 600 ? text : `${text.slice(0, 300)} ... ${text.slice(-300)}`;
}

function equal(got, want, what) {
  if (!isDeepStrictEqual(got, want)) throw new Error(`${what}: got ${clip(got)}, want ${clip(want)}`);
}

function holds(condition, what) {
  if (!condition) throw new Error(what);
}

async function until(ask, what) {
  const end = performance.now() + 20_000;
  for (;;) {
    const got = await ask();
    if (got) return got;
    holds(performance.now() < end, `${what}: not within 20 s`);
    await sleep(20);
  }
}

async function refused(status, call) {
  try {
    await call();
  } catch (e) {
    equal([e.name, e.message, e.response?.status], ['Error', `Request failed with status code ${status}`, status], 'exception'); // xior's own
    return e.response.data;
  }
  throw new Error('no error');
}

// The input of a worker that speaks OpenAI's protocol.
const request = ({ model, prompt, max_tokens }, stream = false) => ({
  input: {
    openai_route: '/v1/chat/completions',
    openai_input: { model, messages: [{ role: 'user', content: prompt }], max_tokens, stream },
  },
});

// The text of the one answer that the worker yielded whole.
function content(output) {
  equal(output.length, 1, 'yields');
  return output[0].choices[0].message.content;
}

// The text of a stream of server-sent events that the worker yielded in pieces.
function textOf(pieces) {
  holds(pieces.every((p) => typeof p.output === 'string'), `a piece that is no text: ${clip(pieces)}`);
  const data = pieces.map((p) => p.output).join('').split('\n').filter((l) => l.startsWith('data: ')).map((l) => l.slice(6));
  equal(data.pop(), '[DONE]', 'last event');
  return data.map((d) => JSON.parse(d).choices[0]?.delta.content ?? '').join('');
}

async function collect(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces;
}

function completed(got, id, text) {
  const { delayTime, executionTime, output, workerId, ...rest } = got;
  equal(rest, { id, status: 'COMPLETED', started: true, completed: true, succeeded: true }, 'answer');
  holds([delayTime, executionTime].every((t) => Number.isInteger(t) && t >= 0 && t < 20_000), `times: ${delayTime}, ${executionTime}`);
  holds(typeof workerId === 'string' && workerId.length > 8, `worker ${workerId}`);
  equal(content(output), text, 'output');
}

let sdk; // the package, once it is imported
const endpoint = (name, key = plan.key) => sdk(key, { baseUrl: plan.url }).endpoint(plan.endpoints[name] ?? name);
const anID = (prefix) => new RegExp(`^${prefix}[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}-u1$`);

const checks = {
  async health_idle() {
    equal(await endpoint('counted').health(), { jobs: noJobs, workers: oneIdle }, 'health');
  },

  async run_and_status() {
    const e = endpoint('counted');
    const { id, ...rest } = await e.run(request(plan.ask));
    holds(anID('').test(id), `id ${id}`);
    equal(rest, { status: 'IN_QUEUE' }, 'answer');
    completed(await until(async () => ((s) => s.completed && s)(await e.status(id)), 'completed'), id, plan.ask.text);
  },

  async run_sync() {
    const got = await endpoint('counted').runSync(request(plan.ask));
    holds(anID('sync-').test(got.id), `id ${got.id}`);
    completed(got, got.id, plan.ask.text);
  },

  async status_sync() {
    const e = endpoint('counted');
    const { id } = await e.run(request(plan.ask));
    completed(await e.statusSync(id), id, plan.ask.text);
  },

  async health_counts() {
    equal(await endpoint('counted').health(), { jobs: { ...noJobs, completed: 3 }, workers: oneIdle }, 'health');
  },

  // The wait of /runsync runs out before the job ends: the package goes on with /status-sync.
  async run_sync_longer_than_its_wait() {
    printed = [];
    const got = await endpoint('slow').runSync(request(plan.longer), 1500);
    if (!got.completed) throw new Error(`gave up: ${clip(got)}`);
    completed(got, got.id, plan.longer.text);
    equal(printed.at(-1), `${got.id}: COMPLETED`, 'last line that the package printed');
  },

  async run_sync_times_out() {
    const e = endpoint('stuck');
    const got = await e.runSync(request(plan.ask), 1000);
    equal({ ...got, id: '' }, { id: '', status: 'IN_QUEUE', started: true, completed: false, succeeded: false }, 'answer');
    await e.cancel(got.id);
  },

  async stream() {
    const e = endpoint('fast');
    const { id } = await e.run(request(plan.ask, true));
    equal(textOf(await collect(e.stream(id))), plan.ask.text, 'text');
    equal((await e.status(id)).status, 'COMPLETED', 'status');
  },

  // The pieces of several polls, in order and none twice.
  async stream_while_it_runs() {
    const e = endpoint('slow');
    const { id } = await e.run(request(plan.longer, true));
    const began = performance.now();
    const pieces = [];
    const at = [];
    for await (const piece of e.stream(id)) {
      pieces.push(piece);
      at.push(performance.now() - began);
    }
    equal(textOf(pieces), plan.longer.text, 'text');
    holds(at.at(-1) - at[0] > 500, `all pieces came at once: ${at}`);
  },

  async cancel_running() {
    const e = endpoint('slow');
    const { id } = await e.run(request(plan.endless, true));
    const got = await until(async () => ((s) => s.status === 'IN_PROGRESS' && s)(await e.status(id)), 'in progress');
    equal([got.started, got.completed, got.succeeded], [true, false, false], 'flags');
    holds((await e.stream(id).next()).value.output, 'a piece');
    equal(await e.cancel(id), { id, status: 'CANCELLED' }, 'cancel');
    const end = await e.status(id);
    equal([end.status, end.completed, end.succeeded, end.output], ['CANCELLED', true, false, undefined], 'status');
    equal(await collect(e.stream(id)).then((rest) => rest.every((p) => p.output)), true, 'the rest of the stream');
  },

  async cancel_queued() {
    const e = endpoint('stuck');
    const { id } = await e.run(request(plan.ask));
    equal(await e.status(id), { id, status: 'IN_QUEUE', started: true, completed: false, succeeded: false }, 'status');
    equal(await e.health(), { jobs: { ...noJobs, inQueue: 1 }, workers: noWorkers }, 'health');
    equal(await e.cancel(id), { id, status: 'CANCELLED' }, 'cancel');
    equal((await e.status(id)).status, 'CANCELLED', 'status');
  },

  async purge_queue() {
    const e = endpoint('stuck');
    await Promise.all([1, 2, 3].map(() => e.run(request(plan.ask))));
    equal(await e.purgeQueue(), { removed: 3, status: 'completed' }, 'purge');
    equal((await e.health()).jobs.inQueue, 0, 'jobs in the queue');
  },

  async failed() {
    const got = await endpoint('broken').runSync(request(plan.ask));
    equal([got.status, got.completed, got.succeeded, got.output], ['FAILED', true, false, undefined], 'answer');
    holds(got.error.includes('NoneType'), `error ${got.error}`);
  },

  async timed_out() {
    const got = await endpoint('late').runSync(request(plan.ask));
    equal([got.status, got.completed, got.succeeded], ['TIMED_OUT', true, false], 'answer');
  },

  async wrong_key() {
    const e = endpoint('fast', 'rpa_OTHER');
    for (const call of [() => e.health(), () => e.run(request(plan.ask)), () => e.runSync(request(plan.ask)), () => e.purgeQueue()]) {
      equal(await refused(401, call), { status: 401, title: 'Unauthorized', detail: 'invalid api key' }, 'body');
    }
  },

  async unknown_endpoint() {
    equal(await refused(404, () => endpoint('nobody0').health()), { status: 404, title: 'Not Found', detail: 'endpoint not found' }, 'body');
  },

  async unknown_job() {
    const e = endpoint('fast');
    const id = 'c165626f-0000-4000-8000-000000000000-u1';
    for (const call of [() => e.status(id), () => e.statusSync(id), () => e.cancel(id), () => e.stream(id).next()]) {
      equal(await refused(404, call), { status: 404, title: 'Not Found', detail: 'job not found' }, 'body');
    }
  },

  async too_many() {
    await refused(429, () => endpoint('busy').run(request(plan.ask)));
  },
};

(async () => {
  sdk = (await import(pathToFileURL(path.join(process.argv[2], 'runpod-sdk/dist/src/index.js')))).default;
  for (const [name, check] of Object.entries(checks)) {
    const line = { check: name, ok: true };
    const began = performance.now();
    try {
      await check();
    } catch (e) {
      Object.assign(line, { ok: false, error: String(e), trace: e.stack });
    }
    line.ms = Math.round(performance.now() - began);
    print(JSON.stringify(line));
  }
})();
