// The answers that are under way: all of a message's at once, until each has ended, failed or been stopped.

import { key } from "./conversation.js";
import { Refusal, stream } from "./request.js";

export class Asking {
  #controller = null;
  #answers = [];
  #show;

  // `show` is called with an answer that has grown, at most once a frame.
  constructor(show) {
    this.#show = show;
  }

  get isGoing() {
    return this.#controller !== null;
  }

  // Fills the answers. Returns false if they were dropped meanwhile: what is on the page is no longer theirs.
  async receive(answers) {
    const controller = new AbortController();
    [this.#controller, this.#answers] = [controller, answers];
    await Promise.all(answers.map((answer) => this.#fill(answer, controller.signal)));
    if (this.#controller !== controller) return false;
    this.#controller = null;
    return true;
  }

  // Ends the answers where they are; `receive` returns soon.
  stop() {
    this.#controller?.abort();
  }

  // Ends them at once.
  drop() {
    this.stop();
    if (this.isGoing) for (const answer of this.#answers) answer.finish ??= "stopped";
    this.#controller = null;
  }

  async #fill(answer, signal) {
    const began = performance.now();
    const seconds = () => (performance.now() - began) / 1000;
    const figures = { tokens: 0, seconds: 0, first: 0, cached: 0 };
    answer.figures = figures;
    let finish = null;
    try {
      for await (const { text, tokens, finish: end, usage } of stream(answer.request, key.value, signal)) {
        if (signal.aborted) break;
        finish = end ?? finish;
        if (usage) {
          figures.tokens = usage.completion_tokens;
          figures.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
          continue;
        }
        answer.text += text;
        answer.tokens.push(...tokens);
        figures.seconds = seconds();
        figures.first ||= figures.seconds;
        this.#showSoon(answer);
      }
      answer.finish ??= signal.aborted ? "stopped" : (finish ?? "stop");
    } catch (error) {
      if (error.name !== "AbortError") {
        answer.error = error instanceof Refusal ? error.message : `This page failed: ${error.message}`;
        answer.status = error.status;
      }
      answer.finish ??= error.name === "AbortError" ? "stopped" : "error";
    }
  }

  #due = new Set();

  #showSoon(answer) {
    if (!this.#due.size) {
      requestAnimationFrame(() => {
        for (const grown of this.#due) this.#show(grown);
        this.#due.clear();
      });
    }
    this.#due.add(answer);
  }
}
