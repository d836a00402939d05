// The page of a task: ranks, ratings, drafts, review. What a person chose is in the inputs of the page and nowhere else;
// the ranking is drawn from them. Every answer is sent until the server has acknowledged it, and may be sent twice.
"use strict";

const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const LETTERS = "ABCDEFGHI";
const DRAFT_DELAY = 700, LEASE_RENEWAL = 300, IDLE_AFTER = 60, LONGEST_WAIT = 30; // ms, then seconds

function announce(text) {
  byId("live").textContent = "";
  setTimeout(() => { byId("live").textContent = text; }, 50);
}

// ---- Any page

for (const button of all("[data-copy]")) {
  button.addEventListener("click", async () => {
    const field = byId(button.dataset.copy);
    field.select();
    try { await navigator.clipboard.writeText(field.value); } catch { document.execCommand("copy"); }
    button.textContent = "Copied";
    announce("Copied");
  });
}
for (const form of all("form[data-confirm]")) {
  form.addEventListener("submit", (event) => { if (!confirm(form.dataset.confirm)) event.preventDefault(); });
}
byId("login-form")?.addEventListener("submit", (event) => { // a second click would use a link that is used up
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "1";
});
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

// ---- Sending

const wait = { timer: 0, wake: null };

function pause(seconds) {
  return new Promise((resolve) => {
    wait.wake = () => { clearTimeout(wait.timer); wait.wake = null; resolve(); };
    if (seconds < Infinity) wait.timer = setTimeout(wait.wake, seconds * 1000);
  });
}

function trouble(text) {
  byId("trouble").hidden = !text;
  if (text && byId("trouble-text").textContent !== text) byId("trouble-text").textContent = text;
}

async function freshCsrf() {
  const answer = await fetch("/session", { cache: "no-store", headers: { Accept: "application/json" } });
  if (!answer.ok) return false;
  document.querySelector("meta[name=csrf]").content = (await answer.json()).csrf;
  for (const field of all("input[name=csrf]")) field.value = document.querySelector("meta[name=csrf]").content;
  return true;
}

// Sends until the server has answered. Returns {ok, status, content}, or null if `signal` ended it.
async function send(method, url, body, signal) {
  let renewed = false;
  for (let attempt = 0; ; attempt += 1) {
    let answer = null;
    try {
      answer = await fetch(url, {
        method, signal, cache: "no-store", body: JSON.stringify(body()),
        headers: { "Content-Type": "application/json", "X-CSRF": document.querySelector("meta[name=csrf]").content },
      });
      if (answer.status === 403 && !renewed) { // the person has logged in again, in another tab
        renewed = true;
        if (await freshCsrf()) continue;
        answer = { status: 401 };
      }
      const content = await answer.json?.().catch(() => null);
      // The page of a proxy or of a network's log-in is no acknowledgment, whatever its status is.
      if (answer.ok && !content) answer = null;
      else answer = { ok: answer.ok, status: answer.status, content };
    } catch {
      answer = null;
    }
    if (signal?.aborted) return null;
    if (answer?.status === 401) {
      setSaved("failed");
      trouble("You are logged out. Your work is kept in this page. Open a new log-in link in another tab, then press “Try now”.");
      await pause(Infinity);
      renewed = false;
    } else if (!answer || answer.status >= 500 || answer.status === 429) {
      const seconds = Math.min(LONGEST_WAIT, 2 ** attempt);
      setSaved("failed");
      if (attempt > 0) trouble("The server does not answer. Your work is kept in this page, and will be sent when it is back.");
      await pause(seconds * (0.8 + 0.4 * Math.random()));
    } else {
      trouble("");
      return { ok: answer.ok, status: answer.status, content: answer.content || {} };
    }
    if (signal?.aborted) return null;
  }
}

function setSaved(state) {
  const sign = byId("saved");
  if (!sign) return;
  sign.dataset.state = state;
  sign.textContent = { clean: "", saving: "Saving…", saved: "Saved", failed: "Not saved yet", sending: "Submitting…", sent: "Submitted" }[state];
}

// ---- A task

const main = document.querySelector("main.task");
if (main) startTask();

function startTask() {
  const { key, kind } = main.dataset;
  const revision = Number(main.dataset.revision);
  const completions = all("article.completion"), k = completions.length;
  const forms = completions.map((one) => one.querySelector(".rating"));
  const chips = completions.map((_, i) => byId(`chip-${i}`));
  const demonstration = byId("demonstration"), notes = byId("notes"), unrankable = byId("unrankable");
  const wide = matchMedia("(min-width: 64rem)");
  let active = 0, submitting = false, seconds = Number(main.dataset.seconds), lastSign = Date.now(), savedAt = seconds;

  // -- What was chosen

  const rankOf = (i) => Number(completions[i].querySelector(".ranks input:checked")?.value) || null;
  const qualityOf = (i) => Number(forms[i].querySelector(".quality input:checked")?.value) || null;
  const ranked = () => completions.filter((_, i) => rankOf(i)).length;

  function ratingOf(i) {
    const ticked = all("input[type=checkbox][data-flag]", forms[i]);
    const chosen = all("input[type=radio][data-flag]:checked", forms[i]);
    const text = byId(`notes-${i}`).value, rating = qualityOf(i);
    const flags = {};
    // Flags that nobody touched say nothing: they are "no" only beside a quality or another flag.
    if (rating || ticked.some((box) => box.checked) || chosen.some((radio) => radio.value)) {
      for (const box of ticked) flags[box.dataset.flag] = box.checked;
      for (const radio of chosen) flags[radio.dataset.flag] = radio.value ? radio.value === "true" : null;
    }
    return { rating, flags, notes: text };
  }

  function collect() {
    const ratings = completions.map((_, i) => ratingOf(i));
    const isRated = ratings.some((one) => one.rating || one.notes || Object.keys(one.flags).length);
    return {
      ranks: ranked() ? completions.map((_, i) => (rankOf(i) ? rankOf(i) - 1 : null)) : null,
      ratings: isRated ? ratings : null,
      demonstration: demonstration.value.trim() ? demonstration.value : null,
      unrankable: Boolean(unrankable?.checked), notes: notes.value, skipped: null, revision,
      seconds: Math.round(seconds),
    };
  }

  function restore(draft) {
    if (!draft || typeof draft !== "object") return;
    completions.forEach((_, i) => {
      const rank = draft.ranks?.[i], rating = draft.ratings?.[i];
      if (Number.isInteger(rank)) setRank(i, rank + 1, true);
      if (!rating) return;
      const quality = forms[i].querySelector(`.quality input[value="${Number(rating.rating)}"]`);
      if (quality) quality.checked = true;
      for (const [name, value] of Object.entries(rating.flags || {})) {
        for (const input of all("[data-flag]", forms[i])) {
          if (input.dataset.flag !== name) continue;
          input.checked = input.type === "checkbox" ? value === true : input.value === (value === null ? "" : String(value));
        }
      }
      byId(`notes-${i}`).value = rating.notes || "";
    });
    if (unrankable) unrankable.checked = draft.unrankable === true;
    demonstration.value = draft.demonstration || "";
    notes.value = draft.notes || "";
    if (draft.demonstration && byId("ideal")) byId("ideal").open = true;
  }

  // -- Drawing

  function setRank(i, rank, silent = false) {
    for (const radio of all(".ranks input", completions[i])) radio.checked = Number(radio.value) === rank;
    if (silent) return;
    if (rank) unrankable.checked = false;
    const tied = completions.map((_, j) => j).filter((j) => j !== i && rank && rankOf(j) === rank).map((j) => LETTERS[j]);
    announce(`${LETTERS[i]}: ${rank ? `rank ${rank}` : "not ranked"}${tied.length ? `, a tie with ${tied.join(", ")}` : ""}`);
    changed();
  }

  function draw() {
    const focused = document.activeElement;
    completions.forEach((one, i) => {
      const rank = rankOf(i), row = (rank ? byId(`slot-${rank}`) : byId("slot-none")).querySelector(".chips");
      if (chips[i].parentElement !== row) row.append(chips[i]);
      chips[i].setAttribute("aria-label", `Completion ${LETTERS[i]}, ${rank ? `rank ${rank}` : "not ranked"}`);
      const rating = ratingOf(i), flags = Object.values(rating.flags).filter((value) => value === true).length;
      const parts = [rating.rating ? `Quality ${rating.rating}` : "", flags ? `${flags} flag${flags > 1 ? "s" : ""}` : "", rating.notes.trim() ? "notes" : ""];
      byId(`rate-${i}`).textContent = parts.filter(Boolean).join(" · ") || "Rate";
    });
    if (focused?.classList.contains("chip") && document.activeElement !== focused) focused.focus();
    if (k) {
      byId("board").classList.toggle("off", unrankable.checked);
      byId("progress").textContent = unrankable.checked ? "Cannot be ranked" : `${ranked()} of ${k} ranked`;
    }
    const words = demonstration.value.trim().split(/\s+/).filter(Boolean).length;
    byId("demonstration-words").textContent = `${words.toLocaleString("en")} word${words === 1 ? "" : "s"}`;
    if (!k) byId("progress").textContent = byId("demonstration-words").textContent;
  }

  function activate(i) {
    active = i;
    completions.forEach((one, j) => {
      for (const part of [one, forms[j], chips[j]]) part.classList.toggle("active", j === i);
    });
  }

  function placeForms() { // beside the completions on a wide screen, else in them
    forms.forEach((form, i) => (wide.matches ? byId("ratings") : completions[i]).append(form));
  }

  function goTo(i) {
    if (i < 0 || i >= k) return;
    completions[i].focus({ preventScroll: true });
    completions[i].scrollIntoView({ block: "nearest" });
  }

  function toRating(i) {
    if (!wide.matches) {
      const isOpen = forms[i].classList.toggle("open");
      byId(`rate-${i}`).setAttribute("aria-expanded", String(isOpen));
      if (!isOpen) return;
    }
    activate(i);
    (forms[i].querySelector(".quality input:checked") || forms[i].querySelector(".quality input")).focus();
  }

  function fold(button) {
    const isOpen = byId(button.getAttribute("aria-controls")).classList.toggle("open");
    button.setAttribute("aria-expanded", String(isOpen));
    button.textContent = isOpen ? "Show less" : `Show all (${Number(button.dataset.words).toLocaleString("en")} words)`;
    if (!isOpen) button.closest("article, section").scrollIntoView({ block: "nearest" });
  }

  // -- Drafts

  const local = `draft:${key}`;
  let timer = 0, dirty = false, saving = null, abort = new AbortController();

  function keepHere() {
    try { localStorage.setItem(local, JSON.stringify({ at: Date.now(), draft: collect() })); } catch { /* full or forbidden */ }
  }
  function forgetHere() {
    try { localStorage.removeItem(local); } catch { /* forbidden */ }
  }
  function keptHere() {
    try {
      const kept = JSON.parse(localStorage.getItem(local));
      return kept?.draft?.revision === revision ? kept.draft : null;
    } catch { return null; }
  }

  function changed() {
    draw();
    if (submitting) return;
    dirty = true;
    keepHere();
    setSaved("saving");
    clearTimeout(timer);
    timer = setTimeout(save, DRAFT_DELAY);
  }

  async function save() {
    if (saving || submitting) return;
    saving = (async () => {
      while (dirty && !submitting) {
        const answer = await send("PUT", `/task/${key}/draft`, () => { dirty = false; return { draft: collect(), active: Math.round(seconds) }; }, abort.signal);
        if (!answer) return;
        if (!answer.ok) { setSaved("failed"); trouble(answer.content.error || "The draft was refused."); return; }
        savedAt = seconds;
        if (!dirty) { setSaved("saved"); forgetHere(); }
      }
    })();
    await saving;
    saving = null;
  }

  function leave() { // the page may never come back
    if (!dirty || submitting) return;
    fetch(`/task/${key}/draft`, {
      method: "PUT", keepalive: true, body: JSON.stringify({ draft: collect(), active: Math.round(seconds) }),
      headers: { "Content-Type": "application/json", "X-CSRF": document.querySelector("meta[name=csrf]").content },
    }).catch(() => {});
  }
  document.addEventListener("visibilitychange", () => { if (document.hidden) leave(); });
  window.addEventListener("pagehide", leave);
  window.addEventListener("online", () => wait.wake?.());
  byId("retry").addEventListener("click", () => wait.wake?.());

  for (const sign of ["pointerdown", "pointermove", "keydown", "wheel", "scroll"]) {
    window.addEventListener(sign, () => { lastSign = Date.now(); }, { passive: true });
  }
  setInterval(() => {
    if (document.hidden || Date.now() - lastSign > IDLE_AFTER * 1000) return;
    seconds += 1;
    if (seconds - savedAt > LEASE_RENEWAL && !dirty) { dirty = true; save(); }
  }, 1000);

  // -- Review, submit, skip

  function element(tag, text, className) {
    const one = document.createElement(tag);
    if (text !== undefined) one.textContent = text;
    if (className) one.className = className;
    return one;
  }

  function orderList(judgment) {
    const list = element("ol", undefined, "order");
    const rows = completions.map((_, i) => i);
    if (!judgment.unrankable) rows.sort((a, b) => (rankOf(a) || 99) - (rankOf(b) || 99));
    const places = [...new Set(rows.map(rankOf))];
    for (const i of rows) {
      const row = element("li"), what = element("div", undefined, "order-what"), rating = ratingOf(i);
      row.append(element("span", judgment.unrankable || !rankOf(i) ? "–" : String(places.indexOf(rankOf(i)) + 1), "place"));
      row.append(element("span", LETTERS[i], "letter"), what);
      const flags = Object.entries(rating.flags).filter(([, value]) => value !== false && value !== null).map(([name]) => flagLabel(i, name));
      const said = [rating.rating ? `Quality ${rating.rating}` : "", ...flags].filter(Boolean).join(" · ");
      if (said) what.append(element("p", said));
      what.append(element("span", chips[i].querySelector(".chip-text").textContent, "snippet"));
      list.append(row);
    }
    return list;
  }

  function flagLabel(i, name) {
    const input = all("[data-flag]", forms[i]).find((one) => one.dataset.flag === name);
    return input.type === "checkbox" ? input.nextElementSibling.textContent : input.closest("fieldset").querySelector("legend").textContent;
  }

  function missing(judgment) {
    if (!k) return judgment.demonstration ? "" : "Write the answer first, or skip the item with a reason.";
    const left = completions.map((_, i) => i).filter((i) => !rankOf(i)).map((i) => LETTERS[i]);
    if (judgment.unrankable || !left.length) return "";
    return `Not ranked yet: ${left.join(", ")}. Rank each, or mark that they cannot be ranked.`;
  }

  function warnings(judgment) {
    if (!k) return [];
    const found = [], unrated = completions.map((_, i) => i).filter((i) => !qualityOf(i)).map((i) => LETTERS[i]);
    if (unrated.length) found.push(`No quality given: ${unrated.join(", ")}.`);
    if (judgment.unrankable && !judgment.notes.trim()) found.push("A note that says why they cannot be ranked would help.");
    if (judgment.unrankable) return found;
    completions.forEach((_, i) => completions.forEach((_, j) => {
      if (qualityOf(i) && qualityOf(j) && rankOf(i) < rankOf(j) && qualityOf(i) < qualityOf(j)) {
        found.push(`${LETTERS[i]} is ranked above ${LETTERS[j]}, but has the lower quality.`);
      }
    }));
    return found;
  }

  function review() {
    if (submitting || document.querySelector("dialog[open]")) return;
    const judgment = collect(), body = byId("review-body"), problem = missing(judgment);
    body.replaceChildren();
    if (judgment.unrankable) body.append(element("p", "These completions cannot be ranked."));
    if (k) body.append(orderList(judgment));
    if (judgment.demonstration) body.append(element("p", `Ideal answer: ${byId("demonstration-words").textContent}.`, "muted"));
    const found = warnings(judgment);
    if (found.length) {
      const list = element("ul", undefined, "warnings");
      list.append(...found.map((text) => element("li", text)));
      body.append(list);
    }
    byId("review-problem").textContent = problem;
    byId("submit").disabled = Boolean(problem);
    byId("review-dialog").showModal();
    (problem ? byId("review-dialog").querySelector("[data-close]") : byId("submit")).focus();
  }

  async function submit(judgment, problem) {
    if (submitting) return;
    submitting = true;
    clearTimeout(timer);
    keepHere();
    abort.abort(); // a draft must not come after the answer
    wait.wake?.(); // nor keep it waiting for its next attempt
    const dialog = problem.closest("dialog");
    dialog.close();
    main.inert = true; // what is changed now would be lost
    setSaved("sending");
    await saving;
    const answer = await send("POST", `/task/${key}`, () => judgment);
    if (answer.ok) {
      forgetHere();
      try { sessionStorage.setItem("submitted", "1"); } catch { /* forbidden */ }
      setSaved("sent");
      location.assign(answer.content.next || "/");
      return;
    }
    submitting = false;
    abort = new AbortController();
    main.inert = false;
    dialog.showModal();
    setSaved("failed");
    problem.textContent = answer.content.error || "The answer was refused. Reload the page and try again.";
  }

  byId("submit").addEventListener("click", () => {
    const judgment = collect();
    if (judgment.unrankable) judgment.ranks = null;
    submit(judgment, byId("review-problem"));
  });
  byId("skip-submit").addEventListener("click", () => {
    const reason = document.querySelector("input[name=reason]:checked")?.value, text = byId("skip-text").value.trim();
    if (!reason && !text) { byId("skip-problem").textContent = "Choose a reason, or write one."; return; }
    const skipped = [reason, text].filter(Boolean).join(": ").slice(0, 1000);
    submit({ skipped, notes: notes.value, seconds: Math.round(seconds), revision }, byId("skip-problem"));
  });
  byId("review").addEventListener("click", review);
  byId("skip").addEventListener("click", () => { if (!submitting) byId("skip-dialog").showModal(); });
  byId("help").addEventListener("click", () => byId("help-dialog").showModal());
  for (const button of all("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
  for (const dialog of all("dialog")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }

  // -- Dragging: onto a row is its rank, a tie if another is there; onto the edge of a row that is taken is between

  function placeBetween(i, rank) { // moves others up or down to the nearest free row
    const taken = (r) => completions.some((_, j) => j !== i && rankOf(j) === r);
    const move = (r, by) => completions.forEach((_, j) => { if (j !== i && rankOf(j) === r) setRank(j, r + by, true); });
    let free = rank;
    while (free <= k && taken(free)) free += 1;
    if (free <= k) {
      for (let r = free - 1; r >= rank; r -= 1) move(r, 1);
      setRank(i, rank);
      return;
    }
    free = rank - 1;
    while (free >= 1 && taken(free)) free -= 1;
    if (free < 1) return;
    for (let r = free + 1; r < rank; r += 1) move(r, -1);
    setRank(i, rank - 1);
  }

  function target(i, y) {
    for (const slot of all(".slot")) {
      const box = slot.getBoundingClientRect();
      if (y < box.top - 4 || y > box.bottom + 4) continue;
      const others = completions.some((_, j) => j !== i && rankOf(j) === Number(slot.dataset.rank) && slot.dataset.rank);
      const share = (y - box.top) / box.height;
      return { slot, where: others && share < 0.22 ? "before" : others && share > 0.78 ? "after" : "over" };
    }
    return null;
  }

  chips.forEach((chip, i) => {
    let start = null, found = null, wasDragged = false;
    const clear = () => all(".slot").forEach((slot) => slot.classList.remove("over", "before", "after"));
    const end = (event, isDrop) => {
      if (!start) return;
      start = null;
      clear();
      wasDragged = chip.classList.contains("dragged");
      chip.classList.remove("dragged");
      chip.style.transform = "";
      if (!isDrop || !found) return;
      const rank = Number(found.slot.dataset.rank) || null;
      if (found.where === "over") setRank(i, rank);
      else placeBetween(i, found.where === "before" ? rank : rank + 1);
      found = null;
    };
    chip.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !event.isPrimary) return;
      start = { x: event.clientX, y: event.clientY };
      found = null; // of a drag that the system has cancelled
      chip.setPointerCapture(event.pointerId);
    });
    chip.addEventListener("pointermove", (event) => {
      if (!start) return;
      const x = event.clientX - start.x, y = event.clientY - start.y;
      if (Math.hypot(x, y) < 6 && !chip.classList.contains("dragged")) return;
      chip.classList.add("dragged");
      chip.style.transform = `translate(${x}px, ${y}px)`;
      clear();
      found = target(i, event.clientY);
      found?.slot.classList.add(found.where);
    });
    chip.addEventListener("pointerup", (event) => end(event, true));
    chip.addEventListener("pointercancel", (event) => end(event, false));
    chip.addEventListener("focus", () => activate(i));
    chip.addEventListener("click", () => {
      if (!wasDragged) { activate(i); completions[i].scrollIntoView({ block: "nearest" }); }
      wasDragged = false;
    });
  });

  // -- Keys

  const isTyping = (node) => node.matches?.("textarea, input[type=text], select");
  let letterKeys = true;
  try { letterKeys = localStorage.getItem("letter-keys") !== "off"; } catch { /* forbidden */ }
  byId("letter-keys").checked = letterKeys;
  byId("letter-keys").addEventListener("change", (event) => {
    letterKeys = event.target.checked;
    try { localStorage.setItem("letter-keys", letterKeys ? "on" : "off"); } catch { /* forbidden */ }
  });

  function chooseQuality(i, n) {
    const radio = forms[i].querySelector(`.quality input[value="${n}"]`);
    if (!radio) return;
    radio.checked = true;
    announce(`${LETTERS[i]}: quality ${n}`);
    changed();
  }

  function keyed(event) {
    // The key beside the letters counts whatever the layout has on it; on a number pad, without Num Lock, it is an arrow.
    const digit = /^Digit(\d)$/.exec(event.code)?.[1] ?? (/^\d$/.test(event.key) ? event.key : null);
    if (digit !== null && k) {
      const n = Number(digit);
      if (event.shiftKey) { if (n >= 1 && n <= 7) chooseQuality(active, n); else return false; }
      else if (event.target.closest?.(".quality")) { if (n >= 1 && n <= 7) chooseQuality(active, n); }
      else if (n <= k) setRank(active, n || null);
      return true;
    }
    const chip = event.target.closest?.(".chip");
    if (chip && ["ArrowUp", "ArrowDown"].includes(event.key)) {
      const i = Number(chip.dataset.index), rank = rankOf(i);
      const next = event.key === "ArrowUp" ? (rank ? Math.max(1, rank - 1) : k) : (rank ? Math.min(k, rank + 1) : 1);
      setRank(i, next);
      return true;
    }
    const focused = document.activeElement?.closest?.("article.completion");
    const actions = {
      j: () => goTo(focused ? active + 1 : active), k: () => goTo(focused ? active - 1 : active),
      r: () => { if (k) toRating(active); }, n: () => notes.focus(), s: () => byId("skip").click(), u: () => byId("undo").click(),
      e: () => { const button = completions[active]?.querySelector(".fold"); if (button) fold(button); }, "?": () => byId("help").click(),
    };
    const action = actions[event.key];
    if (action) action();
    return Boolean(action);
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.repeat && !isTyping(event.target)) {
      event.preventDefault(); // a key that is held would submit what nobody has reviewed
      return;
    }
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && !event.repeat) {
      event.preventDefault();
      if (byId("review-dialog").open) byId("submit").click();
      else review();
      return;
    }
    if (submitting || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      const form = event.target.closest?.(".rating");
      if (form) goTo(Number(form.dataset.index));
      return;
    }
    if (!isTyping(event.target) && letterKeys && keyed(event)) event.preventDefault();
  });

  // -- Begin

  document.addEventListener("input", (event) => {
    if (event.target.closest("dialog")) return;
    const article = event.target.closest("article.completion");
    if (event.target.closest(".ranks")) setRank(Number(article.dataset.index), Number(event.target.value));
    else changed();
  });
  document.addEventListener("focusin", (event) => {
    const part = event.target.closest("article.completion, .rating");
    if (part) activate(Number(part.dataset.index));
  });
  for (const one of completions) one.addEventListener("pointerdown", () => activate(Number(one.dataset.index)));
  for (const button of all(".rate")) button.addEventListener("click", () => toRating(Number(button.closest("article").dataset.index)));
  for (const button of all(".fold")) button.addEventListener("click", () => fold(button));
  for (const button of all("[data-start]")) {
    button.addEventListener("click", () => {
      if (demonstration.value.trim() && !confirm("Replace what you have written?")) return;
      demonstration.value = button.dataset.text ?? completions[Number(button.dataset.start)].dataset.text;
      demonstration.focus();
      changed();
    });
  }
  wide.addEventListener("change", placeForms);
  placeForms();
  let draft = null;
  try { draft = JSON.parse(main.dataset.draft); } catch { /* none */ }
  const kept = keptHere();
  restore(kept || draft);
  if (k) activate(0);
  draw();
  document.body.dataset.ready = "";
  if (kept) changed();
  else if (draft) setSaved("saved");
  try {
    if (sessionStorage.getItem("submitted")) { setSaved("sent"); announce("Submitted. This is the next item."); }
    sessionStorage.removeItem("submitted");
  } catch { /* forbidden */ }
}
