// The Runs tab: the list, the curves of the chosen runs, and the questions before a run is renamed or deleted.
window.distillery.runs = (() => {
  const { answer, sleep, draw } = window.distillery;
  const POLL = 2000;

  function runs({ element, props, server, open, compare }) {
    const $ = (selector) => element.querySelector(selector);
    const say = (words) => { $(".kd-message").textContent = words; };
    const chosen = () => [...element.querySelectorAll("input:checked")].map((box) => box.value);
    let mark = null; // of the rows that are shown
    let drawn = ""; // the runs whose curves are shown

    function fill(body) {
      const kept = new Set(chosen()), focus = document.activeElement?.getAttribute("aria-label");
      $("tbody").innerHTML = body;
      for (const box of element.querySelectorAll("input")) box.checked = kept.has(box.value);
      for (const time of element.querySelectorAll("time")) {
        time.textContent = new Date(time.dateTime).toLocaleString([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
      }
      if (focus) element.querySelector(`[aria-label="${CSS.escape(focus)}"]`)?.focus();
      $(".kd-empty").hidden = element.querySelectorAll("tbody tr").length > 1; // the example is always there
      $(".kd-list").hidden = false;
    }
    async function overlay() {
      const ids = chosen(), charts = [...element.querySelectorAll(".kd-chart")];
      const figures = ids.length ? await answer(server.curves({ owner: props.value.owner, runs: ids })) : null;
      if (figures?.problem) return say(figures.problem);
      drawn = ids.join();
      for (const div of charts) {
        div.hidden = !figures;
        if (figures) await draw(div, figures[div.dataset.figure]);
      }
    }
    async function refresh() {
      const update = await answer(server.rows({ owner: props.value.owner, seen: mark }));
      if ($(".kd-message").dataset.away) { say(""); delete $(".kd-message").dataset.away; }
      if (!update.mark) return;
      mark = update.mark;
      fill(update.html);
      $(".kd-lost").textContent = update.lost;
      $(".kd-lost").hidden = !update.lost;
      if (drawn || chosen().length) await overlay();
    }
    const tryRefresh = () => refresh().catch(() => { say("Reconnecting"); $(".kd-message").dataset.away = "yes"; });

    const DONE = { stop: "Stopping: the student so far is kept.", rename: "Renamed.", delete: "Deleted." };
    async function act(what, run, name) {
      const { problem } = await answer(server.act({ owner: props.value.owner, run, do: what, name })).catch(() => ({ problem: "The server is away. Try again." }));
      say(problem ?? DONE[what]);
      await tryRefresh();
    }
    // Ask about a run in a dialog, and act if that is answered with the button named `what`.
    function confirm(what, row, kind) {
      const dialog = $(kind), run = row.dataset.run, field = dialog.querySelector("input");
      dialog.querySelector(".kd-which").textContent = `${row.querySelector("b").textContent}, started ${row.querySelector("time").textContent}`;
      if (field) field.value = row.dataset.name;
      dialog.returnValue = "";
      dialog.onclose = () => { if (dialog.returnValue === what) act(what, run, field?.value); };
      dialog.showModal();
    }
    element.addEventListener("click", (event) => {
      const what = event.target.closest("[data-do]")?.dataset.do, row = event.target.closest("tr");
      if (what === "open") open(row.dataset.run);
      if (what === "compare") compare(row.dataset.run);
      if (what === "stop") act("stop", row.dataset.run);
      if (what === "rename") confirm(what, row, ".kd-naming");
      if (what === "delete") confirm(what, row, ".kd-deleting");
      if (what === "keep") $(".kd-naming").close();
    });
    element.addEventListener("change", () => overlay().catch(() => say("Reconnecting")));
    (async () => {
      while (element.isConnected) {
        const visible = element.offsetParent && !document.hidden && "owner" in (props.value ?? {});
        if (visible) await tryRefresh();
        await sleep(visible ? POLL : 200);
      }
    })();
  }

  return runs;
})();
