// The Sweep tab: what would be trained, and the heat maps as their cells fill. It keeps no state of a sweep but the place
// up to which it has read the events.
(() => {
  const { answer, sleep, address } = window.distillery;
  const POLL = 1000, POLL_AWAY = 1500, STILL = 400, PATIENCE = 25000;
  const CLOSED = ["done", "failed", "stopped", "died"];

  // What would be trained with the widgets as they stand
  function preview(element, props, server, watch) {
    const $ = (selector) => element.querySelector(selector);
    let asking = 0;
    async function ask() {
      const mine = ++asking;
      await sleep(STILL);
      while (!element.offsetParent && mine === asking && element.isConnected) await sleep(200);
      if (mine !== asking) return;
      const news = await answer(server.preview({ ...props.value })).catch(() => ({}));
      if (mine !== asking) return;
      $(".kd-plan").textContent = news.problem ?? news.plan ?? "";
      $(".kd-plan").classList.toggle("kd-problem", Boolean(news.problem));
      $(".kd-rest").textContent = news.rest ?? "";
      if (news.measuring) sleep(POLL).then(() => { if (mine === asking) ask(); }); // the plan's minutes come with it
    }
    watch("value", ask);
    ask();
  }

  function sweep(element, props, server, watch, open) {
    const $ = (selector) => element.querySelector(selector);
    const text = (selector, words) => { if ($(selector).textContent !== words) $(selector).textContent = words; };
    const owner = () => props.value.owner;
    let followed = "", showing = 0, shown = ""; // how many sweeps have been shown: an answer about an earlier one is dropped

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
      for (const name of ["title", "about", "pace", "plan", "legend", "stay"]) text(`.kd-${name}`, "");
      for (const button of element.querySelectorAll("header button")) button.hidden = true;
      text("[role=status]", id ? "Looking for the sweep" : "");
    }
    function paint(news) {
      text("[role=status]", news.line[0]);
      text(".kd-pace", news.line[1]);
      $(".kd-run").dataset.status = news.status;
      $(".kd-bar > div").style.width = `${100 * news.share}%`;
      $(".kd-bar").setAttribute("aria-valuenow", Math.round(100 * news.share));
      for (const name of ["title", "about", "plan", "legend", "stay"]) if (name in news) text(`.kd-${name}`, news[name]);
      if (news.maps) $(".kd-maps").innerHTML = news.maps;
      for (const [nth, cell] of Object.entries(news.cells ?? {})) {
        for (const place of element.querySelectorAll(`[data-point="${nth}"]`)) fill(place, cell);
      }
      if (news.cells) heat();
      const closed = CLOSED.includes(news.status);
      $(".kd-stop").hidden = closed;
      $(".kd-resume").hidden = !closed || news.status === "done";
      $(".kd-delete").hidden = !closed;
      if (news.result && !$(".kd-result").firstChild) $(".kd-result").innerHTML = news.result;
      if (news.final) Object.assign($(".kd-final"), { hidden: false, onclick: () => open(news.final) });
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
    function heat() {
      const places = [...element.querySelectorAll("[data-accuracy]")], all = places.map((place) => Number(place.dataset.accuracy));
      const low = Math.min(...all), high = Math.max(...all);
      for (const place of element.querySelectorAll("[data-point]")) place.style.removeProperty("--heat");
      places.forEach((place, nth) => {
        const share = high > low ? (all[nth] - low) / (high - low) : 0.5;
        place.style.setProperty("--heat", `${Math.round(6 + 46 * share)}%`);
      });
    }
    async function ask(action) {
      const { problem } = await answer(server[action]({ owner: owner(), sweep: shown })).catch(() => ({ problem: "The server is away. Try again." }));
      if (problem) text("[role=status]", problem);
      else if (action === "resume_it") show(shown, true);
    }
    // The question, and what is done if it is answered with Delete.
    function sure() {
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
    async function show(asked, fresh) {
      const mine = ++showing, patient = fresh ? Date.now() + PATIENCE : 0;
      const away = () => mine !== showing || !element.isConnected;
      const seen = async () => { while (!away() && (!element.offsetParent || document.hidden)) await sleep(200); };
      let id;
      while (id === undefined) {
        await seen();
        if (away()) return;
        try {
          id = await list(asked);
        } catch {
          await sleep(POLL_AWAY);
        }
      }
      if (away()) return;
      reset(id);
      let cursor = 0;
      while (id && !away()) {
        let news;
        try {
          news = await answer(server.poll({ owner: owner(), sweep: id, cursor }));
        } catch {
          if (away()) return;
          text("[role=status]", "Reconnecting: the sweep goes on meanwhile.");
          text(".kd-pace", "");
          await sleep(POLL_AWAY);
          continue;
        }
        if (away()) return;
        if (news.refused) {
          text("[role=status]", news.refused);
          $(".kd-run").dataset.status = "refused";
          return;
        }
        const closed = paint(news);
        cursor = news.cursor;
        if (closed && (news.status === "done" || Date.now() > patient)) return;
        await sleep(POLL);
        await seen();
      }
    }
    function choose(id, fresh) {
      history.replaceState(history.state, "", address({ sweep: id }));
      show(id, fresh);
      if (fresh && element.getBoundingClientRect().top > window.innerHeight / 2) element.scrollIntoView({ behavior: "smooth" });
    }
    $(".kd-stop").onclick = () => ask("stop_it");
    $(".kd-resume").onclick = () => ask("resume_it");
    $(".kd-delete").onclick = sure;
    $("select").onchange = () => { text(".kd-message", ""); choose($("select").value); };
    const follow = () => {
      const key = JSON.stringify(props.value ?? {});
      if (!("owner" in (props.value ?? {})) || key === followed) return;
      followed = key;
      text(".kd-message", "");
      if (props.value.new) choose(props.value.sweep, true);
      else show(props.value.sweep);
    };
    watch("value", follow);
    follow();
  }

  Object.assign(window.distillery, { preview, sweep });
})();
