// The turns of a conversation, and what of them is sent back to the model. Knows no document.

/** An answer under way. `calls` hold `{id, name, arguments, result}`; `finish` is null until the
 *  model ended the answer by itself. */
export function newAnswer() {
  return { role: "assistant", content: "", reasoning: "", calls: [], finish: null };
}

/** Take up one chunk of the stream; whether it brought anything of the answer. */
export function absorb(answer, chunk) {
  const choice = chunk.choices[0];
  if (!choice) return false;
  const { content, reasoning_content: reasoning, tool_calls: calls = [] } = choice.delta;
  answer.content += content ?? "";
  answer.reasoning += reasoning ?? "";
  for (const { index, id, function: part } of calls) {
    answer.calls[index] ??= { id, name: part.name, arguments: "", result: null };
    answer.calls[index].arguments += part.arguments ?? "";
  }
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  return Boolean(content || reasoning || calls.length);
}

/** The arguments as an object; null if they are none, which an unguided model may write. */
export function argumentsOf(call) {
  try {
    const parsed = JSON.parse(call.arguments);
    return parsed && typeof parsed === "object" && !Array.isArray(parsed) ? parsed : null;
  } catch {
    return null;
  }
}

/** Whether a user may answer the calls: all came whole, and the server would take them back. */
export const mayBeAnswered = (answer) =>
  answer.finish === "tool_calls" && answer.calls.every((call) => argumentsOf(call) !== null);

const wasAnswered = (answer) =>
  answer.calls.length > 0 && answer.calls.every((call) => call.result !== null);

/** The conversation as the API takes it. Calls that nobody answered are left out, with what was
 *  thought before them; so is an answer that has nothing else. */
export function messagesOf(turns, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "user") {
      messages.push({ role: "user", content: turn.content });
    } else if (wasAnswered(turn)) {
      messages.push(withCalls(turn), ...turn.calls.map(resultOf));
    } else if (turn.content) {
      messages.push({ role: "assistant", content: turn.content });
    }
  }
  return messages;
}

function withCalls({ content, reasoning, calls }) {
  return {
    role: "assistant",
    content: content || null,
    ...(reasoning && { reasoning_content: reasoning }),
    tool_calls: calls.map(({ id, name, arguments: text }) => ({
      id,
      type: "function",
      function: { name, arguments: text },
    })),
  };
}

const resultOf = ({ id, result }) => ({ role: "tool", tool_call_id: id, content: result });
