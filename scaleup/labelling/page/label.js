"use strict";
// The secret stands behind the # of the address. Every text of a prompt or an answer becomes a text node, never markup.
const secret = location.hash.slice(1);
const place = (name) => document.getElementById(name);
const QUESTION = place("question").textContent;
let view = null;
let ranking = null; // {given: ranks in the order shown, 0 for none yet; equal: the next one is as good as the last}
let busy = false;

async function ask(path, body) {
  const headers = { Authorization: `Bearer ${secret}` };
  if (body) headers["Content-Type"] = "application/json";
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const answer = await fetch(path, options);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

async function act(path, body) {
  if (busy) return;
  busy = true;
  try {
    view = await ask(path, body);
    ranking = null;
    say("");
    if (path === "finish") end();
    else show();
  } catch (error) {
    const gone = error instanceof TypeError;
    say(gone ? "scaleup label does not run any more: start it again and open the address that it prints." : error.message, true);
  } finally {
    busy = false;
  }
}

function say(text, isError = false) {
  place("message").textContent = text;
  place("message").className = isError ? "error" : "";
}

function make(kind, className, text) {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

function words(text) {
  return text.trim() ? make("p", "text", text) : make("p", "text empty", "(nothing)");
}

function show() {
  place("progress").textContent = `${view.decided} of ${view.total} decided by ${view.labeller}`;
  place("bar").max = view.total;
  place("bar").value = view.decided;
  place("keys").hidden = view.at === null || ranking !== null;
  place("ranking").hidden = ranking === null;
  place("question").textContent = ranking ? "Take the best answer first, then the next one" : QUESTION;
  place("prompt").replaceChildren();
  place("answers").replaceChildren();
  if (view.at === null) {
    const counts = Object.entries(view.counts).map(([kind, count]) => `${count} ${kind}`);
    say(`All ${view.total} are decided: ${counts.join(", ")}. Finish, or go back to look again.`);
    return;
  }
  for (const turn of view.prompt) {
    if (turn.role) place("prompt").append(make("p", "role", turn.role));
    place("prompt").append(words(turn.text));
  }
  // A long prompt scrolls by itself, also by keys.
  place("prompt").tabIndex = place("prompt").scrollHeight > place("prompt").clientHeight ? 0 : -1;
  view.answers.forEach((text, number) => place("answers").append(card(text, number)));
}

function card(text, number) {
  const ranks = ranking ? ranking.given : view.decision && view.decision.ranks;
  const rank = ranks ? ranks[number] : 0;
  const made = make("article", rank === 1 ? "best" : "", "");
  made.append(words(text));
  const kind = ranking || (view.decision && view.decision.kind === "ranking") ? `rank ${rank}` : rank === 1 ? "better" : "";
  const button = make("button", "", rank && kind ? `Answer ${number + 1}: ${kind} ` : `Answer ${number + 1} `);
  button.append(make("kbd", "", String(number + 1)));
  button.dataset.key = String(number + 1);
  made.append(button);
  return made;
}

function end() {
  for (const name of ["prompt", "answers"]) place(name).replaceChildren();
  document.querySelector("footer").hidden = true;
  say("Thank you. Everything is written down, and this page may be closed.");
  view = null;
}

function rank(key) {
  const level = Math.max(...ranking.given);
  if (key === "Escape") ranking = null;
  else if (key === "=") ranking.equal = level > 0;
  else if (key === "Enter" && level) ranking.given = ranking.given.map((given) => given || level + 1);
  else if (ranking.given[Number(key) - 1] === 0) {
    ranking.given[Number(key) - 1] = ranking.equal ? level : level + 1;
    ranking.equal = false;
  }
  if (ranking && ranking.given.every(Boolean)) {
    const kind = Math.max(...ranking.given) === 1 ? "tie" : "ranking";
    act("decide", { at: view.at, kind, ranks: ranking.given });
  } else {
    say("");
    show();
  }
}

function press(key) {
  if (!view || busy) return false;
  if (key === "q") return act("finish", {});
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const here = view.at === null ? (key === "ArrowLeft" ? view.total : -1) : view.at;
    return act(`state?at=${Math.max(0, here + (key === "ArrowRight" ? 1 : -1))}`);
  }
  if (ranking) return rank(key);
  if (key === "u") return act("undo", {});
  if (view.at === null) return false;
  const count = view.answers.length;
  if (key === "r") { ranking = { given: Array(count).fill(0), equal: false }; return show(); }
  if (key === "t") return act("decide", { at: view.at, kind: "tie", ranks: Array(count).fill(1) });
  if (key === "n") return act("decide", { at: view.at, kind: "neither", ranks: null });
  const number = Number(key);
  if (!(number >= 1 && number <= count)) return false;
  return act("decide", { at: view.at, kind: "choice", ranks: view.answers.map((_, at) => (at === number - 1 ? 1 : 2)) });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const onButton = event.target.closest("button") && (event.key === "Enter" || event.key === " ");
  const known = /^([1-9rtnuq=]|Enter|Escape|ArrowLeft|ArrowRight)$/.test(event.key);
  if (onButton || !known) return;
  event.preventDefault();
  press(event.key);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-key]");
  if (button) press(button.dataset.key);
});
act("state");
