// The page's script. It keeps no state of a run but the place up to which it has read the events.
window.distillery = (() => {
  const GIVE_UP = 10000, POLL = 500, POLL_HIDDEN = 3000, POLL_AWAY = 1500, POLL_LIST = 2000;
  const PATIENCE = 25000; // a run that was asked to go on may look closed for this long
  const TEACHER = 180000; // a teacher may have to be fetched first
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  // A call of the server's that fails resolves to nothing, or to a description of the error.
  const answer = async (call, patience = GIVE_UP) => {
    const value = await Promise.race([call, sleep(patience)]);
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
    const still = figure.layout.dragmode === false;
    await Plotly.react(chart, figure.data, themed(figure.layout), { ...CONFIG, displayModeBar: still ? false : "hover" });
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

  // This page's address with what it shows: a run, perhaps with the key to read it, or a sweep.
  function address(shown) {
    const url = new URL(window.location.href);
    for (const name of ["run", "view", "sweep"]) {
      if (shown[name]) url.searchParams.set(name, shown[name]);
      else url.searchParams.delete(name);
    }
    return url;
  }

  function live(element, props, server, watch, compare, teach) {
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
      const taught = $(".kd-run").dataset.taught === "yes";
      $(".kd-compare").hidden = news.status !== "done" || !taught;
      $(".kd-teach").hidden = news.status !== "done" || taught || !mine;
      $(".kd-share").hidden = !mine;
      if (news.result && !$(".kd-result").firstChild) $(".kd-result").innerHTML = news.result;
      for (const words of news.warnings ?? []) warn(words);
      if (news.status === "done" && $(".kd-analysis").hidden) {
        $(".kd-analysis").hidden = false;
        near.observe($(".kd-analysis"));
      }
      return closed;
    }
    // Where teacher and student differ is asked for once, when it comes near.
    const near = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      near.disconnect();
      analyse(showing);
    }, { rootMargin: "200px" });
    async function analyse(mine) {
      const section = $(".kd-analysis");
      const news = await answer(server.analysis({ ...props.value })).catch(() => ({ problem: "The server gave no answer. Reload the page to see where teacher and student differ." }));
      if (mine !== showing) return;
      section.innerHTML = news.html ?? '<p class="kd-note"></p>';
      if (news.problem) section.firstChild.textContent = news.problem;
      for (const div of section.querySelectorAll(".kd-chart")) await draw(div, news.figures[div.dataset.figure]);
    }
    function introduce(news) {
      text(".kd-title", news.title[0]);
      text(".kd-detail", news.title[1]);
      $(".kd-run").dataset.mine = news.mine ? "yes" : "no";
      $(".kd-run").dataset.taught = news.taught ? "yes" : "no";
      $(".kd-share").onclick = async () => {
        const link = address({ run: props.value.run, view: news.view }).href;
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
      for (const div of element.querySelectorAll(".kd-curves .kd-chart")) {
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
      $(".kd-analysis").innerHTML = "";
      $(".kd-warnings").hidden = $(".kd-analysis").hidden = true;
      near.disconnect();
      for (const button of element.querySelectorAll("button")) button.hidden = true;
      text(".kd-title", ""); text(".kd-detail", ""); text(".kd-pace", "");
      text("[role=status]", value.run ? "Looking for the run" : "");
      $(".kd-stop").onclick = () => ask("stop_it");
      $(".kd-resume").onclick = () => ask("resume_it");
      $(".kd-compare").onclick = () => compare(value.run);
      $(".kd-teach").onclick = () => {
        teach(value.run);
        document.querySelector("#set-teacher")?.scrollIntoView({ behavior: "smooth", block: "center" });
      };
      if (value.new) {
        history.replaceState(history.state, "", address({ run: value.run }));
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

  // --- How long a run of the settings would take, asked for when they have been still for a while

  function expected(element, props, server, watch) {
    const STILL = 1500, FIRST = 3000; // a page that has just come has better things to do
    const asker = Math.random().toString(36).slice(2), line = element.querySelector("p");
    let asking = 0, told = ""; // what the line is about
    const say = (words, kind) => { line.textContent = words; line.dataset.kind = kind; };

    async function ask(after) {
      const mine = ++asking;
      await sleep(after);
      while (mine === asking && element.isConnected) {
        if (!element.offsetParent || document.hidden) { await sleep(500); continue; }
        const { values } = props.value;
        const news = await answer(server.expected({ ...props.value, asker })).catch(() => ({ wait: "", again: 5 }));
        if (mine !== asking) return;
        const about = JSON.stringify(values);
        if (!news.trains || told !== about) say(news.line ?? news.problem ?? (news.wait && `${news.wait}${news.trains ? "" : "…"}`), news.line ? "line" : news.problem ? "problem" : "wait");
        told = news.line ? about : news.trains ? told : "";
        if (!news.again) return;
        await sleep(1000 * news.again);
      }
    }
    let before = JSON.stringify(props.value.values);
    watch("value", () => { // the visitor, who is known a moment later, or the settings
      const now = JSON.stringify(props.value.values);
      if (now !== before) { say("", ""); told = ""; before = now; }
      ask(STILL);
    });
    // A run leaves its pictures and targets: the next one takes less.
    document.addEventListener("click", (event) => { if (element.isConnected && event.target.closest("#distill, #start-sweep, .kd-resume")) ask(5000); });
    ask(FIRST);
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

    const DONE = { stop: "Stopping: the student so far is kept.", rename: "Renamed.", delete: "Deleted." };
    async function act(what, run, name) {
      const { problem } = await answer(server.act({ owner: props.value.owner, run, do: what, name })).catch(() => ({ problem: "The server is away. Try again." }));
      say(problem ?? DONE[what]);
      await retell();
    }
    // A question about a run, and what is done if it is answered with the button of that name.
    function sure(what, row, kind) {
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
      if (what === "rename") sure(what, row, ".kd-naming");
      if (what === "delete") sure(what, row, ".kd-deleting");
      if (what === "keep") $(".kd-naming").close();
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

  // --- Dark knowledge: a teacher's answer to one picture, softened here as the slider moves

  function dark(element, props, server, watch, upload, stops, use) {
    const MOST = 10; // classes with a bar of their own
    const $ = (selector) => element.querySelector(selector);
    const words = (selector, text) => { if ($(selector).textContent !== text) $(selector).textContent = text; };
    const slider = () => $("input[type=range]");
    let picture = null, says = null, asked = "", asking = 0, followed = null;

    const softened = (logits, T) => {
      const most = Math.max(...logits), powers = logits.map((logit) => Math.exp((logit - most) / T));
      const sum = powers.reduce((a, b) => a + b, 0);
      return powers.map((power) => power / sum);
    };
    const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1%" : `${(100 * p).toFixed(1)}%`);

    async function ask() {
      const { teacher, method } = props.value, key = JSON.stringify([teacher, method, picture?.asked]);
      if (!picture || key === asked) return;
      asked = key;
      const mine = ++asking;
      words(".kd-asking", "Asking the teacher");
      $(".kd-answer").hidden = true;
      const news = await answer(server.teacher_says({ teacher, method, ...picture.asked }), TEACHER)
        .catch(() => ({ problem: "The server gave no answer. Try again." }));
      if (mine !== asking) return;
      words(".kd-asking", news.problem ?? "");
      if (news.problem) asked = "";
      else fill(news);
    }
    function fill(news) {
      says = news;
      const order = news.logits.map((_, index) => index).sort((a, b) => news.logits[b] - news.logits[a]);
      const shown = order.length > MOST + 1 ? order.slice(0, MOST) : order;
      says.groups = shown.map((index) => [index]);
      if (shown.length < order.length) says.groups.push(order.slice(MOST));
      $(".kd-bars").replaceChildren(...says.groups.map((group) => {
        const item = document.createElement("li"), name = document.createElement("span");
        name.textContent = group.length > 1 ? `${group.length} other classes` : news.names[group[0]];
        item.append(name, document.createElement("span"), document.createElement("i"));
        return item;
      }));
      Object.assign($(".kd-answer img"), { src: picture.source, alt: picture.name });
      const label = news.names[news.label];
      words(".kd-label", news.labelled ? `Its label: ${label}` : `It has no label here; the teacher's first choice, ${label}, stands for it`);
      $(".kd-answer").hidden = false;
      turn();
    }
    function turn() {
      const nth = Number(slider().value), T = stops[nth];
      words("output", `T = ${T}`);
      slider().setAttribute("aria-valuetext", `T = ${T}`);
      words(".kd-use", `Use T = ${T} for the run`);
      if (!says) return;
      const p = softened(says.logits, T);
      [...$(".kd-bars").children].forEach((item, place) => {
        const share = says.groups[place].reduce((sum, index) => sum + p[index], 0);
        item.children[1].textContent = percent(share);
        item.children[2].style.width = `${100 * share}%`;
      });
      words(".kd-says", says.sentences[nth]);
    }
    // The settings: which teacher, whether the examples fit, and where the slider begins.
    function follow() {
      const { dataset, temperature } = props.value;
      $(".kd-offered").hidden = dataset !== "sample";
      if (temperature !== followed && temperature > 0) {
        followed = temperature;
        slider().value = stops.reduce((best, stop, nth) => (Math.abs(stop - temperature) < Math.abs(stops[best] - temperature) ? nth : best), 0);
        turn();
      }
      if (!element.offsetParent) return;
      if (!picture && dataset === "sample") example($("[data-nth]"));
      else if (!picture) words(".kd-asking", "Upload a picture like those of your dataset.");
      ask();
    }
    function example(button) {
      const source = button.querySelector("img").src, name = button.getAttribute("aria-label").replace("Ask about ", "");
      choose({ asked: { example: Number(button.dataset.nth) }, source, name: `The example ${name}` });
    }
    function choose(one) {
      picture = one;
      for (const button of element.querySelectorAll("[data-nth]")) {
        button.setAttribute("aria-pressed", String(Number(button.dataset.nth) === one.asked.example));
      }
      ask();
    }
    async function take(input) {
      const [file] = input.files;
      if (!file) return;
      words(".kd-asking", "Uploading");
      try {
        const { path, url } = await upload(file);
        choose({ asked: { path }, source: url, name: file.name });
      } catch {
        words(".kd-asking", "The picture could not be uploaded: it is too large, or the server is away.");
      }
      input.value = "";
    }
    slider().max = stops.length - 1;
    element.addEventListener("input", (event) => { if (event.target === slider()) turn(); });
    element.addEventListener("change", (event) => { if (event.target.type === "file") take(event.target); });
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button?.dataset.nth) example(button);
      else if (button) use(stops[Number(slider().value)]);
    });
    new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) follow(); }).observe(element);
    watch("value", follow);
    follow();
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

  return { live, expected, runs, dark, answer, sleep, address };
})();
