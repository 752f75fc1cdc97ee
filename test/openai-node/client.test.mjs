// The official OpenAI client asks a gateway for everything that Estiba serves.
// Usage: node client.test.mjs BASE_URL; the models are those of test/openai.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import OpenAI, { APIConnectionTimeoutError, APIUserAbortError, BadRequestError, InternalServerError, NotFoundError, RateLimitError } from 'openai'

const [baseURL] = process.argv.slice(2)
const options = { baseURL, apiKey: 'none', maxRetries: 0, timeout: 60_000 }
const client = new OpenAI(options)
const model = 'stories'
const opening = 'Once upon a time'
const messages = [{ role: 'user', content: opening }]
const settings = { model, messages, max_tokens: 24, temperature: 0 }

async function test(name, run) {
  const started = performance.now()
  try {
    await run()
  } catch (e) {
    console.log(`not ok - ${name}: ${e.stack ?? e}`)
    process.exitCode = 1
    return
  }
  console.log(`ok - ${name} (${Math.round(performance.now() - started)} ms)`)
}

// create is the first choice of a chat with these changes to the settings.
const create = async changes => (await client.chat.completions.create({ ...settings, ...changes })).choices[0]

// refused says that a chat with these changes fails so.
async function refused(changes, kind, check = () => {}) {
  for (const stream of [false, true]) {
    await assert.rejects(client.chat.completions.create({ ...settings, ...changes, stream }), e => {
      assert.ok(e instanceof kind, `${e.constructor.name}: ${e.message}`)
      assert.ok(e.type && e.error.message, JSON.stringify(e.error))
      check(e)
      return true
    })
  }
}

await test('lists models', async () => {
  const ids = []
  for await (const m of client.models.list()) ids.push(m.id)
  assert.ok(ids.includes(model) && ids.includes('asleep'), `${ids}`)
  assert.equal((await client.models.retrieve(model)).id, model)
  await assert.rejects(client.models.retrieve('nobody'), NotFoundError)
})

let whole
await test('chats', async () => {
  whole = await client.chat.completions.create(settings)
  assert.equal(whole.object, 'chat.completion')
  assert.equal(whole.model, model)
  const { message, finish_reason } = whole.choices[0]
  assert.equal(message.role, 'assistant')
  assert.equal(message.refusal, null)
  assert.ok(message.content.length > 0)
  assert.equal(finish_reason, 'length')
  assert.equal(whole.usage.completion_tokens, 24)
  assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)
  const { response, request_id } = await client.chat.completions.create(settings).withResponse()
  assert.equal(response.status, 200)
  assert.ok(request_id)
})

await test('chats in parts, as system, developer and assistant', async () => {
  await create({
    messages: [{ role: 'system', content: 'Tell.' }, { role: 'developer', content: [{ type: 'text', text: 'Short.' }] },
      { role: 'user', content: [{ type: 'text', text: 'Once' }, { type: 'text', text: ' upon' }] }, { role: 'assistant', content: 'a' }, { role: 'user', content: 'time' }],
    max_tokens: undefined, max_completion_tokens: 3, user: 'u', metadata: { a: 'b' }, store: false, seed: 1,
  })
})

await test('streams the same text', async () => {
  const stream = await client.chat.completions.create({ ...settings, stream: true, stream_options: { include_usage: true } })
  let text = '', finish, usage, chunks = 0
  for await (const chunk of stream) {
    chunks++
    text += chunk.choices[0]?.delta?.content ?? ''
    finish = chunk.choices[0]?.finish_reason ?? finish
    if (chunk.usage) usage = chunk.usage
    assert.equal(chunk.choices.length === 0, Boolean(chunk.usage))
  }
  assert.equal(text, whole.choices[0].message.content)
  assert.equal(finish, whole.choices[0].finish_reason)
  for (const kind of ['prompt_tokens', 'completion_tokens', 'total_tokens']) assert.equal(usage[kind], whole.usage[kind])
  assert.ok(chunks > 5, `only ${chunks} chunks`)
})

await test("streams through the client's own helper", async () => {
  const runner = client.chat.completions.stream({ ...settings, stream_options: { include_usage: true } })
  assert.equal((await runner.finalChatCompletion()).choices[0].message.content, whole.choices[0].message.content)
  assert.equal((await runner.totalUsage()).completion_tokens, 24)
})

await test('gives logprobs', async () => {
  const c = await create({ logprobs: true, top_logprobs: 2 })
  const list = c.logprobs.content
  assert.equal(list.length, 24)
  assert.equal(Buffer.from(list.flatMap(l => l.bytes)).toString(), c.message.content)
  for (const l of list) {
    assert.equal(l.top_logprobs.length, 2)
    assert.equal(l.top_logprobs[0].logprob, l.logprob)
  }
})

await test('samples by seed, several at once', async () => {
  const some = { n: 3, seed: 11, temperature: 1.1, top_p: 0.95, presence_penalty: 0.5, frequency_penalty: -0.5 }
  const texts = async () => (await client.chat.completions.create({ ...settings, ...some })).choices.map(c => c.message.content)
  const first = await texts()
  assert.equal(first.length, 3)
  assert.ok(new Set(first).size > 1)
  assert.deepEqual(await texts(), first)
  const streamed = ['', '', '']
  for await (const chunk of await client.chat.completions.create({ ...settings, ...some, stream: true })) {
    for (const c of chunk.choices) streamed[c.index] += c.delta.content ?? ''
  }
  assert.deepEqual(streamed, first)
})

await test('stops', async () => {
  const text = whole.choices[0].message.content
  const at = text.indexOf(' ')
  for (const stop of [text.slice(at, at + 3), ['never seen', text.slice(at, at + 3)]]) {
    const c = await create({ stop })
    assert.equal(c.message.content, text.slice(0, at))
    assert.equal(c.finish_reason, 'stop')
  }
})

await test('is biased', async () => {
  const { tokens } = await client.post(new URL('/tokenize', baseURL).href, { body: { model, prompt: 'the', add_special_tokens: false } })
  const c = await create({ logit_bias: { [tokens[0]]: 100 }, logprobs: true, max_tokens: 4 })
  assert.ok(c.logprobs.content.every(l => l.token.trim() === 'the'), c.message.content)
  assert.equal((await create({ top_k: 1, temperature: 2, min_p: 0.1 })).message.content, whole.choices[0].message.content)
})

await test('completes text', async () => {
  const base = { model, prompt: opening, max_tokens: 10, temperature: 0 }
  const c = await client.completions.create(base)
  assert.equal(c.object, 'text_completion')
  assert.equal(c.usage.completion_tokens, 10)
  let text = ''
  for await (const chunk of await client.completions.create({ ...base, stream: true })) text += chunk.choices[0]?.text ?? ''
  assert.equal(text, c.choices[0].text)
  const several = await client.completions.create({ ...base, prompt: [opening, 'One day'], n: 2, echo: true, logprobs: 2 })
  assert.deepEqual(several.choices.map(c => c.index), [0, 1, 2, 3])
  several.choices.forEach((c, i) => {
    assert.ok(c.text.startsWith([opening, 'One day'][i >> 1]), c.text)
    assert.equal(c.logprobs.tokens.length, c.logprobs.token_logprobs.length)
  })
  assert.equal((await client.completions.create({ ...base, prompt: [[1, 403, 407], [1, 411]] })).usage.prompt_tokens, 5)
  await assert.rejects(client.completions.create({ ...base, suffix: 'x' }), BadRequestError)
  await assert.rejects(client.completions.create({ ...base, best_of: 3 }), BadRequestError)
})

await test('embeds', async () => {
  const input = ['a ship', 'a harbour']
  const float = await client.embeddings.create({ model: 'encoder', input, encoding_format: 'float' })
  const packed = await client.embeddings.create({ model: 'encoder', input }) // as base64, which the client unpacks
  assert.equal(float.data.length, 2)
  float.data.forEach((d, i) => {
    assert.equal(d.index, i)
    assert.ok(Math.abs(Math.hypot(...d.embedding) - 1) < 1e-5)
    d.embedding.forEach((x, j) => assert.ok(Math.abs(x - packed.data[i].embedding[j]) < 1e-5))
  })
  assert.ok(float.usage.prompt_tokens > 0)
  await assert.rejects(client.embeddings.create({ model: 'encoder', input, dimensions: 3 }), BadRequestError)
})

const tools = [
  { type: 'function', function: { name: 'turn', description: 'Turn the ship.', parameters: { type: 'object', properties: { side: { enum: ['port', 'starboard'] }, hard: { type: 'boolean' } }, required: ['side', 'hard'], additionalProperties: false } } },
  { type: 'function', function: { name: 'anchor', parameters: { type: 'object', properties: { down: { type: 'boolean' } }, required: ['down'], additionalProperties: false } } },
]
const withTools = { model: 'tools', tools, max_tokens: 300 }

function valid(calls) {
  assert.equal(new Set(calls.map(c => c.id)).size, calls.length)
  for (const c of calls) {
    assert.equal(c.type, 'function')
    const a = JSON.parse(c.function.arguments)
    if (c.function.name === 'turn') assert.ok(['port', 'starboard'].includes(a.side) && typeof a.hard === 'boolean' && Object.keys(a).length === 2, c.function.arguments)
    else assert.ok(c.function.name === 'anchor' && typeof a.down === 'boolean' && Object.keys(a).length === 1, c.function.arguments)
  }
}

await test('calls tools', async () => {
  for (const changes of [{}, { tool_choice: 'auto' }, { tool_choice: 'none' }]) {
    const c = await create({ ...withTools, ...changes, max_tokens: 20 })
    assert.ok(c.message.content && !c.message.tool_calls)
  }
  const one = await create({ ...withTools, tool_choice: 'required', parallel_tool_calls: false })
  assert.equal(one.finish_reason, 'tool_calls')
  assert.equal(one.message.content, null)
  assert.equal(one.message.tool_calls.length, 1)
  valid(one.message.tool_calls)

  const pieces = []
  for await (const chunk of await client.chat.completions.create({ ...settings, ...withTools, tool_choice: 'required', parallel_tool_calls: false, stream: true })) {
    pieces.push(...(chunk.choices[0]?.delta.tool_calls ?? []))
  }
  assert.ok(pieces.length > 2 && pieces[0].id && pieces.slice(1).every(p => !p.id && !p.function.name && p.index === 0))
  assert.equal(pieces[0].function.name, one.message.tool_calls[0].function.name)
  assert.equal(pieces.map(p => p.function.arguments ?? '').join(''), one.message.tool_calls[0].function.arguments)

  const runner = client.chat.completions.stream({ ...settings, ...withTools, tool_choice: 'required', parallel_tool_calls: false })
  valid((await runner.finalChatCompletion()).choices[0].message.tool_calls)

  for (const seed of [1, 2, 3]) {
    const c = await create({ ...withTools, tool_choice: { type: 'function', function: { name: 'anchor' } }, temperature: 1.5, seed })
    assert.deepEqual(c.message.tool_calls.map(c => c.function.name), ['anchor'])
    valid(c.message.tool_calls)
  }
  const several = await client.chat.completions.create({ ...settings, ...withTools, tool_choice: 'required', n: 4, temperature: 1.2, seed: 5, max_tokens: undefined })
  for (const c of several.choices) {
    assert.ok(c.message.tool_calls.length > 0)
    if (c.finish_reason === 'tool_calls') valid(c.message.tool_calls)
  }
  const strict = tools.map(t => ({ ...t, function: { ...t.function, strict: true } }))
  const free = await create({ ...withTools, tools: strict, max_tokens: 20 })
  if (free.message.tool_calls && free.finish_reason === 'tool_calls') valid(free.message.tool_calls)

  const next = await create({ ...withTools, max_tokens: 20, messages: [...messages, one.message, { role: 'tool', tool_call_id: one.message.tool_calls[0].id, content: 'done' }] })
  assert.ok(next.message.content)
})

await test("runs tools by the client's own helper", async () => {
  const seen = []
  const runner = client.chat.completions.runTools({
    ...settings, ...withTools, tool_choice: { type: 'function', function: { name: 'anchor' } },
    tools: [{ type: 'function', function: { ...tools[1].function, parse: JSON.parse, function: a => { seen.push(a); return 'done' } } }],
  })
  await runner.done()
  assert.equal(seen.length, 1)
  assert.equal(typeof seen[0].down, 'boolean')
})

const schema = {
  type: 'object', properties: { cargo: { type: 'string', maxLength: 8 }, tons: { type: 'integer', minimum: 0, maximum: 99 }, kind: { enum: ['bulk', 'tank'] } },
  required: ['cargo', 'tons', 'kind'], additionalProperties: false,
}

await test('answers in structure', async () => {
  const response_format = { type: 'json_schema', json_schema: { name: 'load', strict: true, schema } }
  for (const seed of [1, 2, 3]) {
    const c = await create({ response_format, temperature: 1, seed, max_tokens: 200 })
    assert.equal(c.finish_reason, 'stop')
    const load = JSON.parse(c.message.content)
    assert.ok([...load.cargo].length <= 8 && Number.isInteger(load.tons) && load.tons < 100 && ['bulk', 'tank'].includes(load.kind), c.message.content)
  }
  const parsed = await client.chat.completions.parse({ ...settings, response_format, max_tokens: 200 })
  assert.ok(parsed.choices[0].message.parsed.kind)
  assert.match((await create({ response_format: { type: 'json_object' } })).message.content, /^\s*\{/)
  await create({ response_format: { type: 'text' } })

  const structured = async value => (await create({ structured_outputs: value, max_tokens: 200 })).message.content
  assert.match(await structured({ choice: ['port', 'starboard'] }), /^(port|starboard)$/)
  assert.match(await structured({ regex: '[ab]{3}-[0-9]{2}' }), /^[ab]{3}-[0-9]{2}$/)
  assert.ok(JSON.parse(await structured({ json: schema })).kind)
  assert.match(await structured({ grammar: 'root ::= "aye" (", " "sir")?' }), /^aye(, sir)?$/)
  await refused({ structured_outputs: { regex: '(' } }, BadRequestError)
})

await test('gets errors in their usual shape', async () => {
  await refused({ model: 'nobody' }, NotFoundError, e => assert.equal(e.code, 'model_not_found'))
  await refused({ messages: [{ role: 'user', content: 'far too long '.repeat(2000) }] }, BadRequestError, e => assert.equal(e.code, 'context_length_exceeded'))
  await refused({ temperature: 3 }, BadRequestError, e => assert.equal(e.param, 'temperature'))
  await refused({ surprise: 1 }, BadRequestError, e => assert.equal(e.param, 'surprise'))
  await refused({ messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:,' } }] }] }, BadRequestError)
  await refused({ model: 'suspended' }, InternalServerError, e => {
    assert.equal(e.status, 503)
    assert.ok(e.headers.get('retry-after'))
  })
  await assert.rejects(client.responses.create({ model, input: 'x' }), NotFoundError)
})

await test('wakes a model', async () => {
  assert.ok((await create({ model: 'asleep' })).message.content)
})

await test('is sent away from a full queue, and comes back', async () => {
  const many = { ...settings, model: 'busy', n: 8, max_tokens: 200, temperature: 1 }
  const crowd = new AbortController()
  const drain = async () => {
    for await (const _ of await client.chat.completions.create({ ...many, stream: true }, { signal: crowd.signal }));
  }
  let full
  const seen = new Promise(resolve => { full = resolve })
  const requests = Array.from({ length: 128 }, () => drain().catch(e => e instanceof APIUserAbortError || full(e)))
  const e = await Promise.race([seen, new Promise((_, reject) => setTimeout(reject, 20_000, new Error('nobody was refused')).unref())])
  assert.ok(e instanceof RateLimitError, `${e}`)
  assert.ok(e.headers.get('retry-after'))
  let tries = 0
  const patient = new OpenAI({
    ...options, maxRetries: 5,
    fetch: async (...args) => {
      if (++tries === 2) { // there is room from now on
        crowd.abort()
        await Promise.all(requests)
      }
      return fetch(...args)
    },
  })
  const c = await patient.chat.completions.create({ ...many, n: 128, max_tokens: 1 })
  crowd.abort()
  assert.equal(c.choices.length, 128)
  assert.ok(tries > 1)
})

await test('is cancelled, and times out', async () => {
  const long = { ...settings, max_tokens: 400, n: 8, temperature: 1, ignore_eos: true }
  const stream = await client.chat.completions.create({ ...long, stream: true })
  for await (const _ of stream) {
    stream.controller.abort()
    break
  }
  const abort = new AbortController()
  setTimeout(() => abort.abort(), 50)
  await assert.rejects(client.chat.completions.create(long, { signal: abort.signal }), APIUserAbortError)
  await assert.rejects(client.chat.completions.create(long, { timeout: 30 }), APIConnectionTimeoutError)
  await create({}) // the gateway goes on
})

await test('the contract lists every service of the client', async () => {
  const page = fs.readFileSync(new URL('../../docs/contract.md', import.meta.url), 'utf8')
  const table = page.split('<!-- services -->')[1].split('<!-- end of services -->')[0].toLowerCase()
  for (const [name, service] of Object.entries(client)) {
    if (service?._client) assert.ok(table.includes('`' + name.toLowerCase() + '`'), name)
  }
})
