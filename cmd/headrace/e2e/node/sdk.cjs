// The official openai package for Node as a client of Headrace.
//
// usage: node sdk.cjs NODE_MODULES PLAN.json
//
// The plan names the address, the models and what each must answer (see plan in plan_test.go). One JSON line is printed for
// every check, {"check": NAME, "ok": true} or with "error"; the Go test turns the lines into subtests.
'use strict';

const { createHash } = require('node:crypto');
const { readFileSync } = require('node:fs');
const { createRequire } = require('node:module');
const path = require('node:path');
const { isDeepStrictEqual, inspect } = require('node:util');

const installed = createRequire(path.join(process.argv[2], 'x.js'));
const OpenAI = installed('openai');
const { zodResponseFormat } = installed('openai/helpers/zod');
const { z } = installed('zod');

const plan = JSON.parse(readFileSync(process.argv[3], 'utf8'));
const client = new OpenAI({ baseURL: plan.base_url, apiKey: plan.api_key, maxRetries: 0, timeout: 60_000 });

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

const request = ({ model, prompt, unit, repeat, max_tokens }) => ({
  model,
  messages: [{ role: 'user', content: prompt ?? unit.repeat(repeat) }],
  max_tokens,
});
const textOf = (chunks) => chunks.map((c) => c.choices[0]?.delta.content ?? '').join('');
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

async function collect(stream) {
  const chunks = [];
  for await (const chunk of await stream) chunks.push(chunk);
  return chunks;
}

const tools = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      description: 'the weather of a city',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false },
    },
  },
];

async function refused(kind, planned, more = {}) {
  try {
    await client.chat.completions.create({ ...request(planned), ...more });
  } catch (e) {
    equal(e.constructor.name, kind.name, `exception (${e})`);
    equal(e.status, planned.status, 'status');
    holds(typeof e.error?.message === 'string' && e.error.message, `not OpenAI's error object: ${clip(e.error)}`);
    holds(!clip(e.error).includes(plan.secret) && !clip([...e.headers]).includes(plan.secret), "the host's key leaked");
    return e;
  }
  throw new Error('no error');
}

const checks = {
  async chat() {
    const planned = plan.chat;
    const answer = await client.chat.completions.create(request(planned));
    equal(answer.choices[0].message.content, planned.text, 'content');
    equal(answer.choices[0].finish_reason, 'length', 'finish_reason');
    equal(answer.usage.completion_tokens, planned.max_tokens, 'completion_tokens');
    equal(answer.usage.total_tokens, answer.usage.prompt_tokens + planned.max_tokens, 'total_tokens');
    holds(answer._request_id, 'no x-request-id in the answer');
  },

  async chat_n() {
    const answer = await client.chat.completions.create({ ...request(plan.chat), n: 3 });
    equal(answer.choices.map((c) => c.index), [0, 1, 2], 'indexes');
    equal(answer.choices.map((c) => c.message.content), plan.choices, 'contents');
  },

  async chat_logprobs() {
    const planned = plan.chat;
    const answer = await client.chat.completions.create({ ...request(planned), logprobs: true, top_logprobs: 2 });
    const { content } = answer.choices[0].logprobs;
    equal(content.length, planned.max_tokens, 'tokens with logprobs');
    equal(content.map((t) => t.token).join(''), planned.text, 'tokens joined');
    holds(content.every((t) => t.logprob <= 0 && t.top_logprobs.length === 2), 'a logprob above 0, or no two top_logprobs');
  },

  async chat_structured() {
    const Person = z.object({ name: z.string(), age: z.number().int(), married: z.boolean(), tags: z.array(z.string()) });
    const answer = await client.chat.completions.parse({
      model: plan.chat.model,
      messages: [{ role: 'user', content: plan.chat.prompt }],
      response_format: zodResponseFormat(Person, 'person'),
    });
    const { message } = answer.choices[0];
    holds(message.parsed && Person.safeParse(message.parsed).success, `not parsed: ${clip(message.content)}`);
  },

  async stream() {
    const chunks = await collect(client.chat.completions.create({ ...request(plan.chat), stream: true }));
    equal(textOf(chunks), plan.chat.text, 'text');
    equal(chunks.map((c) => c.choices[0].finish_reason).filter(Boolean), ['length'], 'finish reasons');
    holds(chunks.every((c) => !c.usage), 'usage though nobody asked for it');
  },

  async stream_usage() {
    const planned = plan.chat;
    const chunks = await collect(
      client.chat.completions.create({ ...request(planned), stream: true, stream_options: { include_usage: true } }),
    );
    equal(textOf(chunks), planned.text, 'text');
    equal(chunks.flatMap((c, i) => (c.usage ? [i] : [])), [chunks.length - 1], 'chunks with usage');
    equal(chunks.at(-1).choices, [], 'choices of the last chunk');
    equal(chunks.at(-1).usage.completion_tokens, planned.max_tokens, 'completion_tokens');
  },

  async stream_continued() {
    const planned = plan.mortal;
    const chunks = await collect(
      client.chat.completions.create({ ...request(planned), stream: true, stream_options: { include_usage: true } }),
    );
    equal(textOf(chunks), planned.text, 'text');
    equal([...new Set(chunks.map((c) => c.id))], [chunks[0].id], 'ids');
    const choices = chunks.flatMap((c) => c.choices);
    equal(choices.flatMap((c) => c.finish_reason ?? []), ['length'], 'finish reasons');
    equal(choices.flatMap((c) => c.delta.role ?? []), ['assistant'], 'roles');
    equal(chunks.at(-1).usage.completion_tokens, planned.max_tokens, 'completion_tokens');
  },

  async stream_tools() {
    // The helper puts the pieces together by index and refuses what does not fit.
    const answer = await client.chat.completions
      .stream({ ...request(plan.chat), tools, tool_choice: 'required' })
      .finalChatCompletion();
    const [call, ...more] = answer.choices[0].message.tool_calls;
    equal(more, [], 'further calls');
    equal(call.function.name, 'get_weather', 'name');
    equal(answer.choices[0].finish_reason, 'tool_calls', 'finish_reason');
    holds(call.id && typeof JSON.parse(call.function.arguments).city === 'string', `call ${clip(call)}`);
  },

  async stream_emoji() {
    const text = textOf(await collect(client.chat.completions.create({ ...request(plan.emoji), stream: true })));
    equal(text, plan.emoji.text, 'text');
    holds(/[\u{10000}-\u{10FFFF}]/u.test(text), "the plan's text has no emoji");
  },

  async streams_50() {
    equal(plan.streams.length, 50, 'streams in the plan');
    await Promise.all(
      plan.streams.map(async (planned) => {
        const chunks = await collect(client.chat.completions.create({ ...request(planned), stream: true }));
        equal(textOf(chunks), planned.text, 'text');
      }),
    );
  },

  async stream_abort() {
    const stream = await client.chat.completions.create({ ...request(plan.slow), stream: true });
    let got = 0;
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content) got++;
      if (got === 3) break; // ends the iteration, which aborts the request
    }
    equal(got, 3, 'chunks before the end');
  },

  async big_prompt() {
    const answer = await client.chat.completions.create(request(plan.big));
    equal(answer.choices[0].message.content, plan.big.text, 'content');
  },

  async completions() {
    const { model, prompt, max_tokens, text } = plan.completion;
    const answer = await client.completions.create({ model, prompt, max_tokens });
    equal(answer.choices[0].text, text, 'text');
  },

  async completions_stream() {
    const { model, prompt, max_tokens, text } = plan.completion;
    const chunks = await collect(client.completions.create({ model, prompt, max_tokens, stream: true }));
    equal(chunks.map((c) => c.choices[0].text).join(''), text, 'text');
  },

  async embeddings() {
    const { inputs, vectors } = plan.embeddings;
    for (const encoding of [{}, { encoding_format: 'float' }]) { // without a wish the SDK asks for base64 and decodes it
      const answer = await client.embeddings.create({ model: plan.model, input: inputs, ...encoding });
      equal(answer.data.map((d) => d.index), inputs.map((_, i) => i), 'indexes');
      answer.data.forEach(({ embedding }, i) => {
        equal(embedding.length, vectors[i].length, 'dimensions');
        holds(embedding.every((x, j) => Math.abs(x - vectors[i][j]) < 1e-6), `another vector ${clip(encoding)}`);
      });
    }
  },

  async responses() {
    const { model, prompt, max_tokens, text } = plan.chat;
    const answer = await client.responses.create({ model, input: prompt, max_output_tokens: max_tokens });
    equal(answer.output_text, text, 'output_text');
    equal(answer.usage.output_tokens, max_tokens, 'output_tokens');
  },

  async responses_stream() {
    const { model, prompt, max_tokens, text } = plan.chat;
    const events = await collect(
      client.responses.create({ model, input: prompt, max_output_tokens: max_tokens, stream: true }),
    );
    equal(
      events.filter((e) => e.type === 'response.output_text.delta').map((e) => e.delta).join(''),
      text,
      'text',
    );
    const last = events.at(-1);
    holds(['response.completed', 'response.incomplete'].includes(last.type), `the last event is ${last.type}`);
    equal(last.response.usage.output_tokens, max_tokens, 'output_tokens');
  },

  async transcription() {
    const planned = plan.upload;
    const audio = Buffer.alloc(planned.bytes, Buffer.from(Array.from({ length: 256 }, (_, i) => (i * 31) & 0xff)));
    equal(sha256(audio), planned.sha256, "the script's own bytes");
    const file = await OpenAI.toFile(audio, 'talk.wav', { type: 'audio/wav' });
    const answer = await client.audio.transcriptions.create({ model: planned.model, file });
    holds(JSON.stringify(answer).includes(planned.sha256), `the host saw other bytes: ${clip(answer)}`);
  },

  async speech() {
    const planned = plan.speech;
    const answer = await client.audio.speech.create({ model: planned.model, voice: 'alloy', input: planned.input });
    const got = Buffer.from(await answer.arrayBuffer());
    equal(got.length, planned.bytes, 'bytes');
    equal(sha256(got), planned.sha256, 'sha256');
  },

  async image() {
    const answer = await client.images.generate({ model: plan.model, prompt: 'a weir', response_format: 'b64_json' });
    equal(Buffer.from(answer.data[0].b64_json, 'base64').toString('latin1', 1, 4), 'PNG', 'signature');
  },

  async moderation() {
    const answer = await client.moderations.create({ model: plan.model, input: 'a weir' });
    equal(typeof answer.results[0].flagged, 'boolean', 'type of the verdict');
  },

  async models() {
    const ids = (await collect(client.models.list())).map((m) => m.id);
    holds(ids.includes(plan.model) && ids.includes(plan.chat.model), `models ${ids}`);
    equal((await client.models.retrieve(plan.model)).id, plan.model, 'id');
  },

  async error_bad_request() {
    await refused(OpenAI.BadRequestError, plan.too_long);
  },

  async error_not_found() {
    equal((await refused(OpenAI.NotFoundError, plan.unknown)).code, 'model_not_found', 'code');
  },

  async error_host_key_refused() {
    await refused(OpenAI.InternalServerError, plan.locked);
  },

  async error_rate_limit() {
    const after = Number((await refused(OpenAI.RateLimitError, plan.busy)).headers.get('retry-after'));
    holds(after >= 1 && after <= plan.busy.retry_after + 30, `Retry-After: ${after}`);
  },

  async error_upstream() {
    await refused(OpenAI.InternalServerError, plan.broken);
  },

  async error_unreachable() {
    await refused(OpenAI.InternalServerError, plan.down);
  },

  async error_stream_refused() {
    await refused(OpenAI.InternalServerError, plan.broken, { stream: true });
  },

  async error_stream_cut() {
    let text = '';
    try {
      for await (const chunk of await client.chat.completions.create({ ...request(plan.cut), stream: true })) {
        text += textOf([chunk]);
      }
    } catch (e) {
      holds(e instanceof OpenAI.APIError, `not an APIError: ${e}`);
      holds(text && plan.cut.text.startsWith(text), `text before the cut: ${clip(text)}`);
      equal(e.status, undefined, 'status');
      return;
    }
    throw new Error(`a clean end after ${clip(text)}`);
  },
};

(async () => {
  for (const [name, check] of Object.entries(checks)) {
    const line = { check: name, ok: true };
    const began = performance.now();
    try {
      await check();
    } catch (e) {
      Object.assign(line, { ok: false, error: String(e), trace: e.stack });
    }
    line.ms = Math.round(performance.now() - began);
    console.log(JSON.stringify(line));
  }
})();
