// The page's story: ask the server who it is, take what the user types, show what comes back.

import * as api from "./api.js";
import { absorb, messagesOf, newAnswer } from "./conversation.js";
import { byId } from "./dom.js";
import { Stopwatch } from "./facts.js";
import { chosenFields, openDrawer, system } from "./settings.js";
import { AnswerView, userTurn } from "./turns.js";

const HEALTH_EVERY_MS = 15_000;
const HEALTH_UNTIL_READY_MS = 1_500;

const prompt = byId("prompt");
const scroller = byId("scroll");
let turns = [];
let running = null; // the AbortController of the answer under way
let model = null;
let declined = false; // the user was asked for a key and had none
let leave = () => {}; // closes what the last answer left open: calls to answer, a way to try again

// Who is there

let nextLook = null;

async function watch() {
  const { ready, words } = await api.health();
  clearTimeout(nextLook);
  byId("health").dataset.state = ready ? "ready" : "not-ready";
  byId("health-words").textContent = words;
  if (ready && !model?.context && !declined) introduce().catch(() => {});
  nextLook = setTimeout(watch, ready ? HEALTH_EVERY_MS : HEALTH_UNTIL_READY_MS);
}

async function introduce() {
  model = await withKey(api.model);
  byId("model").textContent = model.id;
  const context = model.context?.toLocaleString("en");
  byId("context").textContent = context ? `${context} tokens of context` : "";
}

/** What `ask` gives; where that takes a key, the user is asked for one. */
async function withKey(ask) {
  for (;;) {
    try {
      return await ask();
    } catch (problem) {
      if (problem.status !== 401 || !(await askForKey(problem.message))) throw problem;
    }
  }
}

let asking = null; // two requests refused at once ask once

function askForKey(why) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("ask-key");
    byId("ask-key-why").textContent = why;
    byId("asked-key").value = "";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "given";
        if (given) api.key.set(byId("asked-key").value.trim());
        declined = !given;
        asking = null;
        resolve(given);
        prompt.focus();
      },
      { once: true },
    );
  });
  return asking;
}

// A turn

function say(content) {
  byId("welcome").hidden = true;
  leave();
  turns.push({ role: "user", content });
  byId("log").append(userTurn(content));
  return answer();
}

async function answer() {
  if (running) return;
  leave = () => {};
  const turn = newAnswer();
  const view = new AnswerView(turn);
  const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 120;
  const follow = () => (scroller.scrollTop = scroller.scrollHeight);
  byId("log").append(view.root);
  follow();
  const controller = begin();
  const stopwatch = new Stopwatch();
  let [where, usage, problem] = [null, null, null];
  try {
    if (!model) await introduce();
    const body = {
      model: model.id,
      messages: messagesOf(turns, system()),
      ...chosenFields(),
    };
    const reply = await withKey(() => api.chat(body, controller.signal));
    where = reply.where;
    for await (const chunk of reply.chunks) {
      const wasAtEnd = atEnd();
      if (absorb(turn, chunk)) stopwatch.came();
      usage = chunk.usage ?? usage;
      view.show(() => wasAtEnd && follow());
    }
  } catch (caught) {
    problem = caught;
  }
  if (controller !== running) return; // a new conversation has begun meanwhile
  running = null;
  const wasAtEnd = atEnd();
  conclude(turn, view, { where, usage, stopwatch }, problem);
  if (wasAtEnd) follow();
}

/** An answer begins: it can be stopped. */
function begin() {
  running = new AbortController();
  byId("announcement").textContent = "";
  showRunning(true);
  return running;
}

function conclude(turn, view, facts, problem) {
  const stopped = problem?.name === "AbortError";
  showRunning(false);
  view.end(facts.where && facts, noteOn(turn, stopped));
  turns.push(turn);
  if (problem && !stopped) {
    if (problem.status === 404) model = null; // another one is served by now
    watch();
    leave = () => view.leaveFailed();
    view.fail(problem, () => {
      view.root.remove();
      turns = turns.filter((other) => other !== turn);
      answer();
    });
  }
  const asks = turn.finish === "tool_calls" && turn.calls.length > 0;
  if (asks && view.askForResults(answer)) leave = () => view.leaveUnanswered();
  else prompt.focus();
  byId("announcement").textContent = announcement(problem, stopped, asks);
}

function noteOn({ finish }, stopped) {
  if (stopped) return "Stopped.";
  return finish === "length" ? "Cut at its limit of tokens." : "";
}

function announcement(problem, stopped, asks) {
  if (stopped) return "Stopped";
  if (problem) return "No answer";
  return asks ? "The model calls a function" : "The answer is complete";
}

function showRunning(is) {
  const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  if (hadFocus) prompt.focus();
}

// What the user does

const stop = () => running?.abort();

function startAfresh() {
  stop();
  running = null;
  showRunning(false);
  turns = [];
  leave = () => {};
  byId("log").replaceChildren();
  byId("welcome").hidden = false;
  prompt.focus();
}

function submit() {
  const content = prompt.value.trim();
  if (!content || running) return;
  prompt.value = "";
  say(content);
}

const writes = (target) => /^(textarea|input|select)$/.test(target.localName);

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") stop();
  if (event.key === "/" && !writes(event.target)) {
    event.preventDefault();
    prompt.focus();
  }
});
byId("stop").addEventListener("click", stop);
byId("fresh").addEventListener("click", startAfresh);
for (const suggestion of document.querySelectorAll(".suggestion")) {
  suggestion.addEventListener("click", () => running ?? say(suggestion.textContent));
}

openDrawer();
watch();
