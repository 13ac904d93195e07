// Tool loops through a vendor's SDK for Node: clients.mjs MODULES URL KEY CLIENT MODEL...
// Prints {"models": [...], "MODEL stream": [text, call, arguments, last text], "MODEL whole": ...}.
import { createRequire } from "node:module";

const [modules, url, key, client, ...models] = process.argv.slice(2);
const load = createRequire(`${modules}/`);
const question = "How is it?";
const result = "22 degrees";
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

async function claude() {
  const { Anthropic } = load("@anthropic-ai/sdk");
  const sdk = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
  const tools = [{ name: "look", description: "Looks.", input_schema: schema }];
  const ask = async (model, stream, messages) => {
    const body = { model, max_tokens: 4096, messages, tools };
    return stream ? sdk.messages.stream(body).finalMessage() : sdk.messages.create(body);
  };
  const text = (message) => message.content.filter((b) => b.type === "text").map((b) => b.text).join("");
  const loop = async (model, stream) => {
    const messages = [{ role: "user", content: question }];
    const first = await ask(model, stream, messages);
    const call = first.content.find((block) => block.type === "tool_use");
    messages.push({ role: "assistant", content: first.content });
    messages.push({ role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: result }] });
    return [text(first), call.name, call.input, text(await ask(model, stream, messages))];
  };
  return { loop, list: async () => (await sdk.models.list()).data.map((model) => model.id) };
}

function openai() {
  const { OpenAI } = load("openai");
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
}

const names = async (sdk) => (await sdk.models.list()).data.map((model) => model.id);

async function chat() {
  const sdk = openai();
  const tools = [{ type: "function", function: { name: "look", description: "Looks.", parameters: schema } }];
  const ask = async (model, stream, messages) => {
    const body = { model, messages, tools };
    const answer = stream
      ? await sdk.chat.completions.stream({ ...body, stream_options: { include_usage: true } }).finalChatCompletion()
      : await sdk.chat.completions.create(body);
    return answer.choices[0].message;
  };
  const loop = async (model, stream) => {
    const messages = [{ role: "user", content: question }];
    const first = await ask(model, stream, messages);
    const call = first.tool_calls[0];
    messages.push(first, { role: "tool", tool_call_id: call.id, content: result });
    const last = await ask(model, stream, messages);
    return [first.content, call.function.name, JSON.parse(call.function.arguments), last.content];
  };
  return { loop, list: () => names(sdk) };
}

async function responses() {
  const sdk = openai();
  const tools = [{ type: "function", name: "look", description: "Looks.", parameters: schema, strict: false }];
  const ask = async (model, stream, input) => {
    const body = { model, input, tools, store: false, include: ["reasoning.encrypted_content"] };
    return stream ? sdk.responses.stream(body).finalResponse() : sdk.responses.create(body);
  };
  const text = (answer) => answer.output.flatMap((item) => item.content ?? []).map((part) => part.text ?? "").join("");
  const loop = async (model, stream) => {
    const input = [{ role: "user", content: question }];
    const first = await ask(model, stream, input);
    const call = first.output.find((item) => item.type === "function_call");
    input.push(...first.output, { type: "function_call_output", call_id: call.call_id, output: result });
    return [text(first), call.name, JSON.parse(call.arguments), text(await ask(model, stream, input))];
  };
  return { loop, list: () => names(sdk) };
}

async function gemini() {
  const { GoogleGenAI } = load("@google/genai");
  const sdk = new GoogleGenAI({ apiKey: key, httpOptions: { baseUrl: url } });
  const config = { tools: [{ functionDeclarations: [{ name: "look", description: "Looks.", parametersJsonSchema: schema }] }] };
  const ask = async (model, stream, contents) => {
    const body = { model, contents, config };
    const parts = [];
    const answers = stream ? await sdk.models.generateContentStream(body) : [await sdk.models.generateContent(body)];
    for await (const answer of answers) parts.push(...(answer.candidates?.[0]?.content?.parts ?? []));
    return parts;
  };
  const text = (parts) => parts.filter((part) => part.text && !part.thought).map((part) => part.text).join("");
  const loop = async (model, stream) => {
    const contents = [{ role: "user", parts: [{ text: question }] }];
    const first = await ask(model, stream, contents);
    const { id, name, args } = first.find((part) => part.functionCall).functionCall;
    contents.push({ role: "model", parts: first });
    contents.push({ role: "user", parts: [{ functionResponse: { id, name, response: { output: result } } }] });
    return [text(first), name, args, text(await ask(model, stream, contents))];
  };
  const list = async () => {
    const found = [];
    for await (const model of await sdk.models.list()) found.push(model.name.replace("models/", ""));
    return found;
  };
  return { loop, list };
}

const { loop, list } = await { claude, chat, responses, gemini }[client]();
const told = { models: await list() };
for (const model of models) {
  told[`${model} stream`] = await loop(model, true);
  told[`${model} whole`] = await loop(model, false);
}
console.log(JSON.stringify(told));
