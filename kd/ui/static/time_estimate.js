// The line under the Distill button: how long a run would take, asked for when the settings have not changed for a while.
(() => {
  const { answer, sleep } = window.distillery;

  function expected(element, props, server, watch) {
    const UNCHANGED = 1500; // how long the settings must stay as they are
    const FIRST = 3000; // a page that has just opened loads other things first
    const asker = Math.random().toString(36).slice(2), line = element.querySelector("p");
    let asked = 0; // how often the time has been asked for: an earlier answer is dropped
    let answered = ""; // the settings whose time the line says
    const say = (words, kind) => { line.textContent = words; line.dataset.kind = kind; };

    async function ask(after) {
      const nth = ++asked;
      await sleep(after);
      while (nth === asked && element.isConnected) {
        if (!element.offsetParent || document.hidden) { await sleep(500); continue; }
        const { values } = props.value;
        const update = await answer(server.expected({ ...props.value, asker })).catch(() => ({ wait: "", again: 5 }));
        if (nth !== asked) return;
        const settings = JSON.stringify(values);
        if (!update.trains || answered !== settings) say(update.line ?? update.problem ?? (update.wait && `${update.wait}${update.trains ? "" : "…"}`), update.line ? "line" : update.problem ? "problem" : "wait");
        answered = update.line ? settings : update.trains ? answered : "";
        if (!update.again) return;
        await sleep(1000 * update.again);
      }
    }
    let before = JSON.stringify(props.value.values);
    watch("value", () => { // the visitor, who is known a moment later, or the settings
      const now = JSON.stringify(props.value.values);
      if (now !== before) { say("", ""); answered = ""; before = now; }
      ask(UNCHANGED);
    });
    // A run leaves its pictures and targets: the next one takes less.
    document.addEventListener("click", (event) => { if (element.isConnected && event.target.closest("#distill, #start-sweep, .kd-resume")) ask(5000); });
    ask(FIRST);
  }

  Object.assign(window.distillery, { expected });
})();
