// What the npm package `openai` sees of a served model: one JSON line. Arguments: URL, model.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "The penstock is the gate" }];
const how = { model, messages, temperature: 0, max_tokens: 24 };
const endless = { ...how, max_tokens: 900, ignore_eos: true };
const tools = [{ type: "function", function: { name: "f", parameters: { type: "object" } } }];

async function refusal(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    return [error.constructor.name, error.status ?? null, error.param ?? null];
  }
}

const said = {};
const whole = await client.chat.completions.create(how);
said.whole = whole.choices[0].message.content;
said.tokens = whole.usage.completion_tokens;
said.streamed = "";
const options = { include_usage: true };
for await (const part of await client.chat.completions.create({ ...how, stream: true, stream_options: options })) {
  said.streamed += part.choices[0]?.delta?.content ?? "";
  said.usage = part.usage?.completion_tokens ?? null;
}
const helper = client.chat.completions.stream(how);
said.helper = (await helper.finalChatCompletion()).choices[0].message.content;
const responses = client.responses.stream({ model, input: messages[0].content, temperature: 0, max_output_tokens: 24 });
said.response = (await responses.finalResponse()).output_text;
said.models = (await client.models.list()).data.map((each) => each.id);
said.tools = await refusal(client.chat.completions.create({ ...how, tools }));
said.unknown = await refusal(client.chat.completions.create({ ...how, bogus: 1 }));
said.nowhere = await refusal(client.chat.completions.create({ ...how, model: "nope" }));
said.embeddings = await refusal(client.embeddings.create({ model, input: "x" }));
said.timeout = await refusal(client.chat.completions.create(endless, { timeout: 300 }));
const stream = await client.chat.completions.create({ ...endless, stream: true });
for await (const part of stream) break; // which cancels it
console.log(JSON.stringify(said));
