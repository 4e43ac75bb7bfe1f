// Check the pictures: begun by the button, asked about until it is known, kept on the server for the downloads.
(() => {
  const { answer, sleep } = window.distillery;
  const POLL = 1000, POLL_AWAY = 3000, PATIENCE = 20000;

  function check(element, props, server, watch) {
    const $ = (selector) => element.querySelector(selector);
    const say = (words, kind = "") => { const line = $(".kd-asking"); if (line.textContent !== words) line.textContent = words; line.classList.toggle("kd-problem", kind === "problem"); };
    const asker = Math.random().toString(36).slice(2);
    const about = () => JSON.stringify(props.value.values);
    let asking = 0, shown = null; // what was asked for when the findings that are shown were

    function work(on) {
      $(".kd-go").hidden = on;
      $(".kd-cancel").hidden = !on;
    }
    async function ask() {
      const mine = ++asking, asked = { ...structuredClone(props.value), asker, teacher: $("input").checked };
      $(".kd-checked").hidden = true;
      shown = { asked, about: about() };
      work(true);
      say("Starting…");
      for (let fresh = true; mine === asking && element.isConnected; fresh = false) {
        const news = await answer(server.checked({ ...asked, fresh }), PATIENCE).catch(() => ({ away: true }));
        if (mine !== asking) return;
        if (news.html !== undefined || news.problem !== undefined) { done(news); return; }
        say(news.away ? "The server is away. Trying again…" : `${news.wait}…`);
        await sleep(news.away ? POLL_AWAY : POLL);
      }
    }
    function done(news) {
      work(false);
      say(news.problem ?? news.title, news.problem === undefined ? "" : "problem");
      if (news.problem !== undefined) return;
      $(".kd-found").innerHTML = news.html; // escaped by the server
      $(".kd-checked").hidden = false;
    }
    function stop(words) {
      asking += 1;
      work(false);
      say(words);
      answer(server.cancel({ asker })).catch(() => {});
    }
    async function download(kind) {
      const news = await answer(server.checked({ ...shown.asked, file: kind }), PATIENCE).catch(() => ({ problem: "The server gave no answer. Try again." }));
      if (news.problem) { say(news.problem, "problem"); return; }
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([news.text], { type: kind === "html" ? "text/html" : "application/json" }));
      link.download = `check.${kind}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.file) download(button.dataset.file);
      else if (button.matches(".kd-go")) ask();
      else stop("Cancelled.");
    });
    watch("value", () => {
      if (!shown || shown.about === about()) return;
      const busy = !$(".kd-cancel").hidden;
      if (busy) stop("The settings have changed: check again.");
      else if (!$(".kd-checked").hidden) say("The settings have changed since this check.");
    });
  }

  Object.assign(window.distillery, { check });
})();
