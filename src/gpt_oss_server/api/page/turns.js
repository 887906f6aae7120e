// How turns look: what the user said, and an answer as it grows. Knows no server.

import { argumentsOf, mayBeAnswered } from "./conversation.js";
import { copies, copyOf, element } from "./dom.js";
import { figures } from "./facts.js";
import { GrowingText } from "./format.js";

export function userTurn(content) {
  const shown = copyOf("user-turn");
  shown.querySelector(".text").textContent = content;
  return shown;
}

/** One answer in the document; `show` may be called as often as anything comes. */
export class AnswerView {
  #text;
  #calls = [];
  #due = null;

  constructor(answer) {
    this.answer = answer;
    this.root = copyOf("assistant-turn");
    this.#text = new GrowingText(this.#part(".text"));
    copies(this.#part(".facts .copy"), () => answer.content);
  }

  #part(selector) {
    return this.root.querySelector(selector);
  }

  /** Show what there is with the next frame; `shown` is called after it. */
  show(shown) {
    this.#due ??= requestAnimationFrame(() => {
      this.#due = null;
      this.#draw();
      shown();
    });
  }

  #draw() {
    const { content, reasoning, calls } = this.answer;
    this.#part(".waiting").hidden = Boolean(content || reasoning || calls.length);
    this.#part(".reasoning").hidden = !reasoning;
    this.#part(".reasoning-text").textContent = reasoning;
    this.root.classList.toggle("thinks", !content && !calls.length);
    this.#text.show(content);
    calls.forEach((call, index) => this.#drawCall(call, index));
  }

  #drawCall(call, index) {
    if (!this.#calls[index]) {
      this.#calls[index] = copyOf("tool-call");
      this.#part(".calls").append(this.#calls[index]);
      this.#part(".calls").hidden = false;
    }
    const shown = this.#calls[index];
    const parsed = argumentsOf(call);
    shown.querySelector(".call-name").textContent = call.name;
    shown.querySelector(".call-arguments").textContent = parsed
      ? JSON.stringify(parsed, null, 2)
      : call.arguments;
  }

  /** The answer is over. `facts` are `{where, usage, stopwatch}`, or null where there was none;
   *  `note` says how it ended, if not as usual. */
  end(facts, note) {
    cancelAnimationFrame(this.#due);
    this.root.ariaBusy = "false";
    this.#draw();
    this.#part(".waiting").hidden = true;
    this.#part(".cut").hidden = !note;
    this.#part(".cut").textContent = note;
    if (facts) this.#drawFacts(facts);
  }

  #drawFacts({ where, usage, stopwatch }) {
    const [route, why] = [this.#part(".route"), this.#part(".why")];
    route.textContent = where.route;
    route.dataset.route = where.route;
    const thought = usage?.completion_tokens_details.reasoning_tokens;
    if (thought) this.#part(".reasoning-size").textContent = `${thought} tokens`;
    route.classList.toggle("unmet", where.reason.endsWith("; no multi-GPU replica"));
    why.textContent = where.reason;
    this.#part(".request").textContent = where.requestId;
    this.#part(".request").title = `Request ${where.requestId}: logs and traces know it by this`;
    this.#part(".figures").append(
      ...figures(where, usage, stopwatch).map(([name, value, meaning]) => {
        const row = element("div", "", element("dt", "", name), element("dd", "", value));
        row.title = meaning;
        return row;
      }),
    );
    this.#part(".facts .copy").hidden = !this.answer.content;
    this.#part(".facts").hidden = false;
  }

  /** Say what went wrong, with a way to try again. */
  fail({ message, status, requestId, retryAfter }, again) {
    const about = [];
    if (status) about.push(`status ${status}`);
    if (retryAfter) about.push(`try again in ${retryAfter} s`);
    if (requestId) about.push(`request ${requestId}`);
    const retry = element("button", "plain", "Try again");
    retry.type = "button";
    retry.addEventListener("click", again);
    const failure = this.#part(".failure");
    failure.append(element("p", "", message), element("p", "about", about.join(" · ")), retry);
    failure.hidden = false;
  }

  /** Let the user answer the calls in the functions' place, then go on. False where the server
   *  would not take them back. */
  askForResults(goOn) {
    const form = this.#part(".calls");
    if (!mayBeAnswered(this.answer)) {
      form.append(element("p", "note", "The arguments are no JSON object: nothing to go on with."));
      return false;
    }
    form.append(element("button", "primary", "Give the model this answer"));
    for (const shown of this.#calls) shown.querySelector(".call-answer").hidden = false;
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      if (event.target.localName !== "textarea") return;
      event.preventDefault();
      form.requestSubmit();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#takeResults();
      form.querySelector("button").remove();
      goOn();
    });
    form.querySelector("textarea").focus({ preventScroll: true });
    return true;
  }

  /** The conversation went on without these calls. */
  leaveUnanswered() {
    for (const shown of this.#calls) shown.querySelector(".call-answer").remove();
    this.#part(".calls button").replaceWith(element("p", "note", "Not answered."));
  }

  /** The conversation went on without trying this answer again. */
  leaveFailed() {
    this.#part(".failure button").remove();
  }

  #takeResults() {
    this.answer.calls.forEach((call, index) => {
      const shown = this.#calls[index];
      call.result = shown.querySelector("textarea").value;
      shown.querySelector(".call-answer").remove();
      shown.querySelector(".call-result").textContent = call.result || "(nothing)";
      shown.querySelector(".call-result").hidden = false;
    });
  }
}
