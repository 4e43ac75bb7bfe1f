// The page's script. It keeps no state of a run but the place up to which it has read the events.
window.distillery = (() => {
  const GIVE_UP = 10000, POLL = 500, POLL_HIDDEN = 3000, POLL_AWAY = 1500, POLL_LIST = 2000;
  const PATIENCE = 25000; // a run that was asked to go on may look closed for this long
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  // A call of the server's that fails resolves to nothing, or to a description of the error.
  const answer = async (call) => {
    const value = await Promise.race([call, sleep(GIVE_UP)]);
    if (!value || value.error || value.detail) throw new Error("no answer");
    return value;
  };
  const plotly = async () => { while (!window.Plotly) await sleep(50); return window.Plotly; };

  // --- Charts

  const colours = () => {
    const style = getComputedStyle(document.body);
    const grid = style.getPropertyValue("--border-color-primary").trim();
    return {
      "font.color": style.getPropertyValue("--body-text-color").trim(),
      "font.family": getComputedStyle(document.querySelector(".gradio-container")).fontFamily,
      "xaxis.gridcolor": grid, "yaxis.gridcolor": grid, "xaxis.zerolinecolor": grid, "yaxis.zerolinecolor": grid,
      "hoverlabel.bgcolor": style.getPropertyValue("--background-fill-primary").trim(),
      "hoverlabel.bordercolor": grid,
    };
  };
  const themed = (layout) => {
    layout = structuredClone(layout);
    for (const [path, value] of Object.entries(colours())) {
      const [group, name] = path.split(".");
      layout[group] = { ...layout[group], [name]: value };
    }
    return layout;
  };
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) if (target.data && target.offsetParent) window.Plotly.Plots.resize(target);
  });
  const CONFIG = { displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  async function draw(chart, figure) {
    const Plotly = await plotly();
    await Plotly.react(chart, figure.data, themed(figure.layout), CONFIG);
    chart.setAttribute("role", "group");
    chart.setAttribute("aria-label", `Chart: ${figure.layout.title.text}`);
    resized.observe(chart);
  }
  async function append(chart, { x, y }) {
    const Plotly = await plotly();
    if (x.length) await Plotly.extendTraces(chart, { x: y.map(() => x), y }, y.map((_, trace) => trace));
  }
  new MutationObserver(() => {
    for (const chart of document.querySelectorAll(".kd-chart")) if (chart.data) window.Plotly.relayout(chart, colours());
  }).observe(document.documentElement, { attributes: true, subtree: false, attributeFilter: ["class"] });

  // --- The run on the first tab

  function address(run, view) {
    const url = new URL(window.location.href);
    for (const [name, value] of Object.entries({ run, view })) {
      if (value) url.searchParams.set(name, value);
      else url.searchParams.delete(name);
    }
    return url;
  }

  function live(element, props, server, watch, compare) {
    let showing = 0; // how many runs have been shown: an answer about an earlier one is dropped
    const $ = (selector) => element.querySelector(selector);
    const text = (selector, words) => { if ($(selector).textContent !== words) $(selector).textContent = words; };

    function paint(news) {
      text("[role=status]", news.line[0]);
      text(".kd-pace", news.line[1]);
      $(".kd-run").dataset.status = news.status;
      $(".kd-bar > div").style.width = `${100 * news.share}%`;
      $(".kd-bar").setAttribute("aria-valuenow", Math.round(100 * news.share));
      [...$(".kd-stages").children].forEach((stage, nth) => {
        stage.className = nth < news.stage || news.status === "done" ? "past" : nth === news.stage ? "now" : "";
        stage.toggleAttribute("aria-current", stage.className === "now");
      });
      if (news.title) introduce(news);
      const mine = $(".kd-run").dataset.mine === "yes", closed = ["done", "failed", "stopped", "died"].includes(news.status);
      $(".kd-stop").hidden = !mine || closed;
      $(".kd-resume").hidden = !mine || !closed || news.status === "done";
      $(".kd-compare").hidden = news.status !== "done";
      $(".kd-share").hidden = !mine;
      if (news.result && !$(".kd-result").firstChild) $(".kd-result").innerHTML = news.result;
      for (const words of news.warnings ?? []) warn(words);
      return closed;
    }
    function introduce(news) {
      text(".kd-title", news.title[0]);
      text(".kd-detail", news.title[1]);
      $(".kd-run").dataset.mine = news.mine ? "yes" : "no";
      $(".kd-share").onclick = async () => {
        const link = address(props.value.run, news.view).href;
        try {
          await navigator.clipboard.writeText(link);
          text(".kd-share", "Copied");
          setTimeout(() => text(".kd-share", "Copy read-only link"), 2000);
        } catch {
          window.prompt("Anyone with this link can see the run, and change nothing:", link);
        }
      };
    }
    function warn(words) {
      const list = $(".kd-warnings");
      if ([...list.children].some((item) => item.textContent === words)) return;
      list.hidden = false;
      list.append(Object.assign(document.createElement("li"), { textContent: words }));
    }
    async function chart(news) {
      for (const div of element.querySelectorAll(".kd-chart")) {
        if (news.figures) await draw(div, news.figures[div.dataset.figure]);
        else if (news.append) await append(div, news.append[div.dataset.figure]);
      }
    }
    async function ask(action) {
      const { problem } = await answer(server[action]({ ...props.value })).catch(() => ({ problem: "The server is away. Try again." }));
      if (problem) text("[role=status]", problem);
      else if (action === "resume_it") show({ ...props.value, new: true });
    }
    function reset(value) {
      $(".kd-empty").hidden = Boolean(value.run) || !("owner" in value);
      $(".kd-run").hidden = !value.run;
      $(".kd-result").innerHTML = $(".kd-warnings").innerHTML = "";
      $(".kd-warnings").hidden = true;
      for (const button of element.querySelectorAll("button")) button.hidden = true;
      text(".kd-title", ""); text(".kd-detail", ""); text(".kd-pace", "");
      text("[role=status]", value.run ? "Looking for the run" : "");
      $(".kd-stop").onclick = () => ask("stop_it");
      $(".kd-resume").onclick = () => ask("resume_it");
      $(".kd-compare").onclick = () => compare(value.run);
      if (value.new) {
        history.replaceState(history.state, "", address(value.run));
        if (element.getBoundingClientRect().top > window.innerHeight / 2) element.scrollIntoView({ behavior: "smooth" });
      }
    }
    async function show(value) {
      const mine = ++showing, patient = value.new ? Date.now() + PATIENCE : 0;
      let cursor = 0, drawing = Promise.resolve(); // drawing waits for Plotly on a slow line; the words do not
      reset(value);
      while (value.run && mine === showing && element.isConnected) {
        let news;
        try {
          news = await answer(server.poll({ run: value.run, owner: value.owner, view: value.view, cursor }));
        } catch {
          if (mine !== showing) return;
          text("[role=status]", "Reconnecting: the run goes on meanwhile.");
          text(".kd-pace", "");
          await sleep(POLL_AWAY);
          continue;
        }
        if (mine !== showing) return;
        if (news.refused) {
          text("[role=status]", news.refused);
          $(".kd-run").dataset.status = "refused";
          return;
        }
        const closed = paint(news);
        drawing = drawing.then(() => mine === showing && chart(news));
        cursor = news.cursor;
        if (closed && (news.status === "done" || Date.now() > patient)) return;
        await sleep(document.hidden ? POLL_HIDDEN : POLL);
      }
    }
    watch("value", () => show(props.value));
    show(props.value);
  }

  // --- The list of runs

  function runs(element, props, server, watch, open, compare) {
    const $ = (selector) => element.querySelector(selector);
    const say = (words) => { $(".kd-message").textContent = words; };
    const chosen = () => [...element.querySelectorAll("input:checked")].map((box) => box.value);
    let seen = null, drawn = "";

    function fill(body) {
      const kept = new Set(chosen()), focus = document.activeElement?.getAttribute("aria-label");
      $("tbody").innerHTML = body;
      for (const box of element.querySelectorAll("input")) box.checked = kept.has(box.value);
      for (const time of element.querySelectorAll("time")) {
        time.textContent = new Date(time.dateTime).toLocaleString([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
      }
      if (focus) element.querySelector(`[aria-label="${CSS.escape(focus)}"]`)?.focus();
      $(".kd-empty").hidden = body !== "";
      $(".kd-list").hidden = body === "";
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
      const news = await answer(server.rows({ owner: props.value.owner, seen }));
      if ($(".kd-message").dataset.away) { say(""); delete $(".kd-message").dataset.away; }
      if (!news.mark) return;
      seen = news.mark;
      fill(news.html);
      if (drawn || chosen().length) await overlay();
    }
    const retell = () => refresh().catch(() => { say("Reconnecting"); $(".kd-message").dataset.away = "yes"; });

    async function act(what, run) {
      const { problem } = await answer(server.act({ owner: props.value.owner, run, do: what })).catch(() => ({ problem: "The server is away. Try again." }));
      say(problem ?? (what === "stop" ? "Stopping: the student so far is kept." : "Deleted."));
      await retell();
    }
    function sure(row) {
      const dialog = $("dialog");
      $(".kd-which").textContent = `${row.querySelector("b").textContent}, started ${row.querySelector("time").textContent}`;
      dialog.returnValue = "";
      dialog.onclose = () => { if (dialog.returnValue === "delete") act("delete", row.dataset.run); };
      dialog.showModal();
    }
    element.addEventListener("click", (event) => {
      const what = event.target.closest("[data-do]")?.dataset.do, row = event.target.closest("tr");
      if (what === "open") open(row.dataset.run);
      if (what === "compare") compare(row.dataset.run);
      if (what === "stop") act("stop", row.dataset.run);
      if (what === "delete") sure(row);
    });
    element.addEventListener("change", () => overlay().catch(() => say("Reconnecting")));
    (async () => {
      while (element.isConnected) {
        const open = element.offsetParent && !document.hidden && "owner" in (props.value ?? {});
        if (open) await retell();
        await sleep(open ? POLL_LIST : 200);
      }
    })();
  }

  // A picture that is pasted anywhere on the Compare tab goes where an uploaded one would.
  document.addEventListener("paste", (event) => {
    const input = document.querySelector("#pictures input[type=file]");
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (!input || !files.length || !document.querySelector("#pictures").offsetParent) return;
    const list = new DataTransfer();
    files.forEach((file) => list.items.add(file));
    input.files = list.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });

  return { live, runs };
})();
