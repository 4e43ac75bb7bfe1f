// Take it away: the export of the run that is shown, found again after a reload, and its download.
(() => {
  const { answer, sleep } = window.distillery;
  const POLL = 700, POLL_AWAY = 3000, TIMEOUT = 120000;

  // For the section ``element``; ``follow`` shows the export of a closed run, ``{ run, owner }``, and of none hides it.
  function takeAway(element, server) {
    const $ = (selector) => element.querySelector(selector);
    const button = (name) => $(`[data-do=${name}]`);
    const say = (words, isProblem = false) => {
      if ($(".kd-exporting").textContent !== words) $(".kd-exporting").textContent = words;
      $(".kd-exporting").classList.toggle("kd-problem", isProblem);
    };
    const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0)} MB`;
    const push = window.distillery.pushing($(".kd-push"), server, () => watch(value));
    let follows = 0, value = {}; // how many runs have been followed: an answer about an earlier one is dropped

    function show(state) {
      const works = ["queued", "running"].includes(state.status);
      element.hidden = !state.status;
      if (!state.status) return false;
      const hadFocus = element.contains(document.activeElement);
      button("export").hidden = works || !state.missing;
      button("export").textContent = state.bytes ? "Add int8 and a page for browsers" : "Export";
      button("cancel").hidden = !works || state.line === "Cancelling";
      button("download").hidden = works || !state.bytes;
      button("download").textContent = state.bytes ? `Download as a zip, ${megabytes(state.bytes)}` : "";
      $(".kd-bar").hidden = !works;
      $(".kd-bar > div").style.width = `${100 * state.share}%`;
      $(".kd-bar").setAttribute("aria-valuenow", Math.round(100 * state.share));
      say(state.line, ["failed", "died"].includes(state.status));
      if ($(".kd-found").dataset.of !== (state.html ?? "")) {
        $(".kd-found").dataset.of = state.html ?? "";
        $(".kd-found").innerHTML = state.html ?? ""; // escaped by the server
        $("details").hidden = !state.html;
      }
      // Who works by keyboard stays here when the button that was pressed goes.
      if (hadFocus && document.activeElement?.hidden) element.querySelector("button:not([hidden])")?.focus();
      return works;
    }
    function follow(asked) {
      show({});
      push(asked);
      return watch(asked);
    }
    async function watch(asked) {
      const nth = ++follows;
      value = asked;
      if (!asked.run) return;
      while (nth === follows && element.isConnected) {
        const state = await answer(server.export_state(asked)).catch(() => null);
        if (nth !== follows) return;
        if (state && !show(state)) return;
        if (!state) say("The server is away. Trying again…");
        await sleep(state ? POLL : POLL_AWAY);
      }
    }
    async function act(name) {
      const { problem } = await answer(server[name](value)).catch(() => ({ problem: "The server gave no answer. Try again." }));
      if (problem) say(problem, true);
      else watch(value);
    }
    async function download() {
      const asked = value, parts = [];
      button("download").disabled = true;
      try {
        let mark, size = 1, done = 0, name = "";
        while (done < size) {
          const news = await answer(server.zip_part({ ...asked, start: done }), TIMEOUT).catch(() => ({ problem: "The server gave no answer. Try again." }));
          if (news.problem) throw new Error(news.problem);
          mark ??= news.mark;
          if (mark !== news.mark) throw new Error("The student was exported anew meanwhile. Download it again.");
          const data = Uint8Array.from(atob(news.data), (letter) => letter.charCodeAt(0));
          parts.push(data);
          [size, name] = [news.bytes, news.name];
          done += data.length;
          if (done < size) say(`Downloading: ${megabytes(done)} of ${megabytes(size)}`);
        }
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob(parts, { type: "application/zip" }));
        link.download = name;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
        say("Downloaded.");
      } catch (problem) {
        say(problem.message, true);
      } finally {
        button("download").disabled = false;
      }
    }
    element.addEventListener("click", (event) => {
      const name = event.target.closest("button")?.dataset.do;
      if (name === "export") act("export_it");
      else if (name === "cancel") act("cancel_it");
      else if (name === "download") download();
    });
    return follow;
  }

  Object.assign(window.distillery, { takeAway });
})();
