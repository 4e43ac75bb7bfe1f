// The run on the Distill tab. It keeps no state of a run but the cursor, up to which it has read the events.
window.distillery.distill = (() => {
  const { answer, sleep, draw, append, address } = window.distillery;
  const POLL = 500, POLL_HIDDEN = 3000, POLL_AWAY = 1500;
  const RESUME_TIME = 25000; // a run that was asked to go on may look closed for this long

  const EXAMPLE = "example"; // the run that is shown as long as there is none of the visitor's

  function distill({ element, props, server, watch, compare, prove, useAsTeacher, goOn }) {
    let shows = 0; // how many runs have been shown: an answer about an earlier one is dropped
    const $ = (selector) => element.querySelector(selector);
    const takeAway = window.distillery.takeAway($(".kd-take-away"), server);
    const text = (selector, words) => { if ($(selector).textContent !== words) $(selector).textContent = words; };

    function show(update) {
      text("[role=status]", update.line[0]);
      text(".kd-figures", update.line[1]);
      $(".kd-run").dataset.status = update.status;
      $(".kd-bar > div").style.width = `${100 * update.share}%`;
      $(".kd-bar").setAttribute("aria-valuenow", Math.round(100 * update.share));
      [...$(".kd-stages").children].forEach((stage, nth) => {
        stage.className = nth < update.stage || update.status === "done" ? "past" : nth === update.stage ? "now" : "";
        stage.toggleAttribute("aria-current", stage.className === "now");
      });
      if (update.title) describe(update);
      const mine = $(".kd-run").dataset.mine === "yes", closed = ["done", "failed", "stopped", "paused", "died"].includes(update.status);
      $(".kd-stop").hidden = !mine || closed;
      $(".kd-resume").hidden = !mine || !closed || update.status === "done";
      const hasTeacher = $(".kd-run").dataset.hasTeacher === "yes";
      $(".kd-compare").hidden = update.status !== "done" || !hasTeacher || "example" in $(".kd-run").dataset;
      $(".kd-as-teacher").hidden = update.status !== "done" || hasTeacher || !mine;
      $(".kd-share").hidden = !mine;
      $(".kd-resume").dataset.asks = update.asks ? "yes" : "no"; // of a piece with a lent GPU, in a request of the page's own
      if (update.result && !$(".kd-result").firstChild) $(".kd-result").innerHTML = update.result;
      for (const words of update.warnings ?? []) addWarning(words);
      if (update.status === "done" && $(".kd-analysis").hidden) {
        $(".kd-analysis").hidden = false;
        analysisNear.observe($(".kd-analysis"));
      }
      return closed;
    }
    // Where teacher and student differ is asked for once, when the reader scrolls near it.
    const analysisNear = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      analysisNear.disconnect();
      analyse(shows);
    }, { rootMargin: "200px" });
    async function analyse(nth) {
      const section = $(".kd-analysis");
      const update = await answer(server.analysis({ ...props.value, run: shownRun() })).catch(() => ({ problem: "The server gave no answer. Reload the page to see where teacher and student differ." }));
      if (nth !== shows) return;
      section.innerHTML = update.html ?? '<p class="kd-note"></p>';
      if (update.problem) section.firstChild.textContent = update.problem;
      for (const div of section.querySelectorAll(".kd-chart")) await draw(div, update.figures[div.dataset.figure]);
    }
    function describe(update) {
      $(".kd-run").toggleAttribute("data-example", Boolean(update.example));
      $(".kd-example").hidden = !update.example;
      text(".kd-example span", update.example ?? "");
      text(".kd-title", update.title[0]);
      text(".kd-detail", update.title[1]);
      $(".kd-run").dataset.mine = update.mine ? "yes" : "no";
      $(".kd-run").dataset.hasTeacher = update.has_teacher ? "yes" : "no";
      $(".kd-share").onclick = async () => {
        const link = address({ run: props.value.run, view: update.view }).href;
        try {
          await navigator.clipboard.writeText(link);
          text(".kd-share", "Copied");
          setTimeout(() => text(".kd-share", "Copy read-only link"), 2000);
        } catch {
          window.prompt("Anyone with this link can see the run, and change nothing:", link);
        }
      };
    }
    function addWarning(words) {
      const list = $(".kd-warnings");
      if ([...list.children].some((item) => item.textContent === words)) return;
      list.hidden = false;
      list.append(Object.assign(document.createElement("li"), { textContent: words }));
    }
    async function drawCurves(update) {
      for (const div of element.querySelectorAll(".kd-curves .kd-chart")) {
        if (update.figures) await draw(div, update.figures[div.dataset.figure]);
        else if (update.append) await append(div, update.append);
      }
    }
    async function act(action) {
      const { problem } = await answer(server[action]({ ...props.value })).catch(() => ({ problem: "The server is away. Try again." }));
      if (problem) text("[role=status]", problem);
      else if (action === "resume_it") follow({ ...props.value, new: true });
    }
    const shownRun = () => props.value.run || ("owner" in props.value ? EXAMPLE : ""); // there is an owner once the page has arrived
    function reset(value) {
      $(".kd-run").hidden = !value.run;
      $(".kd-run").removeAttribute("data-example");
      $(".kd-example").hidden = true;
      for (const chart of element.querySelectorAll(".kd-curves .kd-chart")) if (chart.data) window.Plotly.purge(chart);
      $(".kd-result").innerHTML = $(".kd-warnings").innerHTML = "";
      $(".kd-analysis").innerHTML = "";
      $(".kd-warnings").hidden = $(".kd-analysis").hidden = true;
      analysisNear.disconnect();
      takeAway({});
      for (const button of element.querySelectorAll("button")) button.hidden = true;
      text(".kd-title", ""); text(".kd-detail", ""); text(".kd-figures", "");
      text("[role=status]", value.run ? "Looking for the run" : "");
      $(".kd-stop").onclick = () => act("stop_it");
      $(".kd-resume").onclick = () => {
        if ($(".kd-resume").dataset.asks !== "yes") return act("resume_it");
        goOn(value.run);
        follow({ ...props.value, new: true, asked: true });
      };
      $(".kd-compare").onclick = () => compare(value.run);
      $(".kd-as-teacher").onclick = () => {
        useAsTeacher(value.run);
        document.querySelector("#models")?.scrollIntoView({ behavior: "smooth", block: "center" });
      };
      if (value.new) {
        history.replaceState(history.state, "", address({ run: value.run }));
        if (element.getBoundingClientRect().top > window.innerHeight / 2) element.scrollIntoView({ behavior: "smooth" });
      }
    }
    async function follow(asked) {
      const value = { ...asked, run: shownRun() };
      const nth = ++shows;
      let resumesUntil = value.new ? Date.now() + RESUME_TIME : 0, asksUntil = value.asked ? resumesUntil : 0;
      let cursor = 0, wasClosed = false, wasAtWork = false, drawing = Promise.resolve(); // drawing waits for Plotly on a slow line; the words do not
      reset(value);
      while (value.run && nth === shows && element.isConnected) {
        let update;
        try {
          update = await answer(server.poll({ run: value.run, owner: value.owner, view: value.view, cursor }));
        } catch (problem) {
          if (nth !== shows) return;
          text("[role=status]", problem.answered
            ? "The server met an error of its own with this run. Its log says which; the run itself is not touched by it."
            : "Reconnecting: the run goes on meanwhile.");
          text(".kd-figures", "");
          await sleep(POLL_AWAY);
          continue;
        }
        if (nth !== shows) return;
        if (update.refused) {
          text("[role=status]", update.refused);
          $(".kd-run").dataset.status = "refused";
          return;
        }
        const closed = show(update);
        if (closed && !wasClosed) takeAway({ run: value.run, owner: value.owner });
        wasClosed = closed;
        // A piece of a paused run is over: the page that has seen it at work asks for the next, any other waits for a click.
        if (update.goes_on && wasAtWork && $(".kd-run").dataset.mine === "yes") {
          asksUntil = resumesUntil = Date.now() + RESUME_TIME;
          if (update.asks) goOn(value.run);
        }
        if (update.goes_on && Date.now() < asksUntil) {
          text("[role=status]", update.asks ? "Asking for the GPU" : "Going on without the GPU");
          $(".kd-resume").hidden = true;
        }
        wasAtWork = !closed;
        drawing = drawing.then(() => nth === shows && drawCurves(update));
        cursor = update.cursor;
        const isGoingOn = update.goes_on && !update.asks; // in a process that may take its time to start
        if (closed && !isGoingOn && (update.status === "done" || Date.now() > resumesUntil)) return;
        await sleep(document.hidden ? POLL_HIDDEN : POLL);
      }
    }
    element.addEventListener("click", ({ target }) => {
      if (target.dataset.do !== "prove") return;
      target.disabled = true; // one click starts one run; after a refusal it can be tried again
      setTimeout(() => { target.disabled = false; }, 3000);
      prove(shownRun());
    });
    watch("value", () => follow(props.value));
    follow(props.value);
  }

  return distill;
})();
