// What was said, what is set, and how both outlive a reload. Nothing here touches the page or the network.
//
// A talk is a list of turns {prompt, answers}; answers[0] is the first model's, answers[1] the second's. An answer is
// {model, text, tokens, finish, error, request, figures}; a token is [text, logprob, [[text, logprob], ...]].

const PLACE = "lit-gpt";
const MOST_UNDONE = 50;
const SETTINGS = {
  system: "", temperature: "", max_tokens: "256", top_p: "", top_k: "", min_p: "", seed: "", stop: "",
  repetition_penalty: "", presence_penalty: "", frequency_penalty: "", colors: true, alternatives: "5",
};

function fresh() {
  return {
    mode: "chat", talks: { chat: [], text: [] }, drafts: { chat: "", text: "" }, settings: { ...SETTINGS },
    models: ["", ""], compare: false, opened: null,
  };
}

// What the browser kept, laid over the defaults: what an older page wrote lacks what this one added.
export function load() {
  const state = fresh();
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(PLACE));
  } catch { /* storage is switched off, or holds what this page did not write */ }
  const isTalk = (turns) => Array.isArray(turns) && turns.every((turn) => Array.isArray(turn?.answers));
  if (kept && isTalk(kept.talks?.chat) && isTalk(kept.talks.text)) {
    Object.assign(state, kept, { settings: { ...SETTINGS, ...kept.settings } });
  }
  for (const answer of answersOf(state)) if (!answer.finish) answer.finish = "interrupted";
  return state;
}

function answersOf(state) {
  return [...state.talks.chat, ...state.talks.text].flatMap((turn) => turn.answers.filter(Boolean));
}

// Returns whether the browser keeps it. What it has no room for are first the tokens of the oldest answers.
export function save(state) {
  const lighter = answersOf(state).filter((answer) => answer.tokens.length).map((answer) => [answer, answer.tokens]);
  try {
    for (let dropped = 0; ; dropped++) {
      try {
        localStorage.setItem(PLACE, JSON.stringify(state));
        return true;
      } catch {
        if (dropped === lighter.length) return false;
        lighter[dropped][0].tokens = [];
      }
    }
  } finally {
    for (const [answer, tokens] of lighter) answer.tokens = tokens;
  }
}

export function forget() {
  try {
    localStorage.removeItem(PLACE);
    sessionStorage.removeItem(PLACE);
  } catch { /* nothing was kept */ }
}

// The key lives as long as the tab does, and is in nothing that is kept, copied or downloaded.
export const key = {
  value: "",
  load() {
    try {
      this.value = sessionStorage.getItem(PLACE) ?? "";
    } catch { /* it lives as long as the page, then */ }
    return this.value;
  },
  set(text) {
    this.value = text;
    try {
      sessionStorage.setItem(PLACE, text);
    } catch { /* as above */ }
  },
};

// Snapshots of what was said, to come back to.
export class Past {
  #snapshots = [];

  remember({ mode, talks, drafts }) {
    this.#snapshots.push(structuredClone({ mode, talks, drafts }));
    if (this.#snapshots.length > MOST_UNDONE) this.#snapshots.shift();
  }

  get isEmpty() {
    return this.#snapshots.length === 0;
  }

  // Puts the last snapshot into `state`; what has been typed since stays. An answer that was under way in it will not
  // be finished.
  goBack(state) {
    const { drafts } = state;
    Object.assign(state, this.#snapshots.pop());
    for (const mode of Object.keys(drafts)) if (drafts[mode].trim()) state.drafts[mode] = drafts[mode];
    for (const answer of answersOf(state)) answer.finish ??= "stopped";
  }
}

export function newAnswer(model, request) {
  return { model, text: "", tokens: [], finish: null, error: "", request, figures: null };
}

// The messages before the answer of turn `n` on one side. A turn that only the other side answered counts as said.
export function messagesBefore(turns, n, side, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, n)) {
    messages.push({ role: "user", content: turn.prompt });
    const answer = said(turn.answers[side]) ?? said(turn.answers[1 - side]);
    if (answer) messages.push({ role: "assistant", content: answer.text });
  }
  messages.push({ role: "user", content: turns[n].prompt });
  return messages;
}

const said = (answer) => (answer && answer.text ? answer : null);

// The rows to train on, JSON a line: a conversation for each side that has answered, or a completion for each answer.
export function rows({ mode, talks, settings }) {
  const turns = talks[mode];
  const found = [];
  if (mode === "text") {
    for (const turn of turns) {
      for (const answer of turn.answers.filter(said)) found.push({ prompt: turn.prompt, completion: answer.text });
    }
  } else {
    for (const side of [0, 1]) {
      const last = turns.findLastIndex((turn) => said(turn.answers[side]));
      if (last < 0) continue;
      const messages = messagesBefore(turns, last, side, settings.system);
      found.push({ messages: [...messages, { role: "assistant", content: turns[last].answers[side].text }] });
    }
  }
  return found.map((row) => JSON.stringify(row) + "\n").join("");
}
