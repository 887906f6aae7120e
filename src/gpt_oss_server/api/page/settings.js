// The settings drawer: what the user chose, as fields of a request.

import { key } from "./api.js";
import { byId, element } from "./dom.js";

const KEPT = ["system", "effort", "temperature", "max-tokens", "tools", "tool-choice"];

const EXAMPLE = [
  {
    name: "get_weather",
    description: "The weather in a city now.",
    parameters: {
      type: "object",
      properties: {
        city: { type: "string" },
        unit: { type: "string", enum: ["celsius", "fahrenheit"] },
      },
      required: ["city"],
    },
  },
];

/** Tools as the API takes them, from what was pasted: one function or a list, bare or wrapped.
 *  Throws Error in words. */
export function toolsOf(text) {
  if (!text.trim()) return [];
  let pasted;
  try {
    pasted = JSON.parse(text);
  } catch (problem) {
    throw new Error(`This is no JSON: ${problem.message}`);
  }
  return [pasted].flat().map((tool) => {
    const wrapped = tool?.type === "function" && tool.function ? tool : { function: tool };
    if (typeof wrapped.function?.name !== "string") throw new Error("A function has no name.");
    return { ...wrapped, type: "function" };
  });
}

/** Wire the drawer up. Settings last as long as the tab. */
export function openDrawer() {
  const drawer = byId("settings");
  for (const id of KEPT) {
    const field = byId(id);
    const kept = sessionStorage.getItem(id);
    if (kept !== null) field.value = kept;
    field.addEventListener("input", () => sessionStorage.setItem(id, field.value));
  }
  byId("tools").addEventListener("input", checkTools);
  byId("tools-example").addEventListener("click", () => {
    byId("tools").value = JSON.stringify(EXAMPLE, null, 2);
    byId("tools").dispatchEvent(new Event("input"));
  });
  byId("key").addEventListener("change", () => key.set(byId("key").value));
  byId("open-settings").addEventListener("click", () => {
    byId("key").value = key.get();
    drawer.showModal();
  });
  drawer.addEventListener("click", (event) => {
    if (event.target === drawer) drawer.close(); // the backdrop
  });
  checkTools();
  // Only now are the tools there of which it may name one.
  if (sessionStorage.getItem("tool-choice")) choose(sessionStorage.getItem("tool-choice"));
}

function choose(choice) {
  byId("tool-choice").value = choice;
  if (!byId("tool-choice").value) byId("tool-choice").value = "auto";
}

/** Say what the pasted tools are, and offer each of them by name. */
function checkTools() {
  const [state, choice] = [byId("tools-state"), byId("tool-choice")];
  let names = [];
  try {
    names = toolsOf(byId("tools").value).map((tool) => tool.function.name);
    state.textContent = names.length ? `Offered: ${names.join(", ")}` : "";
    state.classList.remove("wrong");
  } catch (problem) {
    state.textContent = problem.message;
    state.classList.add("wrong");
  }
  const chosen = choice.value;
  for (const option of choice.querySelectorAll("[data-name]")) option.remove();
  for (const name of names) {
    const option = element("option", "", `must call ${name}`);
    option.value = `name:${name}`;
    option.dataset.name = name;
    choice.append(option);
  }
  choose(chosen);
}

const numberIn = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));

export const system = () => byId("system").value.trim();

/** The fields of a request that the user set; what is undefined is not sent. Throws Error for
 *  tools that are none. */
export function chosenFields() {
  const tools = toolsOf(byId("tools").value);
  const choice = byId("tool-choice").value;
  return {
    reasoning_effort: byId("effort").value || undefined,
    temperature: numberIn("temperature"),
    max_completion_tokens: numberIn("max-tokens"),
    tools: tools.length ? tools : undefined,
    tool_choice: tools.length ? choiceOf(choice) : undefined,
  };
}

const choiceOf = (choice) =>
  choice.startsWith("name:")
    ? { type: "function", function: { name: choice.slice("name:".length) } }
    : choice;
