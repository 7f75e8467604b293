// The conversation as it stands on the page: turns, answers beside each other, and what can be done with each.

import { drawTokens } from "./tokens.js";

const ENDS = {
  length: "ended at the most tokens", stopped: "stopped", interrupted: "interrupted", error: "failed",
  content_filter: "withheld",
};
const drawn = new WeakMap();  // answer -> the elements that change while it grows

export function make(name, className, ...inside) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...inside);
  return made;
}

function button(text, { key, label, act }) {
  const made = make("button", "small", text);
  made.type = "button";
  made.dataset.key = key;
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

// Draws all turns anew, and puts the focus back on the button that had it. `acts` has what the buttons do, `editing`
// is {n, side} of what is being rewritten, side null for the message.
export function drawTalk(place, state, { acts, editing, isBusy }) {
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const turns = state.talks[state.mode];
  place.className = state.mode;
  place.replaceChildren(...turns.map((turn, n) => drawTurn(turn, n, { state, acts, editing, isBusy })));
  if (!turns.length) place.append(welcome(state.mode));
  if (focused) place.querySelector(`[data-key="${focused}"]`)?.focus();
}

function welcome(mode) {
  const texts = {
    chat: "Say something. What a model answers stays in this browser until you choose New.",
    text: "Write the beginning of a text; the model goes on from its last letter.",
  };
  return make("p", "welcome", texts[mode]);
}

function drawTurn(turn, n, { state, acts, editing, isBusy }) {
  const isLast = n === state.talks[state.mode].length - 1;
  const isText = state.mode === "text";
  const answers = turn.answers.map((answer, side) => [answer, side]).filter(([answer]) => answer);
  const place = make("article", "turn");
  place.setAttribute("aria-label", `${isText ? "Text" : "Message"} ${n + 1}`);
  place.classList.toggle("unanswered", !answers.some(([answer]) => answer.text || !answer.finish));
  const message = make("div", "message");
  if (editing && editing.n === n && editing.side === null) {
    message.append(editor(turn.prompt, { label: isText ? "Text" : "Message", done: "Ask again", acts }));
  } else {
    message.append(make("div", "words", turn.prompt));
    if (!isBusy) message.append(make("div", "tools", button("Edit", { key: `edit-${n}`, label: `Edit message ${n + 1}`, act: () => acts.edit(n, null) })));
  }
  const beside = make("div", "answers");
  if (answers.length > 1) beside.classList.add("two");
  for (const [answer, side] of answers) {
    const isEdited = editing && editing.n === n && editing.side === side;
    beside.append(drawAnswer(answer, { n, side, state, acts, isBusy, isEdited }));
  }
  if (isLast && !isBusy && state.compare && !turn.answers[1]) {
    beside.append(make("div", "tools", button(`Ask ${state.models[1]} too`, { key: `also-${n}`, act: () => acts.retry(n, 1) })));
  }
  place.append(message, beside);
  return place;
}

function drawAnswer(answer, { n, side, state, acts, isBusy, isEdited }) {
  const place = make("div", "answer");
  place.append(make("p", "by", answer.model));
  const parts = { place, words: make("div", "words"), error: make("p", "error"), note: make("span", "note") };
  drawn.set(answer, parts);
  if (isEdited) place.append(editor(answer.text, { label: "Answer", done: "Keep", acts }));
  else place.append(parts.words, parts.error);
  const foot = make("div", "tools");
  if (!isBusy && !isEdited) {
    const of = `of ${answer.model}, ${n + 1}`;
    const add = (text, act) => foot.append(button(text, { key: `${text}-${n}-${side}`, label: `${text}: answer ${of}`, act }));
    add("Retry", () => acts.retry(n, side));
    add("Edit", () => acts.edit(n, side));
    if (state.mode === "text") add("Continue", () => acts.goOn(n, side));
    if (answer.request) add("curl", () => acts.curl(answer));
  }
  foot.append(parts.note);
  place.append(foot);
  updateAnswer(answer, state.settings.colors);
  return place;
}

function editor(text, { label, done, acts }) {
  const field = make("textarea", "edited");
  field.value = text;
  field.setAttribute("aria-label", label);
  field.rows = Math.min(12, Math.max(3, text.split("\n").length + Math.floor(text.length / 80)));
  const place = make("form", "editor", field, make("button", "", done), button("Cancel", { key: "cancel", act: acts.cancel }));
  place.addEventListener("submit", (event) => {
    event.preventDefault();
    acts.edited(field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") acts.cancel();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    place.requestSubmit();
  });
  return place;
}

// Shows what has come of an answer so far. Its text is only ever set as text.
export function updateAnswer(answer, colors) {
  const parts = drawn.get(answer);
  if (!parts) return;
  parts.place.classList.toggle("going", !answer.finish);
  if (colors && answer.tokens.length) drawTokens(parts.words, answer);
  else if (parts.words.textContent !== answer.text) parts.words.textContent = answer.text;
  parts.error.textContent = answer.error;
  parts.note.textContent = noteOf(answer);
}

function noteOf({ finish, figures, text }) {
  const found = [];
  if (figures) {
    const { tokens, seconds, first, cached } = figures;
    if (tokens) found.push(`${tokens} tokens`);
    if (tokens > 1 && seconds > first) found.push(`${((tokens - 1) / (seconds - first)).toFixed(1)}/s`);
    if (first) found.push(`first after ${first.toFixed(2)} s`);
    if (cached) found.push(`${cached} read from the cache`);
  }
  if (finish in ENDS) found.push(ENDS[finish]);
  if (finish === "stop" && !text) found.push("an empty answer");
  return found.join(", ");
}
