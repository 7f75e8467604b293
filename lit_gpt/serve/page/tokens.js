// An answer's text in its tokens, each tinted by its probability, with what else could have stood there on demand.

const STEPS = [0.05, 0.2, 0.5, 0.8];  // below the first is p0, the least likely
const INVISIBLE = { "\n": "↵", "\t": "⇥", "\r": "␍" };
const bubble = document.getElementById("alternatives-of");

const chance = (token) => (typeof token[1] === "number" ? Math.exp(token[1]) : null);

// Cuts `text` into [part, token] such that the parts together are the text, whatever the tokens claim. A token that
// is not the next of the text (the end's own token, the first bytes of a character) has an empty part; the last of the
// bytes has the whole character. A part without a token is what no token accounts for.
export function partsOf(text, tokens) {
  const parts = [];
  let at = 0;
  for (const token of tokens) {
    const name = at === 0 && !text.startsWith(token[0]) ? token[0].trimStart() : token[0];
    const previous = parts.at(-1);
    if (previous && isBytes(previous[1]) && !isBytes(token) && name && !text.startsWith(name, at)) {
      const until = text.indexOf(name, at);
      if (until > 0) [previous[0], at] = [text.slice(at, until), until];
    }
    const part = text.startsWith(name, at) ? name : "";
    parts.push([part, token]);
    at += part.length;
  }
  if (at < text.length) {
    const last = parts.at(-1);
    if (last && isBytes(last[1]) && !last[0]) last[0] = text.slice(at);
    else parts.push([text.slice(at), null]);
  }
  return parts;
}

// Whether a token is part of a character: servers write its bytes as a replacement character or as `bytes:\x..`.
const isBytes = (token) => /\ufffd|^bytes:/.test(token[0]);

// Shows the parts in `place`, keeping the elements that are already right: an answer grows at its end.
export function drawTokens(place, answer) {
  place.setAttribute("role", "listbox");
  place.setAttribute("aria-label", "Tokens of the answer; arrow keys go through them");
  place.setAttribute("aria-orientation", "horizontal");
  const parts = partsOf(answer.text, answer.tokens);
  parts.forEach(([text, token], i) => {
    const span = place.children[i] ?? place.appendChild(document.createElement("span"));
    if (span.textContent !== text) span.textContent = text;
    if (span.token === token && span.className) return;
    span.token = token;
    span.className = "token" + (token ? ` p${stepOf(token)}` : "");
    span.setAttribute("role", token ? "option" : "presentation");
    span.tabIndex = token && i === 0 ? 0 : -1;
  });
  while (place.children.length > parts.length) place.lastChild.remove();
  for (const span of place.children) {
    const isBare = Boolean(span.token) && span.textContent === "";
    span.classList.toggle("bare", isBare);
    if (isBare) span.dataset.name = isBytes(span.token) ? "·" : span.token[0].trim();
  }
}

function stepOf(token) {
  const p = chance(token);
  return p === null ? STEPS.length : STEPS.filter((step) => p >= step).length;
}

const visible = (text) => text.replace(/[\n\t\r]/g, (c) => INVISIBLE[c]).replace(/^ | $/g, "␣") || "(empty)";
const percent = (p) => `${(100 * p).toFixed(p < 0.0995 ? 2 : 1)} %`;

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function show(span) {
  const token = span.token;
  const p = chance(token);
  bubble.replaceChildren(element("p", "chosen", `${visible(token[0])}  ${p === null ? "" : percent(p)}`));
  const list = bubble.appendChild(element("ul", ""));
  for (const [text, logprob] of token[2]) {
    const row = list.appendChild(element("li", text === token[0] ? "drawn" : ""));
    row.append(element("span", "what", visible(text)), element("span", "bar"), element("span", "share", percent(Math.exp(logprob))));
    row.children[1].appendChild(document.createElement("i")).style.width = `${100 * Math.exp(logprob)}%`;
  }
  if (!token[2].some(([text]) => text === token[0]) && token[2].length) {
    list.after(element("p", "soft", "What was drawn is not among the most likely."));
  }
  bubble.hidden = false;
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const box = bubble.getBoundingClientRect();
  const room = document.documentElement;
  const below = at.bottom + 6 + box.height <= room.clientHeight;
  bubble.style.left = `${Math.max(8, Math.min(at.left, room.clientWidth - box.width - 8))}px`;
  bubble.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - box.height - 6)}px`;
  span.setAttribute("aria-describedby", bubble.id);
}

export function hideAlternatives() {
  bubble.hidden = true;
}

// One place of the tab order an answer; the arrow keys go on from there.
function move(span, event) {
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 };
  const all = [...span.parentElement.children].filter((other) => other.token);
  const at = all.indexOf(span);
  const to = { Home: 0, End: all.length - 1 }[event.key] ?? (event.key in steps ? at + steps[event.key] : -1);
  if (!all[to]) return;
  event.preventDefault();
  span.tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

const tokenAt = (event) => (event.target instanceof HTMLElement && event.target.token ? event.target : null);

// Listens once for all answers in `place`.
export function watchTokens(place) {
  for (const kind of ["pointerover", "focusin", "click"]) {
    place.addEventListener(kind, (event) => (tokenAt(event) ? show(tokenAt(event)) : hideAlternatives()));
  }
  place.addEventListener("pointerleave", hideAlternatives);
  place.addEventListener("focusout", hideAlternatives);
  place.addEventListener("scroll", hideAlternatives);
  place.addEventListener("keydown", (event) => tokenAt(event) && move(tokenAt(event), event));
}
