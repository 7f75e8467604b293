// Requests to the server that this page came from: what they say, what comes back, and its errors in words.

import { messagesBefore } from "./conversation.js";

const NUMBERS = [
  "temperature", "max_tokens", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty",
  "frequency_penalty",
];
const MEANINGS = {
  401: "The server wants an API key: set it under Settings.",
  404: "The server does not know what was asked for.",
  413: "This is longer than the server takes.",
  422: "The server does not take this.",
  429: "The server has too much to do. Try again in a moment.",
  500: "The server failed.",
  503: "The server is not ready.",
};

export class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// What asks one side for the answer of turn `n`: {path, body}.
export function requestOf({ mode, talks, settings }, n, { model, side }) {
  const turns = talks[mode];
  const body = { model };
  if (mode === "chat") body.messages = messagesBefore(turns, n, side, settings.system);
  else body.prompt = turns[n].prompt;
  for (const name of NUMBERS) if (settings[name] !== "") body[name] = Number(settings[name]);
  const stops = settings.stop.split("\n").filter((line) => line !== "").map(unescaped);
  if (stops.length) body.stop = stops;
  if (settings.colors) {
    const most = Number(settings.alternatives);
    if (mode === "chat") Object.assign(body, { logprobs: true, top_logprobs: most });
    else body.logprobs = most;
  }
  Object.assign(body, { stream: true, stream_options: { include_usage: true } });
  return { path: mode === "chat" ? "v1/chat/completions" : "v1/completions", body };
}

// `\n` and `\t` as they are written in a field of one line each; a backslash before anything else stays.
function unescaped(line) {
  return line.replace(/\\([nrt\\])/g, (_, letter) => ({ n: "\n", r: "\r", t: "\t", "\\": "\\" })[letter]);
}

// The same request in a shell. The key is a variable there: what is copied is often shown to others.
export function curlOf({ path, body }, hasKey) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [`curl -N ${quoted(new URL(path, document.baseURI).href)}`, "-H 'Content-Type: application/json'"];
  if (hasKey) lines.push('-H "Authorization: Bearer $API_KEY"');
  lines.push(`-d ${quoted(JSON.stringify(body, null, 1))}`);
  return lines.join(" \\\n  ") + "\n";
}

export async function listModels(key) {
  const answer = await ask("v1/models", { headers: headersOf(key) });
  return (await answer.json()).data.map((model) => model.id);
}

const headersOf = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof TypeError && /header|ByteString|ISO-8859/i.test(error.message)) {
      throw new Refusal("The API key has characters that no request can carry: set it again under Settings.", 401);
    }
    throw new Refusal("The server cannot be reached: is it still running?");
  }
  if (answer.ok) return answer;
  throw new Refusal(inWords(answer.status, await answer.text().catch(() => "")), answer.status);
}

// OpenAI's {error: {message}}, FastAPI's {detail}, or what the number means.
function inWords(status, text) {
  let detail = null;
  try {
    const body = JSON.parse(text);
    detail = body.error?.message ?? body.detail ?? body.message;
  } catch { /* not JSON: a proxy's page, which says less than the number */ }
  const meaning = MEANINGS[status] ?? `The server answered ${status}.`;
  if (detail === null || detail === undefined) return meaning;
  const said = typeof detail === "string" ? detail : JSON.stringify(detail);
  return status === 401 || status >= 429 ? `${meaning} It says: ${said}` : `The server refused: ${said}`;
}

// Yields {text, tokens, finish, usage} of a streamed answer, as it arrives; whichever of them a chunk has.
export async function* stream({ path, body }, key, signal) {
  const headers = { "Content-Type": "application/json", ...headersOf(key) };
  const answer = await ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!(answer.headers.get("Content-Type") ?? "").startsWith("text/event-stream")) {
    throw new Refusal("The server did not stream: is something between it and this page?");
  }
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new Refusal("The server sent what is not JSON.");
    }
    if (chunk.error) throw new Refusal(`The server failed: ${chunk.error.message ?? JSON.stringify(chunk.error)}`);
    yield read(chunk);
  }
  throw new Refusal("The connection ended before the answer did.");
}

// The data of server-sent events: of each, its `data:` lines joined.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  let lines = [];
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The connection broke before the answer was whole.");
    }
    if (part.done) return;
    waiting += part.value;
    const whole = waiting.split(/\r?\n/);
    waiting = whole.pop();
    for (const line of whole) {
      if (line.startsWith("data:")) lines.push(line.slice(5).replace(/^ /, ""));
      if (line !== "" || !lines.length) continue;
      yield lines.join("\n");
      lines = [];
    }
  }
}

function read({ choices, usage }) {
  const choice = choices?.[0];
  if (!choice) return { text: "", tokens: [], finish: null, usage };
  const text = choice.delta ? (choice.delta.content ?? "") : (choice.text ?? "");
  return { text, tokens: tokensOf(choice.logprobs), finish: choice.finish_reason ?? null, usage };
}

// Tokens of both endpoints' shapes: a list of objects for chat, lists side by side for texts.
function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map((t) => [t.token, t.logprob, (t.top_logprobs ?? []).map((o) => [o.token, o.logprob])]);
  }
  const tops = logprobs.top_logprobs ?? [];
  const byChance = (top) => Object.entries(top ?? {}).sort((a, b) => b[1] - a[1]);
  return (logprobs.tokens ?? []).map((token, i) => [token, logprobs.token_logprobs[i], byChance(tops[i])]);
}
