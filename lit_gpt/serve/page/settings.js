// The fields beside the conversation: what they show is what the state has, and they open by themselves where one is
// wrong or missing.

import { key } from "./conversation.js";

const [panel, opener, fields] = ["settings", "opens", "fields"].map((id) => document.getElementById(id));

export function openSettings(isOpen) {
  panel.hidden = !isOpen;
  opener.setAttribute("aria-expanded", String(isOpen));
}

export function showSettings(settings) {
  for (const field of fields.elements) {
    if (!(field.name in settings)) continue;
    if (field.type === "checkbox") field.checked = settings[field.name];
    else field.value = settings[field.name];
  }
}

// Returns what is wrong with the first field that cannot be sent, which then has the focus; an empty text if none is.
export function wrongSetting(settings) {
  const wrong = [...fields.elements].find((field) => field.name in settings && !field.checkValidity());
  if (!wrong) return "";
  goTo(wrong);
  return `${wrong.labels[0].firstChild.textContent.trim()}: ${wrong.validationMessage}`;
}

export function askForKey() {
  goTo(document.getElementById("key"));
}

function goTo(field) {
  openSettings(true);
  field.focus();
}

// Writes changes into the state's settings; `changed` is called with the name of the field, or with "key".
export function watchSettings(state, changed) {
  document.getElementById("key").value = key.load();
  showSettings(state.settings);
  openSettings(state.opened ?? window.matchMedia("(min-width: 1000px)").matches);
  opener.addEventListener("click", () => {
    state.opened = panel.hidden;
    openSettings(state.opened);
    changed("opened");
  });
  fields.addEventListener("submit", (event) => event.preventDefault());
  fields.addEventListener("change", ({ target }) => {
    if (target.id === "key") key.set(target.value.trim());
    else if (target.name in state.settings) state.settings[target.name] = target.type === "checkbox" ? target.checked : target.value;
    changed(target.name || target.id);
  });
}
