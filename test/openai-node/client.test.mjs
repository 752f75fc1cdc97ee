// The official OpenAI client chats and streams against a gateway.
// Usage: node client.test.mjs BASE_URL MODEL
import assert from 'node:assert/strict'
import OpenAI, { NotFoundError, BadRequestError } from 'openai'

const [baseURL, model] = process.argv.slice(2)
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0, timeout: 60_000 })
const messages = [{ role: 'user', content: 'Once upon a time' }]
const settings = { model, messages, max_tokens: 40, temperature: 0 }

async function test(name, run) {
  const started = performance.now()
  await run()
  console.log(`ok - ${name} (${Math.round(performance.now() - started)} ms)`)
}

await test('lists the model', async () => {
  const ids = []
  for await (const m of client.models.list()) ids.push(m.id)
  assert.ok(ids.includes(model), `${model} is not among ${ids}`)
  assert.equal((await client.models.retrieve(model)).id, model)
})

let whole
await test('chats', async () => {
  whole = await client.chat.completions.create(settings)
  assert.equal(whole.object, 'chat.completion')
  assert.equal(whole.choices[0].message.role, 'assistant')
  assert.ok(whole.choices[0].message.content.length > 0)
  assert.ok(['stop', 'length'].includes(whole.choices[0].finish_reason))
  assert.ok(whole.usage.prompt_tokens > 0 && whole.usage.completion_tokens > 0)
  assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)
})

await test('streams the same text', async () => {
  const stream = await client.chat.completions.create({ ...settings, stream: true, stream_options: { include_usage: true } })
  let text = '', finish, usage, chunks = 0
  for await (const chunk of stream) {
    chunks++
    text += chunk.choices[0]?.delta?.content ?? ''
    finish = chunk.choices[0]?.finish_reason ?? finish
    usage = chunk.usage ?? usage
  }
  assert.equal(text, whole.choices[0].message.content)
  assert.equal(finish, whole.choices[0].finish_reason)
  for (const kind of ['prompt_tokens', 'completion_tokens', 'total_tokens']) assert.equal(usage[kind], whole.usage[kind])
  assert.ok(chunks > 3, `only ${chunks} chunks`)
})

await test("streams through the client's own helper", async () => {
  const runner = client.chat.completions.stream(settings)
  assert.equal((await runner.finalChatCompletion()).choices[0].message.content, whole.choices[0].message.content)
})

await test('aborts a stream', async () => {
  const stream = await client.chat.completions.create({ ...settings, max_tokens: 400, stream: true })
  for await (const _ of stream) {
    stream.controller.abort()
    break
  }
})

await test('completes text', async () => {
  const c = await client.completions.create({ model, prompt: 'Once upon a time', max_tokens: 10, temperature: 0 })
  assert.equal(c.object, 'text_completion')
  assert.ok(c.choices[0].text.length > 0)
  assert.equal(c.usage.completion_tokens, 10)
})

await test('gets errors in their usual shape', async () => {
  await assert.rejects(client.chat.completions.create({ ...settings, model: 'nobody' }), e => {
    assert.ok(e instanceof NotFoundError)
    assert.equal(e.code, 'model_not_found')
    return true
  })
  await assert.rejects(client.chat.completions.create({ ...settings, messages: [{ role: 'user', content: 'far too long '.repeat(2000) }] }), BadRequestError)
})
