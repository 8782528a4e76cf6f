"use strict";
(() => {
  const PAUSE = 5000;
  const pods = document.querySelector("#pods");
  let wanted = "";

  const filter = () => {
    for (const row of document.querySelectorAll("#pods tbody tr")) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  };

  if (pods && pods.querySelector("tbody")) {
    const input = document.createElement("input");
    input.type = "search";
    input.className = "filter";
    input.autocomplete = "off";
    input.placeholder = "Filter by name, state or reason";
    input.setAttribute("aria-label", input.placeholder);
    input.addEventListener("input", () => {
      wanted = input.value.trim().toLowerCase();
      filter();
    });
    pods.querySelector("h2").after(input);
  }

  // The same page again; of its parts those are replaced that are other than before.
  const known = new Map();
  const parts = (page) => page.querySelectorAll("#head, #foot, section[id]");
  for (const part of parts(document)) known.set(part.id, null);

  const bottom = (log) => log.scrollHeight - log.scrollTop - log.clientHeight < 8;
  const live = (text) => {
    for (const place of document.querySelectorAll(".live")) place.textContent = text;
  };
  for (const log of document.querySelectorAll(".log")) log.scrollTop = log.scrollHeight;

  const replace = (old, fresh) => {
    const open = new Set([...old.querySelectorAll("details[open]")].map((one) => one.querySelector("summary").textContent));
    const shut = new Set([...old.querySelectorAll("details:not([open])")].map((one) => one.querySelector("summary").textContent));
    for (const one of fresh.querySelectorAll("details")) {
      const name = one.querySelector("summary").textContent;
      if (open.has(name)) one.open = true;
      if (shut.has(name)) one.open = false;
    }
    const input = old.querySelector(".filter");
    const had = old.contains(document.activeElement) ? document.activeElement : null;
    const log = old.querySelector(".log");
    const follow = log ? bottom(log) : false;
    const top = log ? log.scrollTop : 0;
    if (input) {
      // Its own node stays, with what is written and where the cursor is.
      for (const child of [...old.childNodes]) if (child !== input) child.remove();
      const [head, ...rest] = [...document.importNode(fresh, true).childNodes];
      old.prepend(head);
      old.append(...rest);
      filter();
    } else {
      old.replaceChildren(...document.importNode(fresh, true).childNodes);
    }
    const now = old.querySelector(".log");
    if (now) now.scrollTop = follow ? now.scrollHeight : top;
    if (had && had !== input && had.href) {
      const same = [...old.querySelectorAll("a")].find((link) => link.href === had.href);
      if (same) same.focus({ preventScroll: true });
    }
  };

  // Style and script of the answer have another nonce, and are those that are here.
  const without = (text) => text.replace(/<(style|script)\b[^]*?<\/\1>/g, "");

  const look = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.pathname, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(without(await answer.text()), "text/html");
      for (const part of parts(page)) {
        const old = document.getElementById(part.id);
        if (!old || !known.has(part.id)) continue;
        const text = part.innerHTML;
        if (known.get(part.id) !== text) replace(old, part);
        known.set(part.id, text);
      }
      live("live, every 5 seconds");
    } catch {
      live("not live any more: cnictl page has ended, or does not answer");
    }
  };
  setInterval(look, PAUSE);
  document.addEventListener("visibilitychange", look);
})();
