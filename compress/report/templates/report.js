// Tooltips, and one choice of candidate shared by plot, table and pictures. The page is whole without it.
(() => {
  const tip = document.getElementById("tip");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const place = (box) => {
    const margin = 8, size = tip.getBoundingClientRect();
    const middle = box.left + box.width / 2 - size.width / 2;
    tip.style.left = `${Math.max(margin, Math.min(middle, document.documentElement.clientWidth - size.width - margin))}px`;
    tip.style.top = `${box.top - size.height - margin > margin ? box.top - size.height - margin : box.bottom + margin}px`;
  };
  const show = (lines, box) => {
    tip.replaceChildren(...lines.map((line, i) => {
      const row = document.createElement(i ? "div" : "b");
      row.textContent = line;
      return row;
    }));
    tip.hidden = false;
    place(box);
  };
  const hide = () => { tip.hidden = true; };

  const light = (key, on) => all(`[data-key="${key}"]`).forEach((e) => e.classList.toggle("lit", on));
  const choose = (key) => {
    const input = document.getElementById(`show-${key}`);
    if (input) { input.checked = true; }
    return input;
  };

  // A native title would cover the tooltip; its text moves there.
  all("svg title").forEach((title) => {
    const owner = title.parentNode, lines = title.textContent.split("\n");
    title.remove();
    const mark = owner.closest(".mark");
    const box = () => (mark ? owner.querySelector(".target") : owner).getBoundingClientRect();
    owner.addEventListener("pointerenter", () => { show(lines, box()); if (mark) { light(mark.dataset.key, true); } });
    owner.addEventListener("pointerleave", () => { hide(); if (mark) { light(mark.dataset.key, false); } });
    if (!mark) { return; }
    owner.addEventListener("focus", () => { show(lines, box()); light(mark.dataset.key, true); });
    owner.addEventListener("blur", () => { hide(); light(mark.dataset.key, false); });
    if (!document.getElementById(`show-${mark.dataset.key}`)) { return; }
    owner.setAttribute("role", "button");
    owner.addEventListener("click", () => choose(mark.dataset.key));
    owner.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(mark.dataset.key); }
    });
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { hide(); } });
  document.addEventListener("scroll", hide, { passive: true });

  all("table.candidates tbody tr").forEach((row) => {
    row.addEventListener("pointerenter", () => light(row.dataset.key, true));
    row.addEventListener("pointerleave", () => light(row.dataset.key, false));
    row.addEventListener("click", () => choose(row.dataset.key));
  });

  const closed = new Set();
  addEventListener("beforeprint", () => all("details:not([open])").forEach((d) => { closed.add(d); d.open = true; }));
  addEventListener("afterprint", () => { closed.forEach((d) => { d.open = false; }); closed.clear(); });
})();
