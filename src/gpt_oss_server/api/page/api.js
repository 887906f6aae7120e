// The server, as this page uses it: health, models, and a streamed chat completion.

/** Why there is no answer, in the server's words where it had any. */
export class Failure extends Error {
  constructor(message, { status = null, code = null, requestId = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }
}

const KEY = "api-key";

/** The key that the user gave; kept for this tab only. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** UTF-8, a character for each byte: all that `fetch` takes in a header. */
const asBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

async function reach(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${asBytes(key.get())}`;
  try {
    return await fetch(path, { ...options, headers });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Failure("The server cannot be reached.");
  }
}

async function refusal(response) {
  const { error = {} } = await response.json().catch(() => ({}));
  return new Failure(error.message ?? `The server answered ${response.status}.`, {
    status: response.status,
    code: error.code ?? null,
    requestId: response.headers.get("x-request-id"),
    retryAfter: response.headers.get("retry-after"),
  });
}

/** `{ready, words}`; never fails. */
export async function health() {
  try {
    const { status, reason } = await (await reach("health")).json();
    return { ready: status === "ready", words: status === "ready" ? "ready" : reason };
  } catch {
    return { ready: false, words: "not reachable" };
  }
}

/** The model's name and the length of its context (null: not known yet). Throws Failure. */
export async function model() {
  const response = await reach("v1/models");
  if (!response.ok) throw await refusal(response);
  const [{ id, max_model_len: context }] = (await response.json()).data;
  return { id, context };
}

/** Ask for a chat completion: `{where, chunks}`, once the answer begins. Throws Failure, or
 *  AbortError if `signal` said so; so does `chunks`, when the answer breaks off. */
export async function chat(body, signal) {
  const response = await reach("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const predicted = response.headers.get("x-kv-predicted-bytes");
  const where = {
    route: response.headers.get("x-route"),
    reason: response.headers.get("x-route-reason"),
    predictedKvBytes: predicted === null ? null : Number(predicted),
    requestId: response.headers.get("x-request-id"),
  };
  return { where, chunks: chunksOf(response, where.requestId) };
}

async function* chunksOf(response, requestId) {
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Failure(chunk.error.message, { code: chunk.error.code, requestId });
    yield chunk;
  }
  throw new Failure("The connection ended before the answer did.", { requestId });
}

async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (waiting + value).split("\n\n");
      waiting = events.pop();
      for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
    }
  } catch (problem) {
    if (problem.name === "AbortError" || problem instanceof Failure) throw problem;
    throw new Failure("The connection broke off.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
