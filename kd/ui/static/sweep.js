// The Sweep tab: what would be trained, and the heat maps as their cells fill. It keeps no state of a sweep but the cursor,
// up to which it has read the events.
(() => {
  const { answer, sleep, address } = window.distillery;
  const POLL = 1000, POLL_AWAY = 1500, UNCHANGED = 400;
  const RESUME_TIME = 25000; // a sweep that was asked to go on may look closed for this long
  const CLOSED = ["done", "failed", "stopped", "died"];

  // The line under the button: what would be trained with the widgets' present values
  function sweepPlan({ element, props, server, watch }) {
    const $ = (selector) => element.querySelector(selector);
    let asks = 0; // how often the plan was asked for: an earlier answer is dropped
    async function ask() {
      const nth = ++asks;
      await sleep(UNCHANGED);
      while (!element.offsetParent && nth === asks && element.isConnected) await sleep(200);
      if (nth !== asks) return;
      const update = await answer(server.preview({ ...props.value })).catch(() => ({}));
      if (nth !== asks) return;
      $(".kd-plan").textContent = update.problem ?? update.plan ?? "";
      $(".kd-plan").classList.toggle("kd-problem", Boolean(update.problem));
      $(".kd-rest").textContent = update.rest ?? "";
      if (update.measuring) sleep(POLL).then(() => { if (nth === asks) ask(); }); // the plan's minutes come with it
    }
    watch("value", ask);
    ask();
  }

  function sweep({ element, props, server, watch, open }) {
    const $ = (selector) => element.querySelector(selector);
    const text = (selector, words) => { if ($(selector).textContent !== words) $(selector).textContent = words; };
    const owner = () => props.value.owner;
    let followed = "", shown = "";
    let shows = 0; // how many sweeps have been shown: an answer about an earlier one is dropped

    async function list(chosen) {
      const { sweeps } = await answer(server.offered({ owner: owner() }));
      $("select").replaceChildren(...sweeps.map(([id, words]) => Object.assign(document.createElement("option"), { value: id, textContent: words })));
      const known = sweeps.some(([id]) => id === chosen);
      if (chosen && !known) $("select").prepend(Object.assign(document.createElement("option"), { value: chosen, textContent: "Another" }));
      $(".kd-earlier").hidden = sweeps.length < (chosen && !known ? 1 : 2);
      return $("select").value = chosen || sweeps[0]?.[0] || "";
    }
    function reset(id) {
      shown = id;
      $(".kd-empty").hidden = Boolean(id);
      $(".kd-run").hidden = !id;
      $(".kd-run").dataset.status = "";
      $(".kd-maps").innerHTML = $(".kd-result").innerHTML = "";
      for (const name of ["title", "about", "figures", "plan", "legend", "stay"]) text(`.kd-${name}`, "");
      for (const button of element.querySelectorAll("header button")) button.hidden = true;
      text("[role=status]", id ? "Looking for the sweep" : "");
    }
    function show(update) {
      text("[role=status]", update.line[0]);
      text(".kd-figures", update.line[1]);
      $(".kd-run").dataset.status = update.status;
      $(".kd-bar > div").style.width = `${100 * update.share}%`;
      $(".kd-bar").setAttribute("aria-valuenow", Math.round(100 * update.share));
      for (const name of ["title", "about", "plan", "legend", "stay"]) if (name in update) text(`.kd-${name}`, update[name]);
      if (update.maps) $(".kd-maps").innerHTML = update.maps;
      for (const [nth, cell] of Object.entries(update.cells ?? {})) {
        for (const place of element.querySelectorAll(`[data-point="${nth}"]`)) fill(place, cell);
      }
      if (update.cells) colour();
      const closed = CLOSED.includes(update.status);
      $(".kd-stop").hidden = closed;
      $(".kd-resume").hidden = !closed || update.status === "done";
      $(".kd-delete").hidden = !closed;
      if (update.result && !$(".kd-result").firstChild) $(".kd-result").innerHTML = update.result;
      if (update.final) Object.assign($(".kd-final"), { hidden: false, onclick: () => open(update.final) });
      return closed;
    }
    function fill(place, cell) {
      const had = place.contains(document.activeElement);
      const inside = document.createElement(cell.run ? "button" : "div");
      inside.className = "kd-cell";
      const add = (tag, textContent, className = "") => inside.append(Object.assign(document.createElement(tag), { textContent, className }), " ");
      add(cell.accuracy === null ? "small" : "b", cell.text);
      for (const words of cell.small) add("small", words);
      if (cell.run) {
        Object.assign(inside, { type: "button", title: "Open its run", onclick: () => open(cell.run) });
        add("span", cell.point, "kd-unseen");
      }
      place.replaceChildren(inside);
      place.dataset.is = cell.is;
      if (cell.accuracy === null) delete place.dataset.accuracy;
      else place.dataset.accuracy = cell.accuracy;
      if (had) inside.focus();
    }
    // The deeper a cell's colour, the better it is among those that are measured.
    function colour() {
      const places = [...element.querySelectorAll("[data-accuracy]")], all = places.map((place) => Number(place.dataset.accuracy));
      const low = Math.min(...all), high = Math.max(...all);
      for (const place of element.querySelectorAll("[data-point]")) place.style.removeProperty("--heat");
      places.forEach((place, nth) => {
        const share = high > low ? (all[nth] - low) / (high - low) : 0.5;
        place.style.setProperty("--heat", `${Math.round(6 + 46 * share)}%`);
      });
    }
    async function act(action) {
      const { problem } = await answer(server[action]({ owner: owner(), sweep: shown })).catch(() => ({ problem: "The server is away. Try again." }));
      if (problem) text("[role=status]", problem);
      else if (action === "resume_it") follow(shown, true);
    }
    // Ask in a dialog, and delete the sweep if that is answered with Delete.
    function confirmDelete() {
      const dialog = $("dialog"), id = shown;
      text(".kd-which", `${$(".kd-title").textContent}, ${$(".kd-about").textContent}`);
      dialog.returnValue = "";
      dialog.onclose = async () => {
        if (dialog.returnValue !== "delete") return;
        const { problem } = await answer(server.delete_it({ owner: owner(), sweep: id })).catch(() => ({ problem: "The server is away. Try again." }));
        text(".kd-message", problem ?? "Deleted.");
        if (!problem) choose("");
      };
      dialog.showModal();
    }
    async function follow(asked, fresh) {
      const nth = ++shows, resumesUntil = fresh ? Date.now() + RESUME_TIME : 0;
      const replaced = () => nth !== shows || !element.isConnected;
      const untilVisible = async () => { while (!replaced() && (!element.offsetParent || document.hidden)) await sleep(200); };
      let id;
      while (id === undefined) {
        await untilVisible();
        if (replaced()) return;
        try {
          id = await list(asked);
        } catch {
          await sleep(POLL_AWAY);
        }
      }
      if (replaced()) return;
      reset(id);
      let cursor = 0;
      while (id && !replaced()) {
        let update;
        try {
          update = await answer(server.poll({ owner: owner(), sweep: id, cursor }));
        } catch {
          if (replaced()) return;
          text("[role=status]", "Reconnecting: the sweep goes on meanwhile.");
          text(".kd-figures", "");
          await sleep(POLL_AWAY);
          continue;
        }
        if (replaced()) return;
        if (update.refused) {
          text("[role=status]", update.refused);
          $(".kd-run").dataset.status = "refused";
          return;
        }
        const closed = show(update);
        cursor = update.cursor;
        if (closed && (update.status === "done" || Date.now() > resumesUntil)) return;
        await sleep(POLL);
        await untilVisible();
      }
    }
    function choose(id, fresh) {
      history.replaceState(history.state, "", address({ sweep: id }));
      follow(id, fresh);
      if (fresh && element.getBoundingClientRect().top > window.innerHeight / 2) element.scrollIntoView({ behavior: "smooth" });
    }
    $(".kd-stop").onclick = () => act("stop_it");
    $(".kd-resume").onclick = () => act("resume_it");
    $(".kd-delete").onclick = confirmDelete;
    $("select").onchange = () => { text(".kd-message", ""); choose($("select").value); };
    const followValue = () => {
      const key = JSON.stringify(props.value ?? {});
      if (!("owner" in (props.value ?? {})) || key === followed) return;
      followed = key;
      text(".kd-message", "");
      if (props.value.new) choose(props.value.sweep, true);
      else follow(props.value.sweep);
    };
    watch("value", followValue);
    followValue();
  }

  Object.assign(window.distillery, { sweep, sweepPlan });
})();
