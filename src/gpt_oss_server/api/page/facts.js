// Where an answer ran and why, and how fast it came. What is not known is left out, never guessed.

/** Moments of one answer, in milliseconds of this page's clock, as the browser saw them. */
export class Stopwatch {
  #sent = performance.now();
  #first = null;
  #last = null;

  /** Something of the answer has just come. */
  came() {
    this.#last = performance.now();
    this.#first ??= this.#last;
  }

  get firstMs() {
    return this.#first === null ? null : this.#first - this.#sent;
  }

  /** Tokens a second behind the first one; null for an answer that came all at once. */
  rate(tokens) {
    const ms = this.#last - this.#first;
    return tokens > 1 && ms >= 5 ? (1000 * (tokens - 1)) / ms : null;
  }
}

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  for (; count >= 1024 && step < units.length - 1; step += 1) count /= 1024;
  return `${step && count < 100 ? count.toPrecision(3) : number.format(count)} ${units[step]}`;
}

const duration = (ms) => (ms < 1000 ? `${number.format(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);
const rate = (perS) => `${perS < 100 ? perS.toPrecision(3) : number.format(perS)} tok/s`;

/** What an answer took, as rows of `[name, value, what it means]`. */
export function figures(where, usage, stopwatch) {
  const rows = [];
  if (where.predictedKvBytes !== null) {
    const meaning = "KV cache this request can need at most, predicted before it was let in";
    rows.push(["KV predicted", bytes(where.predictedKvBytes), meaning]);
  }
  if (usage) {
    const cached = usage.prompt_tokens_details.cached_tokens;
    const beside = cached ? `, ${number.format(cached)} cached` : "";
    rows.push(["tokens in", number.format(usage.prompt_tokens) + beside, "the whole prompt"]);
    rows.push(["out", number.format(usage.completion_tokens), "tokens, reasoning included"]);
  }
  if (stopwatch.firstMs !== null) {
    rows.push(["first token", duration(stopwatch.firstMs), "TTFT, as seen in this browser"]);
  }
  const perS = usage && stopwatch.rate(usage.completion_tokens);
  if (perS) rows.push(["speed", rate(perS), "behind the first token, as seen in this browser"]);
  return rows;
}
