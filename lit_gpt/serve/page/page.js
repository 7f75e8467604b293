// Wires the page: what is typed, chosen and pressed becomes requests, and what arrives is drawn and kept.

import { Asking } from "./asking.js";
import { forget, key, load, newAnswer, Past, rows, save } from "./conversation.js";
import { curlOf, listModels, Refusal, requestOf } from "./request.js";
import { askForKey, watchSettings, wrongSetting } from "./settings.js";
import { drawTalk, make, updateAnswer } from "./talk.js";
import { hideAlternatives, watchTokens } from "./tokens.js";

const at = (id) => document.getElementById(id);
const [talk, draft] = ["talk", "draft"].map(at);
const state = load();
const past = new Past();
let models = [];
const asking = new Asking(grown);
let editing = null;
let isFull = false;

const turnsNow = () => state.talks[state.mode];

function keep() {
  state.drafts[state.mode] = draft.value;
  if (save(state) || isFull) return;
  isFull = true;
  tell("This browser keeps no more: download what you need before you leave.");
}

function tell(message) {
  at("trouble").textContent = message;
}

// ---- drawing

const acts = { edit, edited, cancel: () => edit(null), retry, goOn, curl: showCurl };

function draw() {
  hideAlternatives();
  drawTalk(talk, state, { acts, editing, isBusy: asking.isGoing });
  at("asks").textContent = state.mode === "text" ? "Text to continue" : "Message";
  draft.placeholder = at("asks").textContent;
  at("system-field").hidden = state.mode === "text";
  at("undo").disabled = past.isEmpty;
  at("new").disabled = at("download").disabled = !turnsNow().length;
  at("send").hidden = asking.isGoing;
  at("stop").hidden = !asking.isGoing;
  at("model-1").hidden = !state.compare;
}

function drawControls() {
  for (const radio of document.getElementsByName("mode")) radio.checked = radio.value === state.mode;
  at("compare").checked = state.compare;
  draft.value = state.drafts[state.mode];
  grow();
}

function grow() {
  draft.style.height = "auto";
  draft.style.height = `${draft.scrollHeight + 2}px`;
}

const isAtEnd = () => talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
const toEnd = () => talk.scrollTo({ top: talk.scrollHeight });

// ---- models

let nFound = 0;

async function findModels() {
  const n = ++nFound;
  try {
    const found = await listModels(key.value);
    if (n !== nFound) return;  // asked again meanwhile, perhaps with another key
    models = found;
    if (!asking.isGoing) tell(models.length ? "" : "The server has no model.");
  } catch (error) {
    if (n !== nFound) return;
    models = [];
    complain(error);
    if (error.status === 503) setTimeout(findModels, 2000);  // it loads the model, which takes its time
  }
  [0, 1].forEach((side) => {
    const names = models.length ? models : state.models.filter(Boolean).slice(0, 1);
    if (!names.includes(state.models[side])) state.models[side] = names[Math.min(side, names.length - 1)] ?? "";
    at(`model-${side}`).replaceChildren(...names.map((name) => new Option(name, name, false, name === state.models[side])));
  });
  draw();
}

function complain(error) {
  if (!(error instanceof Refusal)) throw error;
  tell(error.message);
  if (error.status === 401) askForKey();
}

// ---- asking

function sidesNow() {
  return state.compare && state.models[1] ? [0, 1] : [0];
}

async function send() {
  const prompt = draft.value;
  if (asking.isGoing || (state.mode === "chat" && !prompt.trim()) || !prompt) return;
  if (!(await isReady())) return;
  past.remember({ ...state, drafts: { ...state.drafts, [state.mode]: prompt } });
  turnsNow().push({ prompt, answers: [] });
  draft.value = "";
  grow();
  await ask(turnsNow().length - 1, sidesNow());
}

// Whether the settings can be sent and there is a model to ask.
async function isReady() {
  tell("");
  const wrong = wrongSetting(state.settings);
  if (wrong) {
    tell(wrong);
    return false;
  }
  if (!models.length) await findModels();
  return models.length > 0 && !asking.isGoing;  // a second press may have been waiting here, too
}

async function ask(n, sides) {
  const turn = turnsNow()[n];
  const answers = sides.map((side) => {
    const model = state.models[side];
    turn.answers[side] = newAnswer(model, requestOf(state, n, { model, side }));
    return turn.answers[side];
  });
  at("state").textContent = "answering";
  const ending = asking.receive(answers);
  draw();
  toEnd();
  keep();
  if (!(await ending)) return;
  const wasAtEnd = isAtEnd();
  at("state").textContent = answers.some((a) => a.finish === "stopped") ? "stopped" : "";
  at("said").textContent = answers.map((a) => `${a.model}: ${a.error || a.text}`).join("\n");
  draw();
  if (wasAtEnd) toEnd();
  if (answers.some((a) => a.status === 401)) askForKey();
  keep();
}

function grown(answer) {
  const follow = isAtEnd();
  updateAnswer(answer, state.settings.colors);
  if (follow) toEnd();
}

// Ends what is under way at once, for acts that change the turns beneath it.
function drop() {
  asking.drop();
  at("state").textContent = "";
}

// ---- acts

async function retry(n, side) {
  if (asking.isGoing || !(await isReady())) return;
  past.remember(state);
  if (state.mode === "chat") turnsNow().splice(n + 1);
  await ask(n, [side]);
}

function edit(n, side = null) {
  editing = n === null ? null : { n, side };
  draw();
  if (editing) talk.querySelector(".edited").focus();
  else draft.focus();
}

async function edited(text) {
  const { n, side } = editing;
  if (side === null && !(text.trim() && (await isReady()))) return;
  past.remember(state);
  editing = null;
  const turns = turnsNow();
  if (side === null) {
    if (state.mode === "chat") turns.splice(n + 1);
    turns[n] = { prompt: text, answers: [] };
    draft.focus();
    await ask(n, sidesNow());
    return;
  }
  Object.assign(turns[n].answers[side], { text, tokens: [], error: "", finish: "stop", figures: null });
  draw();
  draft.focus();
  keep();
}

function goOn(n, side) {
  const turn = turnsNow()[n];
  draft.value = turn.prompt + turn.answers[side].text;
  grow();
  draft.focus();
  keep();
}

function undo() {
  if (past.isEmpty) return;
  drop();
  editing = null;
  state.drafts[state.mode] = draft.value;
  past.goBack(state);
  drawControls();
  draw();
  draft.focus();
  keep();
}

function empty() {
  drop();
  past.remember(state);
  editing = null;
  state.talks[state.mode] = [];
  tell("");
  draw();
  draft.focus();
  keep();
}

function download() {
  const link = make("a", "");
  link.href = URL.createObjectURL(new Blob([rows(state)], { type: "application/jsonl" }));
  link.download = state.mode === "text" ? "completions.jsonl" : "conversation.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function showCurl(answer) {
  at("curl").value = curlOf(answer.request, Boolean(key.value));
  at("copied").textContent = "";
  at("command").showModal();
  at("curl").select();
  at("curl").scrollTop = 0;
}

// The clipboard is closed to pages of plain http from elsewhere than this computer: the text is selected, then.
async function copy() {
  try {
    await navigator.clipboard.writeText(at("curl").value);
    at("copied").textContent = "Copied.";
  } catch {
    at("curl").select();
    at("copied").textContent = "Selected: copy it with Ctrl+C.";
  }
}

// ---- listening

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
draft.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
draft.addEventListener("input", grow);
draft.addEventListener("change", keep);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  hideAlternatives();
  asking.stop();
});
for (const [id, act] of Object.entries({ stop: () => asking.stop(), undo, new: empty, download, copy })) at(id).addEventListener("click", act);
at("forget").addEventListener("click", () => {
  drop();
  forget();
  window.removeEventListener("pagehide", keep);
  location.reload();
});
for (const radio of document.getElementsByName("mode")) {
  radio.addEventListener("change", () => {
    keep();
    drop();
    editing = null;
    state.mode = radio.value;
    draft.value = state.drafts[state.mode];
    grow();
    draw();
    toEnd();
    keep();
  });
}
at("compare").addEventListener("change", ({ target }) => {
  state.compare = target.checked;
  draw();
  keep();
});
for (const side of [0, 1]) {
  at(`model-${side}`).addEventListener("change", ({ target }) => {
    state.models[side] = target.value;
    draw();
    keep();
  });
}
window.addEventListener("pagehide", keep);

watchSettings(state, (name) => {
  if (name === "key") findModels();
  if (name === "colors") draw();
  keep();
});
drawControls();
watchTokens(talk);
draw();
toEnd();
draft.focus();
findModels();
